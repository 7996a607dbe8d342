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
from models.layers.gaussian_mixture import ActionMixture
from models.layers.multi_categorical import Choices
from models.layers.transformer import RmsNorm
from models.tokenizers.codes import CodeVectors
from models.tokenizers.tokenizer import Latents, Tokenizer


@dataclass(frozen=True)
class PolicyConfig:
    channels: int = 64
    """Channels on the latent grid."""
    keypoints: int = 32
    """Places that are looked for in the frame."""
    hidden: int = 256
    """Width of the two layers behind them."""
    components: int = 5
    """Normal distributions in the mixture over a continuous action."""
    dropout: float = 0.1
    """Share of what was found in the frame that is hidden in training."""
    low_spread: float = 0.05
    """Least and greatest standard deviation of an action, where its range is [-1, 1]."""
    high_spread: float = 1.0


def make_glance(config: PolicyConfig, latents: Latents) -> Glance | Whole:
    """Give the eyes for latents of many patches, or of one, in which nothing has to be found."""
    return Glance(config, latents) if latents.patches > 1 else Whole(latents)


class Whole(nn.Module):
    """Latents of one patch, as they are."""

    def __init__(self, latents: Latents) -> None:
        super().__init__()
        self.vectors = CodeVectors(latents)
        self.width = latents.width

    def adopt(self, tokenizer: Tokenizer) -> None:
        """Take over the vectors of the tokenizer's codes."""
        self.vectors.adopt(tokenizer)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, N) codes or (B, 1, D) -> (B, D)."""
        return self.vectors(latents)[:, 0]


class Glance(nn.Module):
    """A frame's latents as a few places and what stands there (spatial softmax, Levine et al.,
    arXiv:1504.00702)."""

    where: Tensor

    def __init__(self, config: PolicyConfig, latents: Latents) -> None:
        super().__init__()
        self.latents = latents
        rows, columns = latents.grid
        channels, points = config.channels, config.keypoints
        self.vectors = CodeVectors(latents)
        self.look = nn.Conv2d(latents.width, channels, 1)
        self.place = nn.Parameter(torch.zeros(channels, rows, columns))
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)
        self.maps = nn.Conv2d(channels, points, 1)
        self.values = nn.Conv2d(channels, points, 1)
        y, x = torch.meshgrid(
            torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij"
        )
        self.register_buffer("where", torch.stack([x.flatten(), y.flatten()], 1), persistent=False)
        flat = channels // 8
        self.squeeze = nn.Conv2d(channels, flat, 1)
        self.width = 3 * points + flat * rows * columns

    def adopt(self, tokenizer: Tokenizer) -> None:
        """Take over the vectors of the tokenizer's codes."""
        self.vectors.adopt(tokenizer)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, N) codes or (B, P, D) -> (B, width)."""
        rows, columns = self.latents.grid
        x = rearrange(self.vectors(latents), "B (h w) D -> B D h w", h=rows, w=columns)
        x = nn.functional.silu(self.look(x) + self.place)
        x = x + nn.functional.silu(self.mix(x))
        share = torch.softmax(self.maps(x).flatten(2).float(), dim=-1)
        places = (share @ self.where).flatten(1)
        found = (share * self.values(x).flatten(2)).sum(-1)
        return torch.cat([places, found, self.squeeze(x).flatten(1)], dim=-1)


def mlp(width: int, hidden: int, out: int, layers: int = 2) -> nn.Sequential:
    """Hidden layers, each with a norm; the last layer starts small."""
    last = nn.Linear(hidden, out)
    nn.init.normal_(last.weight, std=0.01)
    nn.init.zeros_(last.bias)
    parts: list[nn.Module] = []
    for given in [width, *[hidden] * (layers - 1)]:
        parts += [nn.Linear(given, hidden), RmsNorm(hidden), nn.SiLU()]
    return nn.Sequential(*parts, last)


class PolicyController(nn.Module):
    """State to action: a mixture of normals around tanh means, or a choice of codes, or of each of
    the factors that they are made of."""

    def __init__(self, config: PolicyConfig, latents: Latents, actions: ActionSpec) -> None:
        super().__init__()
        self.config, self.actions = config, actions
        self.glance = make_glance(config, latents)
        outputs = sum(actions.factor_sizes) or actions.size
        if actions.kind == "continuous":
            outputs = config.components * (1 + 2 * actions.size)
        self.head = nn.Sequential(
            nn.Dropout(config.dropout), mlp(self.glance.width, config.hidden, outputs)
        )

    def adopt(self, tokenizer: Tokenizer) -> None:
        self.glance.adopt(tokenizer)

    def distribution(self, latents: Tensor) -> ActionMixture | Categorical | Choices:
        """Latents of B states -> a distribution over normalised actions, (B, A), or codes, (B,)."""
        out = self.head(self.glance(latents)).float()
        if self.actions.factors:
            return Choices(out, self.actions)
        if self.actions.kind == "discrete":
            return Categorical(logits=out, validate_args=False)
        out = rearrange(out, "B (M K) -> B M K", M=self.config.components)
        mean, spread = out[..., 1:].chunk(2, dim=-1)
        # apart from the start, or all components would learn the same
        apart = torch.linspace(-0.7, 0.7, self.config.components, device=out.device)
        mean = torch.tanh(mean + apart[:, None])
        low, high = self.config.low_spread, self.config.high_spread
        return ActionMixture(out[..., 0], mean, low + (high - low) * torch.sigmoid(spread - 1))

    def act(self, state: State, sample: bool = True) -> Tensor:
        """Draw an action, or give the likeliest, in the environment's units: (B, A) or (B,).

        Drawn, as it was trained to act: the likeliest alone comes to rest where ways part.
        """
        chosen = self.distribution(state.latents)
        action = chosen.sample() if sample else chosen.mode
        if self.actions.kind == "continuous":
            action = action.clamp(-1, 1)
        return self.actions.denormalize(action)

    def loss(self, latents: Tensor, actions: Tensor) -> dict[str, Tensor]:
        """Behaviour cloning: latents (B, N), normalised actions (B, A), or codes (B,)."""
        chosen = self.distribution(latents)
        losses = {"cloning": -chosen.log_prob(actions).mean()}
        if self.actions.kind == "continuous":
            far = (chosen.mode - actions).square().sum(-1).sqrt()
            losses["distance"] = far.mean().detach()
        else:
            right = (chosen.mode == actions).float()
            losses["agreement"] = right.mean()
        return losses
