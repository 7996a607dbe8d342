"""The best of several chunks that an imitator proposes, as the world imagines them.

Chunks of actions are drawn from a flow policy, rolled out in the world, each followed by what the
policy would do next, and the one whose rollout costs least is executed (GPC-RANK of generative
predictive control, arXiv:2502.00622; best-of-N).  The policy knows how the task is done, the world
which of its answers is the exact one.

Letters: B worlds, N candidates, H actions of a chunk, K of them that are rolled out, A action
numbers, L actions of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from data.ranges import MAX_SEED, CheckedConfig, Range
from models.controllers.flow_policy import FlowPolicy, whole_blocks
from models.controllers.goal_frame import goal_poses
from models.dynamics.dynamics import State
from models.planning.candidates import interpolate, worst_if_not_finite
from models.planning.plan import Objective, Plan
from models.world import World

MAX_LEVEL = 4
"""Stalls beyond this widen the proposals no more."""


Proposer = Literal["auto", "flow_policy", "distilled_policy", "canonical_policy"]
"""A policy of chunks, by its name; `auto` takes what knows the goal."""


@dataclass(frozen=True)
class BestOfNConfig(CheckedConfig):
    """Settings of the search among chunks of actions."""

    proposer: Proposer = "auto"
    """Whose chunks are compared: those of the flow policy, of the canonical one, or of the student,
    the first that is there, and of one that knows other goals where there are others; or of the one
    that is named."""
    num_samples: Annotated[int, Range(1, 10**6)] = 16
    """Chunks that are compared."""
    num_chunks: Annotated[int, Range(1, 1000)] = 2
    """Chunks of a rollout: the candidate, and the policy's own ones after it."""
    noise_scale: Annotated[float, Range(0, 10)] = 0.7
    """Standard deviation of the noise that a candidate starts from; the policy was trained with
    1."""
    knot_std: Annotated[float, Range(0, 10)] = 0.02
    """Standard deviation of what is added to every second candidate, between the knots of its
    blocks; an action spans 2."""
    num_steps: Annotated[int, Range(1, 10**4)] = 5
    """Euler steps of a chunk: fewer than the policy's own are enough to choose from."""
    running_weight: Annotated[float, Range(0, 1)] = 0.5
    """Share of the mean cost over a rollout's blocks; the rest is the cost at its end."""
    max_parallel: Annotated[int, Range(1, 2**24)] = 8192
    """Largest batch of the model; the plan does not depend on it."""
    seed: Annotated[int, Range(0, MAX_SEED)] = 0

    ADDED: ClassVar[frozenset[str]] = frozenset({"proposer"})


@dataclass
class Noise:
    """All random numbers of a search; B is 1 where all worlds have the same."""

    candidates: Tensor
    """(B, N, H, A), that the candidates start from."""
    later: list[Tensor]
    """(B, 1, H, A), that the chunks after them start from."""
    added: Tensor
    """(B, N, H, A), to the candidates."""

    def to(self, device: torch.device) -> Noise:
        """Move all of it to a device."""
        later = [noise.to(device) for noise in self.later]
        return Noise(self.candidates.to(device), later, self.added.to(device))

    def likeliest(self) -> Noise:
        """That of the first candidate alone."""
        return Noise(self.candidates[:, :1], self.later, self.added[:, :1])

    def times(self, factor: Tensor) -> Noise:
        """Widen the candidates of each world by its factor, (B,)."""
        factor = factor[:, None, None, None]
        return Noise(self.candidates * factor, self.later, self.added * factor)


@dataclass
class Found:
    """The best chunk of each world."""

    chunk: Tensor
    """(B, H, A) in [-1, 1]."""
    cost: Tensor
    """(B,), of its rollout."""
    start_cost: Tensor
    """(B,), of the states at hand."""
    state: State
    """After the actions of it that were rolled out."""


