"""An imitator in chunks of actions that sees all from its goal, and so knows every goal.

Demonstrations of one goal are demonstrations of all others, seen from there: states and actions are
moved as a whole to where the goal is the origin (canonicalization: Kaba et al., arXiv:2211.06489;
models/controllers/goal_frame.py), and the chunk is moved back.  States are read from latents by
what has learned the task's cost.  Only the walls are not moved.

What decides on a push is where the agent is from the block, and, near the goal, a few pixels: so
the network also sees the agent from the block, and the block's offset from its goal magnified.

A goal farther away than in the demonstrations is approached by way of nearer ones, on the line from
the block to it.

Letters: B states, S numbers of a state, F columns of it, C features, H actions of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from data.actions import ActionSpec
from data.batch import Batch
from data.ranges import Range
from models.controllers.flow_policy import FlowPolicy, FlowPolicyConfig
from models.controllers.goal_frame import GoalFrame, as_columns, goal_poses
from models.controllers.policy import Encoder
from models.controllers.task_cost import ZOOMS, TaskCost
from models.method import Losses
from models.tokenizers.tokenizer import LatentSpec

ORIGIN = (0.0, 0.0, 0.0)
REACH_QUANTILE = 0.98
"""Share of the demonstrations' states that are nearer to their goal than what counts as far."""


@dataclass(frozen=True)
class CanonicalPolicyConfig(FlowPolicyConfig):
    state_names: tuple[str, ...] = ()
    """Numbers of the dataset's states, filled in by the stage."""
    goal: Annotated[tuple[float, ...], Range(-(10**6), 10**6)] = ()
    """x, y, angle of the goal where none is given, filled in by the stage: the cost's."""


