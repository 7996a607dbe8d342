"""A world in which every action is worth what the task costs less after it.

A reward that is earned near the goal alone says nothing of the way there, and 15 steps of a rollout
hardly change it.  What the cost falls by adds up to the cost at the end, whatever the way (rewards
from a potential: Ng, Harada & Russell 1999, without their discount).

Letters: B states, T frames, A action numbers.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor

from models.controllers.task_cost import TaskCost
from models.dynamics.dynamics import State
from models.layers.sampling import Sampling
from models.world import World


class CostReward:
    """What an actor-critic asks of a world, with other rewards; for one rollout at a time.

    The cost is asked for after each of its action blocks, so that only changes count that the block
    makes; the actions before are worth nothing by themselves.
    """

    def __init__(self, world: World, task_cost: TaskCost) -> None:
        self.world, self.task_cost = world, task_cost

    def start_from(self, latents: Tensor, actions: Tensor) -> State:
        """As `World.start_from`, at the beginning of a rollout."""
        state = self.world.start_from(latents, actions)
        self._tracked = self.task_cost.start(state.latents)
        self._cost = self.task_cost.cost(self._tracked)
        self._block: list[Tensor] = []
        return state

    def step_from(self, state: State, action: Tensor) -> State:
        """As `World.step_from`."""
        state = self.world.step_from(state, action)
        self._block.append(action)
        if len(self._block) < self.task_cost.config.action_block:
            return replace(state, reward=torch.zeros_like(self._cost))
        block, self._block = torch.stack(self._block, dim=1), []
        self._tracked = self.task_cost.follow(self._tracked, block, state.latents)
        before, self._cost = self._cost, self.task_cost.cost(self._tracked)
        return replace(state, reward=before - self._cost)

    def sampled(self, sampling: Sampling) -> AbstractContextManager[None]:
        return self.world.sampled(sampling)


RewardedWorld = World | CostReward
