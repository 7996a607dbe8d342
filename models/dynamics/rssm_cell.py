"""The recurrent state-space model's sequence model, prior and posterior (Hafner et al.,
arXiv:1811.04551; in the form of DreamerV3, arXiv:2301.04104, section 3).

Letters: B rows, T frames, E embedding width, H width of the recurrent state h, G groups of C
classes of the stochastic state z, S = G C, U hidden units.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from data.actions import ActionSpec
from models.dynamics.rssm_scan import Weights, scan
from models.layers.block_gru import BlockGru
from models.layers.categorical_groups import (
    logits_of,
    sample,
    straight_through,
    unimix,
    unimix_probs,
)
from models.layers.embeddings import ActionEmbedding
from models.layers.transformer import RmsNorm

ChoiceOfZ = Literal["sampled", "likeliest", "expected"]


class Posteriors(NamedTuple):
    """What a sequence of frames gives."""

    features: Tensor  # (B, T, H + S): h and z
    posterior: Tensor  # (B, T, G, C) probabilities
    prior: Tensor  # (B, T, G, C) probabilities


class Dense(nn.Module):
    """A linear layer, a norm and SiLU."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(in_dim, out_dim), RmsNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return silu(self.norm(self.linear(x)))


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
        chooses: ChoiceOfZ = "sampled",
        absolute: bool = False,
        residual: bool = False,
        action_blocks: nn.Module | None = None,
    ) -> None:
        """chooses: z of a frame in training, given the posterior.
        absolute: the posterior reads the frame alone, without h.
        residual: the prior is a change of the z before; at first none.
        action_blocks: embeds what comes as actions, where these are blocks of them."""
        super().__init__()
        self.deter_dim, self.groups, self.chooses = deter_dim, (num_groups, num_classes), chooses
        stoch_dim = num_groups * num_classes
        self.action_emb = nn.Sequential(
            action_blocks or ActionEmbedding(actions, hidden_dim), RmsNorm(hidden_dim), nn.SiLU()
        )
        self.deter_in = Dense(deter_dim, hidden_dim)
        self.stoch_in = Dense(stoch_dim, hidden_dim)
        self.gru = BlockGru(deter_dim, 3 * hidden_dim, num_blocks)
        self.prior_head = nn.Sequential(
            Dense(deter_dim, hidden_dim), Dense(hidden_dim, hidden_dim),
            nn.Linear(hidden_dim, stoch_dim),
        )  # fmt: skip
        self.residual = residual
        if residual:
            for weight in self.prior_head[2].parameters():
                nn.init.zeros_(weight)
        self.deter_proj = None if absolute else nn.Linear(deter_dim, hidden_dim)
        self.embed_proj = nn.Linear(embed_dim, hidden_dim, bias=absolute)
        self.posterior_norm = RmsNorm(hidden_dim)
        self.posterior_out = nn.Linear(hidden_dim, stoch_dim)

    def forward(
        self, embeds: Tensor, actions: Tensor, is_first: Tensor | None = None
    ) -> Posteriors:
        """Follow real frames.  Of a likeliest z the posterior is then certain.

        embeds: (B, T, E).  actions: (B, T, A) or (B, T) codes; actions[t] leads to frame t + 1, and
        the last is not read.  is_first: (B, T) bool, frames that begin an episode, where the state
        before is forgotten; the first frame always does.
        """
        batch, length = embeds.shape[:2]
        embeds = self.embed_proj(embeds)
        action_embs = self.action_emb(actions[:, : length - 1])
        action_embs = torch.cat([torch.zeros_like(embeds[:, :1]), action_embs], dim=1)
        exponential = self._chances(length, batch, device=embeds.device)
        by_time = embeds.transpose(0, 1), action_embs.transpose(0, 1), exponential
        if is_first is None and self._scans(embeds):
            h, z, posterior = scan(*by_time, self.groups[1], self._scan_weights())
        else:
            h, z, posterior = self.follow(*by_time, is_first)
        if self.chooses == "likeliest":
            posterior = unimix(z.view_as(posterior))
        h, z = h.transpose(0, 1), z.transpose(0, 1)
        before = torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], dim=1)
        if is_first is not None:
            before = before * (~is_first)[..., None]
        features = torch.cat([h, z], dim=-1)
        return Posteriors(features, posterior.transpose(0, 1), self.prior(h, before))

    def infer_first(self, embeds: Tensor) -> Tensor:
        """h and z of frames as if each began an episode: (..., E) -> (..., H + S)."""
        h = self.first(1, embeds).expand(*embeds.shape[:-1], -1)
        probs = self._posterior(h, self.embed_proj(embeds))
        z = self._choose(probs, self._chances(*embeds.shape[:-1], device=embeds.device))
        return torch.cat([h, z.flatten(-2)], dim=-1)

    def follow(
        self,
        embeds: Tensor,
        action_embs: Tensor,
        exponential: Tensor | None,
        is_first: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Follow frames one by one, as `scan` does for frames of one episode."""
        h, z = self.zeros(embeds.shape[1], embeds)
        keep = None if is_first is None else (~is_first).to(h.dtype).t()[..., None]
        hs, zs, posteriors = [], [], []
        for t, action_emb in enumerate(action_embs):
            if keep is not None:
                h, z, action_emb = h * keep[t], z * keep[t], action_emb * keep[t]
            h = self._advance(h, z, action_emb)
            probs = self._posterior(h, embeds[t])
            z = self._choose(probs, None if exponential is None else exponential[t]).flatten(1)
            hs.append(h)
            zs.append(z)
            posteriors.append(probs)
        return torch.stack(hs), torch.stack(zs), torch.stack(posteriors)

    def _chances(self, *shape: int, device: torch.device) -> Tensor | None:
        """Exponential random numbers (*shape, G, C) that choose z; None where it is expected."""
        if self.chooses == "expected":
            return None
        numbers = torch.ones(*shape, *self.groups, device=device)  # the likeliest classes
        return numbers.exponential_().clamp_(min=1e-30) if self.chooses == "sampled" else numbers

    def _choose(self, probs: Tensor, exponential: Tensor | None) -> Tensor:
        return probs if exponential is None else sample(probs, exponential)

    def _scans(self, x: Tensor) -> bool:
        """A GPU has a kernel for the gates, and a compiler writes gradients of its own."""
        return not (x.is_cuda or torch.compiler.is_compiling())

    def _scan_weights(self) -> Weights:
        deter, stoch, gru, proj = self.deter_in, self.stoch_in, self.gru, self.deter_proj
        weight, bias = deter.linear.weight, deter.linear.bias
        return Weights(
            deter_weight=torch.cat(
                [weight, torch.zeros_like(weight) if proj is None else proj.weight]
            ),
            deter_bias=torch.cat([bias, torch.zeros_like(bias) if proj is None else proj.bias]),
            deter_norm=deter.norm.weight,
            stoch_weight=stoch.linear.weight,
            stoch_bias=stoch.linear.bias,
            stoch_norm=stoch.norm.weight,
            input_weight=gru.input_layer.weight,
            input_bias=gru.input_layer.bias,
            state_weight=gru.state_layer.weight,
            gru_norm=gru.norm.weight,
            gate_weight=gru.gates.weight,
            gate_bias=gru.gate_bias,
            posterior_norm=self.posterior_norm.weight,
            out_weight=self.posterior_out.weight,
            out_bias=self.posterior_out.bias,
        )

    def zeros(self, rows: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The state before the first frame, (B, H) and (B, S)."""
        dims = self.deter_dim, self.groups[0] * self.groups[1]
        h, z = (torch.zeros(rows, dim, device=like.device) for dim in dims)
        return h, z

    def first(self, rows: int, like: Tensor) -> Tensor:
        """h at a first frame, (B, H), to which no action has led."""
        h, z = self.zeros(rows, like)
        return self._advance(h, z, h.new_zeros(rows, self.embed_proj.out_features))

    def advance(self, h: Tensor, z: Tensor, action: Tensor) -> Tensor:
        """h (B, H), z (B, S), normalized action (B, A) or code (B,) -> the next h, (B, H)."""
        return self._advance(h, z, self.action_emb(action))

    def prior(self, h: Tensor, before: Tensor) -> Tensor:
        """h (..., H), z of the step before (..., S) -> probabilities of z before its frame is seen,
        (..., G, C)."""
        logits = self.prior_head(h).unflatten(-1, self.groups)
        if self.residual:
            logits = logits + logits_of(before.unflatten(-1, self.groups))
        return unimix_probs(logits)

    def posterior(self, h: Tensor, embed: Tensor) -> Tensor:
        """h (B, H), embedding of the frame (B, E) -> probabilities of z, (B, G, C)."""
        probs = self._posterior(h, self.embed_proj(embed))
        return straight_through(probs, probs.argmax(-1)) if self.chooses == "likeliest" else probs

    def _advance(self, h: Tensor, z: Tensor, action_emb: Tensor) -> Tensor:
        x = torch.cat([self.deter_in(h), self.stoch_in(z), action_emb], dim=-1)
        return self.gru(x, h)

    def _posterior(self, h: Tensor, projected: Tensor) -> Tensor:
        own = projected if self.deter_proj is None else self.deter_proj(h) + projected
        x = silu(self.posterior_norm(own))
        return unimix_probs(self.posterior_out(x).unflatten(-1, self.groups))
