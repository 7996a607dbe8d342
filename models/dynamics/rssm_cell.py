"""The recurrent state-space model's sequence model, prior and posterior (Hafner et al.,
arXiv:1811.04551; in the form of DreamerV3, arXiv:2301.04104, section 3).

Letters: B rows, T frames, E embedding width, H width of the recurrent state h, G groups of C
classes of the stochastic state z, S = G C, U hidden units.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from data.actions import ActionSpec
from models.layers.block_gru import BlockGru
from models.layers.categorical_groups import sample, unimix_probs
from models.layers.embeddings import ActionEmbedding
from models.layers.transformer import RmsNorm


class Posteriors(NamedTuple):
    """What a sequence of frames gives."""

    features: Tensor  # (B, T, H + S): h and a sampled z
    posterior: Tensor  # (B, T, G, C) probabilities
    prior: Tensor  # (B, T, G, C) probabilities


class Dense(nn.Sequential):
    """A linear layer, a norm and SiLU."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(nn.Linear(in_dim, out_dim), RmsNorm(out_dim), nn.SiLU())


class RssmCell(nn.Module):
    """From one state (h, z) and an action to the next h, and from there to z."""

    is_fsdp_unit = True

    def __init__(
        self,
        deter_dim: int,
        num_groups: int,
        num_classes: int,
        hidden_dim: int,
        num_blocks: int,
        embed_dim: int,
        actions: ActionSpec,
    ) -> None:
        super().__init__()
        self.deter_dim, self.groups = deter_dim, (num_groups, num_classes)
        stoch_dim = num_groups * num_classes
        self.action_emb = nn.Sequential(
            ActionEmbedding(actions, hidden_dim), RmsNorm(hidden_dim), nn.SiLU()
        )
        self.deter_in = Dense(deter_dim, hidden_dim)
        self.stoch_in = Dense(stoch_dim, hidden_dim)
        self.gru = BlockGru(deter_dim, 3 * hidden_dim, num_blocks)
        self.prior_head = nn.Sequential(
            Dense(deter_dim, hidden_dim), Dense(hidden_dim, hidden_dim),
            nn.Linear(hidden_dim, stoch_dim),
        )  # fmt: skip
        self.deter_proj = nn.Linear(deter_dim, hidden_dim)
        self.embed_proj = nn.Linear(embed_dim, hidden_dim, bias=False)
        self.posterior_norm = RmsNorm(hidden_dim)
        self.posterior_out = nn.Linear(hidden_dim, stoch_dim)

    def forward(
        self, embeds: Tensor, actions: Tensor, is_first: Tensor | None = None
    ) -> Posteriors:
        """Follow real frames with sampled z.

        embeds: (B, T, E).  actions: (B, T, A) or (B, T) codes; actions[t] leads to frame t + 1, and
        the last is not read.  is_first: (B, T) bool, frames that begin an episode, where the state
        before is forgotten; the first frame always does.
        """
        batch, length = embeds.shape[:2]
        embeds = self.embed_proj(embeds)
        action_embs = self.action_emb(actions[:, : length - 1])
        keep = None if is_first is None else (~is_first).to(embeds.dtype)[..., None]
        shape = (length, batch, *self.groups)
        exponential = torch.empty(shape, device=embeds.device).exponential_().clamp_(min=1e-30)
        h, z = self.zeros(batch, embeds)
        action_emb = torch.zeros_like(embeds[:, 0])
        hs, zs, posteriors = [], [], []
        for t in range(length):
            if t:
                action_emb = action_embs[:, t - 1]
                if keep is not None:
                    h, z, action_emb = h * keep[:, t], z * keep[:, t], action_emb * keep[:, t]
            h = self._advance(h, z, action_emb)
            probs = self._posterior(h, embeds[:, t])
            z = sample(probs, exponential[t]).flatten(1)
            hs.append(h)
            zs.append(z)
            posteriors.append(probs)
        h_all = torch.stack(hs, 1)
        features = torch.cat([h_all, torch.stack(zs, 1)], dim=-1)
        return Posteriors(features, torch.stack(posteriors, 1), self.prior(h_all))

    def zeros(self, rows: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The state before the first frame, (B, H) and (B, S)."""
        groups, classes = self.groups
        make = lambda dim: torch.zeros(rows, dim, device=like.device)  # noqa: E731
        return make(self.deter_dim), make(groups * classes)

    def first(self, rows: int, like: Tensor) -> Tensor:
        """h at a first frame, (B, H), to which no action has led."""
        h, z = self.zeros(rows, like)
        return self._advance(h, z, h.new_zeros(rows, self.embed_proj.out_features))

    def advance(self, h: Tensor, z: Tensor, action: Tensor) -> Tensor:
        """h (B, H), z (B, S), normalized action (B, A) or code (B,) -> the next h, (B, H)."""
        return self._advance(h, z, self.action_emb(action))

    def prior(self, h: Tensor) -> Tensor:
        """h (..., H) -> probabilities of z before its frame is seen, (..., G, C)."""
        return unimix_probs(self.prior_head(h).unflatten(-1, self.groups))

    def posterior(self, h: Tensor, embed: Tensor) -> Tensor:
        """h (B, H), embedding of the frame (B, E) -> probabilities of z, (B, G, C)."""
        return self._posterior(h, self.embed_proj(embed))

    def _advance(self, h: Tensor, z: Tensor, action_emb: Tensor) -> Tensor:
        x = torch.cat([self.deter_in(h), self.stoch_in(z), action_emb], dim=-1)
        return self.gru(x, h)

    def _posterior(self, h: Tensor, projected: Tensor) -> Tensor:
        x = silu(self.posterior_norm(self.deter_proj(h) + projected))
        return unimix_probs(self.posterior_out(x).unflatten(-1, self.groups))
