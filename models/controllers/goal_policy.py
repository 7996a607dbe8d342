"""A goal-conditioned policy: from state and goal to the next action block, without search.

It is queried once per action block and learns on model rollouts.  A rollout starts at a state of
the dataset; its goal is a later frame.  The distance that a planner minimizes is lowered by its
gradient through the whole rollout (SVG, arXiv:1510.09142; Dreamer's actor, arXiv:1912.01603).  That
gradient says nothing about detours before contact.  Behavior cloning adds them: the dataset's next
action block is an example for the goal that it led to (hindsight, arXiv:1707.01495).

Letters: B worlds, T frames, P patches, D latent width, A action numbers, F wavelengths.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor

from data.actions import ActionSpec
from data.batch import Batch
from data.ranges import CheckedConfig, Range
from models.controllers.controller import TrainedController
from models.controllers.policy import PolicyConfig, make_encoder, mlp
from models.dynamics.dynamics import State
from models.layers.embeddings import fourier_features
from models.method import Best, Losses
from models.planning.candidates import interpolate
from models.planning.plan import Plan
from models.tokenizers.codes import HasCodebooks
from models.tokenizers.tokenizer import LatentSpec
from models.world import World


@dataclass(frozen=True)
class GoalPolicyConfig(CheckedConfig):
    encoder: PolicyConfig = field(default_factory=lambda: PolicyConfig(hidden_dim=512))
    """The latents' encoder, and the width of the hidden layers."""
    action_block: Annotated[int, Range(1, 1000)] = 5
    """Actions of a block, interpolated linearly to its last one."""
    horizon: Annotated[int, Range(1, 1000)] = 6
    """Action blocks of a training rollout."""
    max_goal_offset: Annotated[int, Range(1, 10**4)] = 40
    """Actions from a start to the farthest goal in training."""
    action_delta_scale: Annotated[float, Range(above=0, high=2)] = 0.2
    """Change of the action over a block that costs `control_penalty`; an action spans 2.  The
    largest change is three times as much."""
    early_weight: Annotated[float, Range(0, 10**6)] = 0.1
    """Weight of the goal distance before the dataset reaches the goal; it is 1 from then on."""
    bc_weight: Annotated[float, Range(0, 10**6)] = 0.02
    """Weight of behavior cloning, a squared error in units of `bc_std`."""
    bc_std: Annotated[float, Range(above=0, high=10)] = 0.1
    """Standard deviation of an action; an action spans 2."""
    control_penalty: Annotated[float, Range(0, 10**6)] = 0.0125
    """Cost of changing the action by `action_delta_scale`; a goal distance that does not change
    costs 1.  The model is wrong far from the dataset."""

    def check(self) -> None:
        super().check()
        if self.max_goal_offset < self.action_block:
            raise ValueError(
                f"--max-goal-offset {self.max_goal_offset} is below --action-block "
                f"{self.action_block}; give at least as much"
            )