class CanonicalPolicy(FlowPolicy):
    """State and goal to the next H actions."""

    needs = frozenset({"actions", "states", "goals"})
    config: CanonicalPolicyConfig
    encoder: SeenFromGoal
    reach: Tensor

    def __init__(
        self, config: CanonicalPolicyConfig, latents: LatentSpec, actions: ActionSpec
    ) -> None:
        frame = GoalFrame(config.state_names, config.goal)
        if not frame.is_known or len(frame.places) < 2 or not actions.pointer:
            raise ValueError(
                "a canonical policy moves places of the plane: it needs states that are named "
                "NAME_x, NAME_y and NAME_angle of one thing, NAME_x and NAME_y of another, goals "
                "with a pose, and actions that are places; leave canonical_policy out of --methods"
            )
        super().__init__(config, latents, actions)
        self.frame = self.encoder.frame
        self.register_buffer("reach", torch.tensor(torch.inf))
        self._read_states: Callable[[Tensor], Tensor] | None = None

    def make_encoder(self, latents: LatentSpec) -> SeenFromGoal:
        return SeenFromGoal(self.config.state_names)

    def read_with(self, task_cost: TaskCost) -> None:
        """Read states from latents with the cost of the run, which is no part of the checkpoint."""
        self._read_states = task_cost.read_states

    def begin(self, sample: Batch) -> None:
        """Take the scales of states and actions as they are seen from their goals, and how far
        goals are away."""
        states, goals = self._states(sample), self._goals(sample)
        offset = self.encoder.places(states) - goals[:, :2]
        self.encoder.unit.copy_(offset.std().clamp(min=1e-4))
        self.reach.copy_(offset.norm(dim=1).quantile(REACH_QUANTILE))
        features = self.encoder(states, goals)
        self.latent_mean.copy_(features.mean(0))
        self.latent_std.copy_(features.std(0).clamp(min=1e-4))
        self.action_std.copy_(self._seen_actions(sample).flatten(0, 1).std(0).clamp(min=1e-4))

    def sample(
        self,
        latents: Tensor,
        noise: Tensor,
        num_steps: int | None = None,
        goal: Tensor | None = None,
    ) -> Tensor:
        """As of a flow policy; goal: poses (B, 3), the config's if there are none."""
        states, poses = self._read(latents, goal_poses(goal))
        return self.sample_from(states, poses, noise, num_steps)

    def sample_from(
        self, states: Tensor, goals: Tensor, noise: Tensor, num_steps: int | None = None
    ) -> Tensor:
        """The same from states, (B, S)."""
        chunk = self.follow(self.observe_states(states, goals), noise, num_steps)
        return self.actions.normalize(self.frame.from_home(chunk, goals)).clamp(-1, 1)

    def observe_states(self, states: Tensor, goals: Tensor) -> Tensor:
        """States (B, S), goals (B, 3) -> what the network reads, (B, C)."""
        return (self.encoder(states, goals) - self.latent_mean) / self.latent_std

    def nearer(self, states: Tensor, goals: Tensor) -> Tensor:
        """Bring goals (B, 3) as near to the block of states (B, S) as demonstrations have them."""
        block = self.encoder.places(states)
        offset = goals[:, :2] - block
        share = (self.reach / offset.norm(dim=1, keepdim=True).clamp(min=1e-6)).clamp(max=1)
        return torch.cat([block + share * offset, goals[:, 2:]], dim=1)

    def imitate(self, latents: Tensor, chunk: Tensor) -> Losses:
        """As of a flow policy, towards the config's goal."""
        states, poses = self._read(latents, None)
        chunk = self.frame.to_home(self.actions.denormalize(chunk), poses)
        return self.flow_matching(self.observe_states(states, poses), chunk)

    def loss(self, batch: Batch) -> Losses:
        """Flow matching; states (B, T, S), of which the first is read, actions (B, H, A) from there
        on, and goals (B, 3)."""
        observed = self.observe_states(self._states(batch), self._goals(batch))
        return self.flow_matching(observed, self._seen_actions(batch))

    @torch.no_grad()
    def validate(self, held_out: Batch) -> dict[str, float]:
        """As of a flow policy, from true states."""
        (actions,) = held_out.require("actions")
        states, goals = self._states(held_out), self._goals(held_out)
        sampled = self.sample_from(states, goals, torch.zeros_like(actions))
        losses = {name: float(value) for name, value in self.loss(held_out).items()}
        return losses | self.action_error(sampled, actions.float())

    def _read(self, latents: Tensor, poses: Tensor | None) -> tuple[Tensor, Tensor]:
        """Read states (B, S); poses: of the goals, the config's if None, that are brought nearer,
        (B, 3)."""
        assert self._read_states is not None, "the run's task cost reads the states"
        states = self._read_states(latents)
        if poses is None:
            poses = states.new_tensor(self.config.goal).expand(len(states), -1)
        return states, self.nearer(states, poses)

    def _seen_actions(self, batch: Batch) -> Tensor:
        """Actions (B, H, A) as places seen from their goals."""
        (actions,) = batch.require("actions")
        return self.frame.to_home(self.actions.denormalize(actions.float()), self._goals(batch))

    def _states(self, batch: Batch) -> Tensor:
        return batch.require("states")[0][:, 0].float()

    def _goals(self, batch: Batch) -> Tensor:
        return batch.require("goals")[0].float()


class SeenFromGoal(Encoder):
    """States as they are seen from goals, with what decides on a push."""

    unit: Tensor
    """How far the block is from its goal in the data, about."""

    def __init__(self, state_names: tuple[str, ...]) -> None:
        super().__init__()
        self.frame = GoalFrame(state_names, ORIGIN)
        self.is_angle = [name.endswith("angle") for name in state_names]
        others = len(self.frame.places) - 1
        self.out_dim = len(self.frame.columns) + 2 * others + 4 * len(ZOOMS)
        self.register_buffer("unit", torch.ones(()))

    def forward(self, states: Tensor, goals: Tensor) -> Tensor:
        """States (B, S), goals (B, 3) -> (B, C)."""
        seen = self.frame.move(as_columns(states, self.is_angle), goals)
        pose = self.frame.pose(seen)
        others = self.frame.to_home(self.frame.other_places(seen), pose)
        sin, cos = pose[:, 2:].sin(), pose[:, 2:].cos()
        offset = torch.cat([pose[:, :2] / self.unit, sin, 1 - cos], dim=1)
        zoomed = [torch.asinh(zoom * offset) for zoom in ZOOMS]
        return torch.cat([seen, others.flatten(1), *zoomed], dim=1)

    def places(self, states: Tensor) -> Tensor:
        """Where that is whose pose goals are: (B, S) -> (B, 2)."""
        return self.frame.pose(as_columns(states, self.is_angle))[:, :2]
