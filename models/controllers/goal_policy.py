"""A controller that is shown a goal and says at once where to move next, without search.

It is asked again at the end of every leg of a few actions, and learns on imagined trajectories: it
is let go from a recorded state towards what was recorded later, answers at each leg to where it has
come to in imagination, and the distance that a planner searches over is lowered by its gradient
through the whole of it (SVG, arXiv:1510.09142; Dreamer's actor, arXiv:1912.01603).  Such a gradient
tells nothing of what has to be gone around until the block is touched; that, the recording shows,
whose next leg is an answer to what came of it (hindsight, arXiv:1707.01495).

Letters: B worlds, L legs, T frames, P patches, D latent width, A action numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from data.actions import ActionSpec
from models.controllers.planner import Plan, interpolate
from models.controllers.policy import PolicyConfig, make_encoder, mlp
from models.dynamics.dynamics import State
from models.layers.embeddings import fourier_features
from models.tokenizers.tokenizer import LatentSpec, Tokenizer
from models.world import World


@dataclass(frozen=True)
class GoalPolicyConfig:
    encoder: PolicyConfig = field(default_factory=lambda: PolicyConfig(hidden_dim=512))
    """How latents of many patches are looked at, and the width of the layers behind."""
    action_block: int = 5
    """Actions of a leg, which the action moves through evenly."""
    horizon: int = 6
    """Legs that are imagined in training."""
    max_goal_offset: int = 40
    """Actions from a start to the farthest goal in training."""
    action_delta_scale: float = 0.2
    """Length of a leg that costs `effort`, where an action spans 2; none is over three times it."""
    early_weight: float = 0.1
    """Weight of the distance before the recording was at the goal, beside 1 from then on."""
    bc_weight: float = 0.02
    """Weight of answering as recorded, in squares of `spread`."""
    bc_std: float = 0.1
    control_penalty: float = 0.0125
    """Cost of legs of length `reach`, beside 1 for staying as far from the goal as before: what
    lies far from the recordings is imagined wrongly."""


class GoalPolicy(nn.Module):
    """State and goal to the end of the next leg. An episode's first action begins in the middle of
    the action space, unless it is known where the hand is.

    Where latents are places and an action points at one, the network is also shown how far each
    place is from the hand, as sines and cosines: whether the block is touched, and on which side,
    is a small difference of large numbers, too.
    """

    WAVELENGTHS = (2.0, 1.0, 0.5)
    """Wavelengths, where the picture spans 2."""
    wavelengths: Tensor

    def __init__(self, config: GoalPolicyConfig, latents: LatentSpec, actions: ActionSpec) -> None:
        super().__init__()
        if latents.kind != "continuous" or actions.kind != "continuous":
            raise ValueError(
                "a controller for goals learns by gradients through imagination, which codes do "
                "not carry; use a world of continuous latents and actions (--preset goals)"
            )
        if config.max_goal_offset < config.action_block:
            raise ValueError(
                f"goals {config.max_goal_offset} actions ahead are nearer than a leg of {config.action_block}; give "
                f"--goals.ahead at least --goals.leg"
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
        self.register_buffer("waves", wavelengths, persistent=False)
        self.net = mlp(input_dim, config.encoder.hidden_dim, actions.size, num_layers=3)

    def load_codebook(self, tokenizer: Tokenizer) -> None:
        self.encoder.load_codebook(tokenizer)

    def forward(self, latents: Tensor, goal: Tensor, last_action: Tensor) -> Tensor:
        """latents, goal (B, P, D), the normalised action before (B, A) -> the end of the next leg,
        (B, A) in [-1, 1]."""
        state_features, goal_features = self.encoder(latents), self.encoder(goal)
        # the last of the way is a small difference of large numbers
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
        delta = (
            3
            * self.config.action_delta_scale
            * torch.tanh(self.net(torch.cat(inputs, dim=-1)).float())
        )
        return (last_action + delta).clamp(-1, 1)

    def _pointer_offsets(self, keypoints: Tensor, last_action: Tensor) -> Tensor:
        """(B, D), (B, A) -> (B, D * 2 * F)."""
        offsets = (
            keypoints.float().unflatten(-1, (-1, last_action.shape[-1]))
            - last_action.float()[:, None]
        )
        return fourier_features(offsets.flatten(1), self.wavelengths).to(keypoints.dtype)

    def plan(
        self,
        state: State,
        goal: Tensor,
        last_action: Tensor | None,
        warm_start: Tensor | None = None,
    ) -> Plan:
        """As `Planner.to_goal`: a way of one leg, which needs none to start from. It is not judged:
        its cost is 0."""
        if last_action is None:
            last_action = torch.zeros(len(state), self.actions.size, device=goal.device)
        else:
            last_action = self.actions.normalize(last_action.to(goal.device))
        knots = torch.stack([last_action, self(state.latents, goal, last_action)], dim=1)
        cost = torch.zeros(len(knots), device=knots.device)
        return Plan(self.actions.denormalize(interpolate(knots, self.action_block)), knots, cost)

    def loss(self, world: World, latents: Tensor, actions: Tensor) -> dict[str, Tensor]:
        """Imagine the way from a frame of a clip towards a later one.

        latents (B, T, P, D) and normalised actions (B, T, A), with T over `horizon` + 1: what is
        before the start is its history.
        """
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
        state = world.dynamics.start(latents[history_index], actions[history_index][:, :-1])
        goal, last_action = latents[rows, start + goal_offset], actions[rows, start - 1]
        initial_distance = (state.latents - goal).float().square().mean().clamp(min=1e-8)

        relative_distances, penalties, knots = [], [], []
        for _ in range(config.horizon):
            knot = self(state.latents, goal, last_action)
            state = world.dynamics.rollout(
                state, interpolate(torch.stack([last_action, knot], 1), self.action_block)
            )
            relative_distances.append(
                (state.latents - goal).float().square().flatten(1).mean(1) / initial_distance
            )
            penalties.append(((knot - last_action) / config.action_delta_scale).square().mean(1))
            knots.append(knot)
            last_action = knot
        # the root of the distance: the last of the way, which decides, counts as much as the first
        relative_mse = torch.stack(relative_distances, 1)
        distance = (relative_mse + 1e-5) ** 0.25
        arrival = self.action_block * torch.arange(1, config.horizon + 1, device=device)
        weights = torch.where(arrival >= goal_offset[:, None], 1.0, config.early_weight)
        weights = weights / weights.sum(1, keepdim=True)
        demo_knot = actions[rows, start + self.action_block - 1]
        return {
            "distance": (weights * distance).sum(1).mean(),
            "effort": config.control_penalty * torch.stack(penalties).mean(),
            "recorded": config.bc_weight * ((knots[0] - demo_knot) / config.bc_std).square().mean(),
            "left": (relative_mse[:, -1].detach() + 1e-4).sqrt().mean(),
        }