class GoalPolicy(TrainedController):
    """State and goal to the last action of the next block.

    An episode starts at the center of the action space if its last action is unknown.  Where
    latents are positions and an action points at one, the network also reads the Fourier features
    of the offsets between them: contact, and its side, are small differences of large numbers.
    """

    WAVELENGTHS = (2.0, 1.0, 0.5)
    """Of the Fourier features; a frame spans 2."""
    wavelengths: Tensor

    needs = frozenset({"latents", "actions"})
    best = Best("final_distance", higher_is_better=False)

    def __init__(self, config: GoalPolicyConfig, latents: LatentSpec, actions: ActionSpec) -> None:
        super().__init__()
        if latents.kind != "continuous" or actions.kind != "continuous":
            raise ValueError(
                "a goal policy learns by gradients through model rollouts, and codes pass none; "
                "use a world of continuous latents and actions (--preset keypoints)"
            )
        self.config, self.latents, self.actions = config, latents, actions
        self.horizon, self.action_block = 1, config.action_block
        self.max_goal_offset = config.max_goal_offset
        self.encoder = make_encoder(config.encoder, latents)
        input_dim = 3 * self.encoder.out_dim + actions.size
        self.sees_pointer_offsets = latents.is_xy and actions.pointer
        if self.sees_pointer_offsets:
            input_dim += 2 * self.encoder.out_dim * 2 * len(self.WAVELENGTHS)
        wavelengths = torch.tensor(self.WAVELENGTHS)
        self.register_buffer("wavelengths", wavelengths, persistent=False)
        self.net = mlp(input_dim, config.encoder.hidden_dim, actions.size, num_layers=3)

    def load_codebook(self, source: HasCodebooks) -> None:
        self.encoder.load_codebook(source)

    def forward(self, latents: Tensor, goal: Tensor, last_action: Tensor) -> Tensor:
        """latents, goal (B, P, D), the last action (B, A) -> that of the next block, (B, A).

        Actions are in [-1, 1].
        """
        state_features, goal_features = self.encoder(latents), self.encoder(goal)
        # near the goal, the difference is small between large numbers
        inputs = [
            state_features,
            goal_features,
            3 * (goal_features - state_features),
            last_action.to(state_features.dtype),
        ]
        if self.sees_pointer_offsets:
            inputs += [
                self._pointer_offsets(state_features, last_action),
                self._pointer_offsets(goal_features, last_action),
            ]
        delta = torch.tanh(self.net(torch.cat(inputs, dim=-1)).float())
        return (last_action + 3 * self.config.action_delta_scale * delta).clamp(-1, 1)

    def _pointer_offsets(self, keypoints: Tensor, last_action: Tensor) -> Tensor:
        """(B, D), (B, A) -> (B, D * 2 * F)."""
        positions = keypoints.float().unflatten(-1, (-1, last_action.shape[-1]))
        offsets = positions - last_action.float()[:, None]
        return fourier_features(offsets.flatten(1), self.wavelengths).to(keypoints.dtype)

    def plan(
        self,
        state: State,
        goal: Tensor,
        last_action: Tensor | None,
        warm_start: Tensor | None = None,
        stalls: Tensor | None = None,
    ) -> Plan:
        """Plan one action block, as `Planner.plan`, without a warm start; the cost is 0."""
        if last_action is None:
            last_action = torch.zeros(len(state), self.actions.size, device=goal.device)
        else:
            last_action = self.actions.normalize(last_action.to(goal.device))
        knots = torch.stack([last_action, self(state.latents, goal, last_action)], dim=1)
        cost = torch.zeros(len(knots), device=knots.device)
        return Plan(self.actions.denormalize(interpolate(knots, self.action_block)), knots, cost)

    def loss(self, batch: Batch, world: World) -> Losses:
        """Roll out from a frame of a clip towards a later one.

        latents (B, T, P, D) and normalized actions (B, T, A), T > `max_goal_offset` + 1: the frames
        before the start are its history.
        """
        latents, actions = batch.require("latents", "actions")
        config = self.config
        batch_size, device = len(latents), latents.device
        history = latents.shape[1] - 1 - self.max_goal_offset
        goal_offset = torch.randint(
            self.action_block, self.max_goal_offset + 1, (batch_size,), device=device
        )
        num_starts = self.max_goal_offset - goal_offset + 1
        start = history + (torch.rand(batch_size, device=device) * num_starts).long()
        rows = torch.arange(batch_size, device=device)
        history_index = rows[:, None], start[:, None] + torch.arange(-history, 1, device=device)
        state = world.start_from(latents[history_index], actions[history_index][:, :-1])
        goal, last_action = latents[rows, start + goal_offset], actions[rows, start - 1]
        target = world.vectors(goal)
        initial_distance = (world.vectors(state.latents) - target).float().square().mean()
        initial_distance = initial_distance.clamp(min=1e-8)

        relative_distances, penalties, knots = [], [], []
        for _ in range(config.horizon):
            knot = self(state.latents, goal, last_action)
            state = world.rollout_from(
                state, interpolate(torch.stack([last_action, knot], 1), self.action_block)
            )
            distance = (world.vectors(state.latents) - target).float().square()
            relative_distances.append(distance.flatten(1).mean(1) / initial_distance)
            penalties.append(((knot - last_action) / config.action_delta_scale).square().mean(1))
            knots.append(knot)
            last_action = knot
        # the root of the distance: errors near the goal count as much as those far from it
        relative_mse = torch.stack(relative_distances, 1)
        distance = (relative_mse + 1e-5) ** 0.25
        arrival = self.action_block * torch.arange(1, config.horizon + 1, device=device)
        weights = torch.where(arrival >= goal_offset[:, None], 1.0, config.early_weight)
        weights = weights / weights.sum(1, keepdim=True)
        demo_knot = actions[rows, start + self.action_block - 1]
        return {
            "goal_distance": (weights * distance).sum(1).mean(),
            "control_penalty": config.control_penalty * torch.stack(penalties).mean(),
            "bc": config.bc_weight * ((knots[0] - demo_knot) / config.bc_std).square().mean(),
            "final_distance": (relative_mse[:, -1].detach() + 1e-4).sqrt().mean(),
        }
