"""An imitator in chunks of actions that sees all from its goal, and so knows every goal.

Demonstrations of one goal are demonstrations of all others, seen from there: states and actions are
moved as a whole to where the goal stands at home (canonicalization: Kaba et al., arXiv:2211.06489;
models/controllers/goal_frame.py), and the chunk is moved back.  States are read from latents by
what has learned the task's cost.  Only the walls are not moved.

A goal farther away than in the demonstrations is approached by way of nearer ones, on the line from
the block to it.

Letters: B states, S numbers of a state, F columns of it, H actions of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from data.actions import ActionSpec
from data.batch import Batch
from models.controllers.flow_policy import FlowPolicy, FlowPolicyConfig
from models.controllers.goal_frame import GoalFrame, as_columns, goal_poses
from models.controllers.policy import Encoder
from models.controllers.task_cost import TaskCost
from models.method import Losses
from models.tokenizers.tokenizer import LatentSpec

REACH_QUANTILE = 0.98
"""Share of the demonstrations' states that are nearer to their goal than what counts as far."""


@dataclass(frozen=True)
class CanonicalPolicyConfig(FlowPolicyConfig):
    state_names: tuple[str, ...] = ()
    """Numbers of the dataset's states, filled in by the stage."""
    home: tuple[float, ...] = ()
    """x, y, angle of the goal that all is moved to, filled in by the stage: the cost's."""


class CanonicalPolicy(FlowPolicy):
    """State and goal to the next H actions."""

    needs = frozenset({"actions", "states", "goals"})
    config: CanonicalPolicyConfig
    reader: TaskCost | None = None
    """Reads states from latents; of the run, and not a part of the checkpoint."""

    reach: Tensor

    def __init__(
        self, config: CanonicalPolicyConfig, latents: LatentSpec, actions: ActionSpec
    ) -> None:
        self.frame = GoalFrame(config.state_names, config.home)
        if not self.frame.is_known or not actions.pointer:
            raise ValueError(
                "a canonical policy moves places of the plane: it needs states that are named "
                "NAME_x, NAME_y and NAME_angle, goals with a pose, and actions that are places; "
                "leave canonical_policy out of --methods"
            )
        super().__init__(config, latents, actions)
        self.register_buffer("reach", torch.tensor(torch.inf))

    def make_encoder(self, latents: LatentSpec) -> Encoder:
        return Columns(self.config.state_names)

    def begin(self, sample: Batch) -> None:
        """Take the scales of states and actions as they are seen from their goals, and how far
        goals are away."""
        states, goals = self._states(sample), self._goals(sample)
        columns = self.frame.move(self.encoder(states), goals)
        self.latent_mean.copy_(columns.mean(0))
        self.latent_std.copy_(columns.std(0).clamp(min=1e-4))
        self.action_std.copy_(self._seen_actions(sample).flatten(0, 1).std(0).clamp(min=1e-4))
        distance = (self.frame.place(self.encoder(states)) - goals[:, :2]).norm(dim=1)
        self.reach.copy_(distance.quantile(REACH_QUANTILE))

    def observe_states(self, states: Tensor, goals: Tensor) -> Tensor:
        """States (B, S), goals (B, 3) -> what the network reads, (B, F)."""
        return (self.frame.move(self.encoder(states), goals) - self.latent_mean) / self.latent_std

    def sample(
        self,
        latents: Tensor,
        noise: Tensor,
        num_steps: int | None = None,
        goal: Tensor | None = None,
    ) -> Tensor:
        """As of a flow policy; goal: poses (B, 3), home if there are none."""
        assert self.reader is not None, "the run's task cost reads the states"
        poses = goal_poses(goal)
        if poses is None:
            poses = latents.new_tensor(self.config.home, dtype=torch.float32)
            poses = poses.expand(len(latents), -1)
        states = self.reader.states(self.reader.read(latents))
        return self.sample_from(states, self.nearer(states, poses), noise, num_steps)

    def sample_from(
        self, states: Tensor, goals: Tensor, noise: Tensor, num_steps: int | None = None
    ) -> Tensor:
        """The same from states, (B, S)."""
        chunk = self.follow(self.observe_states(states, goals), noise, num_steps)
        places = self.frame.from_home(self.actions.denormalize(chunk), goals)
        return self.actions.normalize(places).clamp(-1, 1)

    def nearer(self, states: Tensor, goals: Tensor) -> Tensor:
        """Bring goals (B, 3) as near to the block of states (B, S) as demonstrations have them."""
        block = self.frame.place(self.encoder(states))
        offset = goals[:, :2] - block
        share = (self.reach / offset.norm(dim=1, keepdim=True).clamp(min=1e-6)).clamp(max=1)
        return torch.cat([block + share * offset, goals[:, 2:]], dim=1)

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

    def _seen_actions(self, batch: Batch) -> Tensor:
        """Actions (B, H, A) as they are seen from their goals, in units of an action's range."""
        (actions,) = batch.require("actions")
        places = self.frame.to_home(self.actions.denormalize(actions.float()), self._goals(batch))
        return self.actions.normalize(places)

    def _states(self, batch: Batch) -> Tensor:
        return batch.require("states")[0][:, 0].float()

    def _goals(self, batch: Batch) -> Tensor:
        return batch.require("goals")[0].float()


class Columns(Encoder):
    """States with angles as sine and cosine."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.is_angle = [name.endswith("angle") for name in names]
        self.out_dim = len(names) + sum(self.is_angle)

    def forward(self, states: Tensor) -> Tensor:
        """(B, S) -> (B, F)."""
        return as_columns(states, self.is_angle)
