"""A policy on the latents of one frame.

Letters: B states, P patches, N latents a frame, D latent width, M keypoints, A action numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.distributions import Categorical

from data.actions import ActionSpec
from data.batch import Batch
from data.ranges import CheckedConfig, Range
from models.controllers.controller import TrainedController
from models.dynamics.dynamics import State
from models.layers.distributions import GaussianMixture, MultiCategorical
from models.layers.transformer import RmsNorm
from models.method import Best, Losses
from models.tokenizers.codes import CodebookEmbedding, HasCodebooks
from models.tokenizers.tokenizer import LatentSpec

Distribution = GaussianMixture | Categorical | MultiCategorical


@dataclass(frozen=True)
class PolicyConfig(CheckedConfig):
    channels: Annotated[int, Range(1, 2**13)] = 64
    """Channels on the latent grid."""
    num_keypoints: Annotated[int, Range(1, 4096)] = 32
    """Keypoints found in the frame."""
    hidden_dim: Annotated[int, Range(1, 2**16)] = 256
    """Width of the two hidden layers."""
    num_modes: Annotated[int, Range(1, 1000)] = 5
    """Gaussians in the mixture over a continuous action."""
    dropout: Annotated[float, Range(0, below=1)] = 0.1
    """Dropout on the encoder's features."""
    min_std: Annotated[float, Range(above=0, high=10)] = 0.05
    """Smallest standard deviation of an action, whose range is [-1, 1]."""
    max_std: Annotated[float, Range(above=0, high=10)] = 1.0
    """Largest standard deviation of an action."""

    def check(self) -> None:
        super().check()
        if self.min_std > self.max_std:
            raise ValueError(f"--min-std {self.min_std} is above --max-std {self.max_std}")


class Encoder(nn.Module):
    """From what a policy is given to what its network reads, (B, `out_dim`)."""

    out_dim: int

    def load_codebook(self, source: HasCodebooks) -> None:
        """Copy the vectors of the tokenizer's codes, where it reads codes."""


def make_encoder(config: PolicyConfig, latents: LatentSpec) -> SpatialSoftmax | IdentityEncoder:
    """Make the encoder for latents of many patches, or of one."""
    return SpatialSoftmax(config, latents) if latents.num_patches > 1 else IdentityEncoder(latents)


