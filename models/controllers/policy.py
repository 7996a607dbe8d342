"""A light policy on the latents of one frame.

Letters: B states, P patches, N latents a frame, D latent width, M keypoints, A action numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.distributions import Categorical

from data.actions import ActionSpec
from models.dynamics.dynamics import State
from models.layers.gaussian_mixture import GaussianMixture
from models.layers.multi_categorical import MultiCategorical
from models.layers.transformer import RmsNorm
from models.tokenizers.codes import CodebookEmbedding
from models.tokenizers.tokenizer import LatentSpec, Tokenizer


@dataclass(frozen=True)
class PolicyConfig:
    channels: int = 64
    """Channels on the latent grid."""
    num_keypoints: int = 32
    """Places that are looked for in the frame."""
    hidden_dim: int = 256
    """Width of the two layers behind them."""
    num_modes: int = 5
    """Normal distributions in the mixture over a continuous action."""
    dropout: float = 0.1
    """Share of what was found in the frame that is hidden in training."""
    min_std: float = 0.05
    """Least and greatest standard deviation of an action, where its range is [-1, 1]."""
    max_std: float = 1.0


def make_encoder(config: PolicyConfig, latents: LatentSpec) -> SpatialSoftmax | IdentityEncoder:
    """Give the eyes for latents of many patches, or of one, in which nothing has to be found."""
    return SpatialSoftmax(config, latents) if latents.num_patches > 1 else IdentityEncoder(latents)


class IdentityEncoder(nn.Module):
    """Latents of one patch, as they are."""

    def __init__(self, latents: LatentSpec) -> None:
        super().__init__()
        self.vectors = CodebookEmbedding(latents)
        self.out_dim = latents.dim

    def load_codebook(self, tokenizer: Tokenizer) -> None:
        """Take over the vectors of the tokenizer's codes."""
        self.vectors.load_codebook(tokenizer)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, N) codes or (B, 1, D) -> (B, D)."""
        return self.vectors(latents)[:, 0]


class SpatialSoftmax(nn.Module):
    """A frame's latents as a few places and what stands there (spatial softmax, Levine et al.,
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
        self.register_buffer("where", torch.stack([x.flatten(), y.flatten()], 1), persistent=False)
        squeeze_channels = channels // 8
        self.squeeze = nn.Conv2d(channels, squeeze_channels, 1)
        self.out_dim = 3 * num_keypoints + squeeze_channels * rows * columns

    def load_codebook(self, tokenizer: Tokenizer) -> None:
        """Take over the vectors of the tokenizer's codes."""
        self.vectors.load_codebook(tokenizer)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, N) codes or (B, P, D) -> (B, width)."""
        rows, columns = self.latents.grid
        x = rearrange(self.vectors(latents), "B (h w) D -> B D h w", h=rows, w=columns)
        x = nn.functional.silu(self.input_proj(x) + self.pos_emb)
        x = x + nn.functional.silu(self.mix(x))
        probs = torch.softmax(self.heatmap_head(x).flatten(2).float(), dim=-1)
        keypoints = (probs @ self.positions).flatten(1)
        values = (probs * self.value_head(x).flatten(2)).sum(-1)
        return torch.cat([keypoints, values, self.squeeze(x).flatten(1)], dim=-1)


def mlp(in_dim: int, hidden_dim: int, out_dim: int, num_layers: int = 2) -> nn.Sequential:
    """Hidden layers, each with a norm; the last layer starts small."""
    output_layer = nn.Linear(hidden_dim, out_dim)
    nn.init.normal_(output_layer.weight, std=0.01)
    nn.init.zeros_(output_layer.bias)
    parts: list[nn.Module] = []
    for given in [in_dim, *[hidden_dim] * (num_layers - 1)]:
        parts += [nn.Linear(given, hidden_dim), RmsNorm(hidden_dim), nn.SiLU()]
    return nn.Sequential(*parts, output_layer)


class LatentPolicy(nn.Module):
    """State to action: a mixture of normals around tanh means, or a choice of codes, or of each of
    the factors that they are made of."""

    def __init__(self, config: PolicyConfig, latents: LatentSpec, actions: ActionSpec) -> None:
        super().__init__()
        self.config, self.actions = config, actions
        self.encoder = make_encoder(config, latents)
        out_dim = sum(actions.factor_sizes) or actions.size
        if actions.kind == "continuous":
            out_dim = config.num_modes * (1 + 2 * actions.size)
        self.head = nn.Sequential(
            nn.Dropout(config.dropout), mlp(self.encoder.out_dim, config.hidden_dim, out_dim)
        )

    def load_codebook(self, tokenizer: Tokenizer) -> None:
        self.encoder.load_codebook(tokenizer)

    def distribution(self, latents: Tensor) -> GaussianMixture | Categorical | MultiCategorical:
        """Latents of B states -> a distribution over normalised actions, (B, A), or codes, (B,)."""
        out = self.head(self.encoder(latents)).float()
        if self.actions.factors:
            return MultiCategorical(out, self.actions)
        if self.actions.kind == "discrete":
            return Categorical(logits=out, validate_args=False)
        out = rearrange(out, "B (M K) -> B M K", M=self.config.num_modes)
        mean, raw_std = out[..., 1:].chunk(2, dim=-1)
        # apart from the start, or all components would learn the same
        offsets = torch.linspace(-0.7, 0.7, self.config.num_modes, device=out.device)
        mean = torch.tanh(mean + offsets[:, None])
        min_std, max_std = self.config.min_std, self.config.max_std
        return GaussianMixture(
            out[..., 0], mean, min_std + (max_std - min_std) * torch.sigmoid(raw_std - 1)
        )

    def act(self, state: State, sample: bool = True) -> Tensor:
        """Draw an action, or give the likeliest, in the environment's units: (B, A) or (B,).

        Drawn, as it was trained to act: the likeliest alone comes to rest where ways part.
        """
        dist = self.distribution(state.latents)
        action = dist.sample() if sample else dist.mode
        if self.actions.kind == "continuous":
            action = action.clamp(-1, 1)
        return self.actions.denormalize(action)

    def loss(self, latents: Tensor, actions: Tensor) -> dict[str, Tensor]:
        """Behaviour cloning: latents (B, N), normalised actions (B, A), or codes (B,)."""
        dist = self.distribution(latents)
        losses = {"cloning": -dist.log_prob(actions).mean()}
        if self.actions.kind == "continuous":
            error = (dist.mode - actions).square().sum(-1).sqrt()
            losses["distance"] = error.mean().detach()
        else:
            correct = (dist.mode == actions).float()
            losses["agreement"] = correct.mean()
        return losses