class BestOfN:
    """Plans a chunk at a time, as a `GoalPlanner` whose goal is the objective's own, or its pose.

    The first candidate is the policy's likeliest.  All worlds get the same noise, so that a plan
    does not depend on the others; it changes from plan to plan.
    """

    action_block = 1

    def __init__(
        self,
        config: BestOfNConfig,
        world: World,
        policy: FlowPolicy,
        objective: Objective,
        block: int,
    ) -> None:
        """block: actions after which the objective looks at a rollout."""
        self.config, self.world, self.policy = config, world, policy
        self.objective, self.block = objective, block
        self.horizon = policy.horizon
        self.num_rolled_out = whole_blocks(policy.horizon, policy.config.receding_horizon, block)
        """Of a chunk: those that are executed, in whole blocks."""
        self.reset()

    def reset(self) -> None:
        """Begin new episodes."""
        self.num_plans = 0

    @torch.no_grad()
    def plan(
        self,
        state: State,
        goal: Tensor | None,
        last_action: Tensor | None,
        warm_start: Tensor | None = None,
        stalls: Tensor | None = None,
    ) -> Plan:
        """Plan a chunk, as `Planner.plan`, whatever the warm start.

        goal: poses, (B, 3), of a task that has several; latents of goals are not looked at.
        stalls: each widens the proposals of a world: more noise of both kinds.
        """
        device = state.latents.device
        levels = torch.zeros(len(state)) if stalls is None else stalls.clamp(max=MAX_LEVEL).float()
        generator = torch.Generator().manual_seed(self.config.seed + 1_000_003 * self.num_plans)
        self.num_plans += 1
        noise = self.sample_noise(1, generator).to(device)
        chunk_size = max(1, self.config.max_parallel // self.config.num_samples)
        poses = goal_poses(goal)
        found = [
            self.search(
                state.select(rows),
                noise.times(1 + levels[rows.cpu()].to(device) / 2),
                None if poses is None else poses[rows],
            )
            for rows in torch.arange(len(state), device=device).split(chunk_size)
        ]
        chunks, cost, start_cost = (
            torch.cat(parts)
            for parts in zip(*((f.chunk, f.cost, f.start_cost) for f in found), strict=True)
        )
        return self.policy.as_plan(chunks, last_action, cost, start_cost)

    def sample_noise(self, num_worlds: int, generator: torch.Generator | None = None) -> Noise:
        """Draw all random numbers of a search, on the CPU; for one world, or the same for all."""
        config, size = self.config, self.world.actions.size
        num_blocks = -(-self.horizon // self.block)

        def normal(*shape: int) -> Tensor:
            return torch.randn(num_worlds, *shape, size, generator=generator)

        candidates = config.noise_scale * normal(config.num_samples, self.horizon)
        candidates[:, 0] = 0  # the likeliest chunk
        later = [
            self.policy.config.noise_scale * normal(1, self.horizon)
            for _ in range(config.num_chunks - 1)
        ]
        knots = config.knot_std * normal(config.num_samples, num_blocks)
        knots[:, ::2] = 0
        knots = torch.cat([torch.zeros_like(knots[:, :, :1]), knots], dim=2)
        return Noise(candidates, later, interpolate(knots, self.block)[:, :, : self.horizon])

    @torch.no_grad()
    def search(self, state: State, noise: Noise, poses: Tensor | None = None) -> Found:
        """Find the best chunk of each world; poses: of their goals, (B, 3)."""
        num_worlds, num_samples = len(state), noise.candidates.shape[1]
        states = state.repeat(num_samples)
        tracked = self.objective.start(states.latents)
        # without poses the objective has its own goal, and looks at none
        goal = states.latents if poses is None else poses.repeat_interleave(num_samples, 0)
        start_cost = self.objective.cost(tracked, goal).view(num_worlds, -1)[:, 0]
        costs, chunks, reached = [], [], states
        for number, start in enumerate([noise.candidates, *noise.later]):
            start = start.expand(num_worlds, num_samples, -1, -1).flatten(0, 1)
            chunk = self.policy.sample(states.latents, start, self.config.num_steps, goal)
            if number == 0:
                added = noise.added.expand(num_worlds, -1, -1, -1).flatten(0, 1)
                chunk = (chunk + added).clamp(-1, 1)
            chunks.append(chunk)
            for actions in chunk[:, : self.num_rolled_out].split(self.block, dim=1):
                states = self.world.imagine(states, actions)
                tracked = self.objective.follow(tracked, actions, states.latents)
                costs.append(self.objective.cost(tracked, goal))
            if number == 0:
                reached = states
        weight = self.config.running_weight
        cost = (1 - weight) * costs[-1] + weight * torch.stack(costs).mean(0)
        # what was rolled out, and then the next chunk's actions
        rolled_out = [chunk[:, : self.num_rolled_out] for chunk in chunks[:-1]]
        plans = torch.cat([*rolled_out, chunks[-1]], dim=1)[:, : self.horizon]
        best_cost, best = worst_if_not_finite(cost.view(num_worlds, -1)).min(1)
        rows = torch.arange(num_worlds, device=best.device) * num_samples + best
        return Found(plans[rows], best_cost, start_cost, reached.select(rows))
