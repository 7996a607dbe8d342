"""An RSSM over the latents of a tokenizer: it reads and draws vectors or codes instead of frames.

Letters: B clips, T frames, N latents of a frame, P patches, D latent width, G codebooks of K codes,
E embedding width, F state width, W width of a patch's features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from data.actions import ActionSpec
from data.batch import Batch
from data.ranges import Range
from models.dynamics.dynamics import State
from models.dynamics.rssm_base import RssmBase, RssmBaseConfig
from models.dynamics.rssm_cell import Dense
from models.layers.first_batch import FirstBatch
from models.method import Losses
from models.tokenizers.codes import CodebookEmbedding, HasCodebooks
from models.tokenizers.tokenizer import LatentSpec


@dataclass(frozen=True)
class RssmLatentsConfig(RssmBaseConfig):
    patch_dim: Annotated[int, Range(1, 2**14)] = 32
    """Features of a patch in encoder and decoder, where a frame has several patches."""


class RssmLatents(RssmBase):
    """Its decoder draws a tokenizer's latents, which the tokenizer decodes."""

    needs = frozenset({"latents", "actions", "rewards", "continues", "is_first"})
    config: RssmLatentsConfig

    def __init__(self, config: RssmLatentsConfig, latents: LatentSpec, actions: ActionSpec) -> None:
        super().__init__(config, actions)
        self.config, self.latents = config, latents
        self.vectors = CodebookEmbedding(latents)
        patches, dim = latents.num_patches, latents.dim
        self.latent_scale = FirstBatch((patches, dim))
        self.patch_in = Dense(dim, config.patch_dim) if patches > 1 else nn.Identity()
        embedded = patches * (config.patch_dim if patches > 1 else dim)
        self.encoder = nn.Sequential(
            nn.Flatten(), Dense(embedded, config.hidden_dim),
            Dense(config.hidden_dim, config.embed_dim),
        )  # fmt: skip
        width = config.patch_dim if patches > 1 else config.hidden_dim
        self.decoder = nn.Sequential(
            Dense(self.spec.dim, config.hidden_dim),
            nn.Linear(config.hidden_dim, patches * width), nn.SiLU(),
            nn.Unflatten(-1, (patches, width)),
        )  # fmt: skip
        outputs = latents.num_codebooks * latents.codebook_size or dim
        self.patch_out = nn.Linear(width, outputs)

    @property
    def capturable(self) -> bool:
        return self.latent_scale.known

    def load_codebook(self, source: HasCodebooks) -> None:
        self.vectors.load_codebook(source)

    def after_step(self) -> None:
        self.latent_scale.update()

    def embed(self, latents: Tensor) -> Tensor:
        leading = latents.shape[: 1 if latents.ndim == self._ndim - 1 else 2]
        x = self._standardize(self.vectors(latents)).flatten(0, len(leading) - 1)
        return self.encoder(self.patch_in(x)).unflatten(0, leading)

    def readout(self, state: State) -> Tensor:
        """The likeliest codes, (B, N), or the expected vectors, (B, P, D)."""
        out = self.patch_out(self.decoder(state.latents[:, 0]))
        if self.latents.kind == "discrete":
            return self._logits(out).argmax(-1).flatten(1)
        return out.float() * self.latent_scale.scale + self.latent_scale.mean

    def state_vectors(self, latents: Tensor) -> Tensor:
        """The expected latents of the tokenizer, as vectors."""
        out = self.patch_out(self.decoder(latents.flatten(0, -2)))
        if self.latents.kind == "discrete":
            codebook = self.vectors.codebook.float()
            probs = self._logits(out).float().softmax(-1)
            out = torch.einsum("n p g k, g k d -> n p g d", probs, codebook).flatten(2)
        return out.float().unflatten(0, latents.shape[:-1]).flatten(-2)

    def loss(self, batch: Batch) -> Losses:
        """On clips of latents, (B, T, N) codes or (B, T, P, D), with what else the data has."""
        batch = batch if self.blocks is None else self.blocks.spaced(batch)
        (latents,) = batch.require("latents")
        if self.training:
            self.latent_scale.collect(self.vectors(latents))
        return self.sequence_loss(self.embed(latents), latents, batch)

    def reconstruction_loss(
        self, features: Tensor, target: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """Cross-entropy of codes, or squared error in standard deviations, summed over a frame."""
        assert weight is None
        out = self.patch_out(self.decoder(features.flatten(0, 1)))
        target = target.flatten(0, 1)
        if self.latents.kind == "discrete":
            logits = self._logits(out).float()  # (B T, P, G, K)
            codes = target.view(logits.shape[:-1])
            errors = nn.functional.cross_entropy(logits.movedim(-1, 1), codes, reduction="none")
        else:
            errors = (out.float() - self._standardize(target)).square()
        return errors.flatten(1).sum(1).mean()

    @property
    def _ndim(self) -> int:
        """Axes of a clip's latents."""
        return 3 if self.latents.kind == "discrete" else 4

    def _logits(self, out: Tensor) -> Tensor:
        return out.unflatten(-1, (self.latents.num_codebooks, self.latents.codebook_size))

    def _standardize(self, vectors: Tensor) -> Tensor:
        return (vectors - self.latent_scale.mean) / self.latent_scale.scale