class IdentityEncoder(Encoder):
    """Return latents of one patch unchanged."""

    def __init__(self, latents: LatentSpec) -> None:
        super().__init__()
        self.vectors = CodebookEmbedding(latents)
        self.out_dim = latents.dim

    def load_codebook(self, source: HasCodebooks) -> None:
        """Copy the vectors of the tokenizer's codes."""
        self.vectors.load_codebook(source)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, N) codes or (B, 1, D) -> (B, D)."""
        return self.vectors(latents)[:, 0]


class SpatialSoftmax(Encoder):
    """Turn a frame's latents into keypoints and values there (spatial softmax, Levine et al.,
    arXiv:1504.00702)."""

    positions: Tensor

    def __init__(self, config: PolicyConfig, latents: LatentSpec) -> None:
        super().__init__()
        self.latents = latents
        rows, columns = latents.grid
        channels, num_keypoints = config.channels, config.num_keypoints
        self.vectors = CodebookEmbedding(latents)
        self.input_proj = nn.Conv2d(latents.dim, channels, 1)
        self.pos_emb = nn.Parameter(torch.zeros(channels, rows, columns))
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)
        self.heatmap_head = nn.Conv2d(channels, num_keypoints, 1)
        self.value_head = nn.Conv2d(channels, num_keypoints, 1)
        y, x = torch.meshgrid(
            torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij"
        )
        positions = torch.stack([x.flatten(), y.flatten()], 1)
        self.register_buffer("positions", positions, persistent=False)
        squeeze_channels = channels // 8
        self.squeeze = nn.Conv2d(channels, squeeze_channels, 1)
        self.out_dim = 3 * num_keypoints + squeeze_channels * rows * columns

    def load_codebook(self, source: HasCodebooks) -> None:
        """Copy the vectors of the tokenizer's codes."""
        self.vectors.load_codebook(source)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, N) codes or (B, P, D) -> (B, out_dim)."""
        rows, columns = self.latents.grid
        x = rearrange(self.vectors(latents), "B (h w) D -> B D h w", h=rows, w=columns)
        x = nn.functional.silu(self.input_proj(x) + self.pos_emb)
        x = x + nn.functional.silu(self.mix(x))
        probs = torch.softmax(self.heatmap_head(x).flatten(2).float(), dim=-1)
        keypoints = (probs @ self.positions).flatten(1)
        values = (probs * self.value_head(x).flatten(2)).sum(-1)
        return torch.cat([keypoints, values, self.squeeze(x).flatten(1)], dim=-1)


def mlp(in_dim: int, hidden_dim: int, out_dim: int, num_layers: int = 2) -> nn.Sequential:
    """Build an MLP: hidden layers with a norm each, and a last layer with small weights."""
    output_layer = nn.Linear(hidden_dim, out_dim)
    nn.init.normal_(output_layer.weight, std=0.01)
    nn.init.zeros_(output_layer.bias)
    parts: list[nn.Module] = []
    for given in [in_dim, *[hidden_dim] * (num_layers - 1)]:
        parts += [nn.Linear(given, hidden_dim), RmsNorm(hidden_dim), nn.SiLU()]
    return nn.Sequential(*parts, output_layer)


class LatentPolicy(TrainedController):
    """State to action: a Gaussian mixture around tanh means, or a categorical over codes, or one
    over each of their factors."""

    needs = frozenset({"latents", "actions"})
    best = Best("bc_nll", higher_is_better=False)

    def __init__(self, config: PolicyConfig, latents: LatentSpec, actions: ActionSpec) -> None:
        super().__init__()
        self.config, self.actions = config, actions
        self.encoder = make_encoder(config, latents)
        out_dim = sum(actions.factor_sizes) or actions.size
        if actions.kind == "continuous":
            out_dim = config.num_modes * (1 + 2 * actions.size)
        layers = mlp(self.encoder.out_dim, config.hidden_dim, out_dim)
        setattr(layers[-1], "is_of_actions", True)  # noqa: B010
        self.head = nn.Sequential(nn.Dropout(config.dropout), layers)

    def load_codebook(self, source: HasCodebooks) -> None:
        self.encoder.load_codebook(source)

    def distribution(self, latents: Tensor) -> Distribution:
        """Latents of B states -> a distribution over normalized actions, (B, A), or codes, (B,)."""
        out = self.head(self.encoder(latents)).float()
        if self.actions.factors:
            return MultiCategorical(out, self.actions)
        if self.actions.kind == "discrete":
            return Categorical(logits=out, validate_args=False)
        out = rearrange(out, "B (M K) -> B M K", M=self.config.num_modes)
        mean, raw_std = out[..., 1:].chunk(2, dim=-1)
        # different from the start, or all modes would learn the same
        offsets = torch.linspace(-0.7, 0.7, self.config.num_modes, device=out.device)
        mean = torch.tanh(mean + offsets[:, None])
        min_std, max_std = self.config.min_std, self.config.max_std
        return GaussianMixture(
            out[..., 0], mean, min_std + (max_std - min_std) * torch.sigmoid(raw_std - 1)
        )

    def act(self, state: State, goal: Tensor | None = None) -> Tensor:
        """Sample an action in the environment's units: (B, A) or (B,).

        The policy was trained to sample; the mode alone gets stuck between two options.
        """
        action = self.distribution(state.latents).sample()
        if self.actions.kind == "continuous":
            action = action.clamp(-1, 1)
        return self.actions.denormalize(action)

    def loss(self, batch: Batch) -> Losses:
        """Behavior cloning: latents (B, T, N), normalized actions (B, T, A), or codes (B, T)."""
        latents, actions = (x.flatten(0, 1) for x in batch.require("latents", "actions"))
        dist = self.distribution(latents)
        losses = {"bc_nll": -dist.log_prob(actions).mean()}
        if self.actions.kind == "continuous":
            error = (dist.mode - actions).square().sum(-1).sqrt()
            losses["action_error"] = error.mean().detach()
        else:
            correct = (dist.mode == actions).float()
            losses["accuracy"] = correct.mean()
        return losses
