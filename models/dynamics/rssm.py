"""DreamerV3's world model (arXiv:2301.04104): an RSSM with an image encoder and decoder, trained
together from frames.

Letters: B clips, T frames, P patches, V numbers of a patch, E embedding width, F state width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from einops import reduce
from torch import Tensor

from data.actions import ActionSpec
from data.batch import Batch
from data.ranges import Range
from models.dynamics.rssm_base import RssmBase, RssmBaseConfig
from models.layers.first_batch import FirstBatch
from models.layers.patch_image import (
    PatchDecoder,
    PatchEncoder,
    check_patches,
    to_frames,
    to_patches,
)
from models.method import Losses
from models.tokenizers.tokenizer import LatentSpec, Tokenizer

CHANGED = 0.05
"""Of a number from 0 to 1: less is no motion."""


@dataclass(frozen=True)
class RssmConfig(RssmBaseConfig):
    patch_size: Annotated[int, Range(1, 256)] = 8
    """Side of the patches of encoder and decoder, in pixels; divides both sides of a frame."""
    channels: Annotated[int, Range(1, 2**12)] = 32
    """Numbers of a patch between the dense layer of encoder and decoder and their patch layers."""
    changed_weight: Annotated[float, Range(1, 10**4)] = 1.0
    """Weight of the squared error where a number of a pixel differs from the frame before by more
    than a twentieth of its range; 1 elsewhere."""

    ADDED: ClassVar[frozenset[str]] = RssmBaseConfig.ADDED | {"changed_weight"}


class Rssm(RssmBase, Tokenizer):
    """Encoder, RSSM and decoder in one: tokenizer and dynamics of a world.

    It draws a frame as what differs from the mean frame of the first batch: backgrounds stay.
    """

    needs = frozenset({"frames", "actions", "rewards", "continues", "is_first"})
    encoder_parts = ("encoder",)
    decoder_parts = ("decoder", "background")
    config: RssmConfig

    def __init__(
        self, config: RssmConfig, image_size: tuple[int, int], actions: ActionSpec
    ) -> None:
        super().__init__(config, actions)
        check_patches(image_size, config.patch_size)
        if config.embed_dim == self.spec.dim:
            raise ValueError(
                f"--model.embed-dim {config.embed_dim} is the width of the state, from which it "
                f"must differ; give another"
            )
        self.config, self.image_size = config, image_size
        self.latents = LatentSpec("continuous", (1, 1), config.embed_dim)
        height, width = (side // config.patch_size for side in image_size)
        patches = height * width, 3 * config.patch_size**2
        self.encoder = PatchEncoder(*patches, config.channels, config.embed_dim)
        self.decoder = PatchDecoder(*patches, config.channels, self.spec.dim)
        self.background = FirstBatch(patches)

    @property
    def capturable(self) -> bool:
        return self.background.known

    def after_step(self) -> None:
        self.background.update()

    def encode(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, 1, E)."""
        return self._encode(self._patches(frames) - self.background.mean)[:, None]

    def decode(self, latents: Tensor) -> Tensor:
        """Of a state, (B, 1, F); of an embedding alone, (B, 1, E), that of a first frame."""
        if latents.shape[-1] == self.config.embed_dim:
            latents = self.start(latents[:, None], self.actions.empty(0, 0)).latents
        patches = self.decoder(latents[:, 0]).float() + self.background.mean
        pixels = (patches.clamp(0, 1) * 255).round().to(torch.uint8)
        return to_frames(pixels, self.image_size, self.config.patch_size)

    def embed(self, latents: Tensor) -> Tensor:
        return latents.squeeze(-2)

    def loss(self, batch: Batch) -> Losses:
        """On clips of frames (B, T, 3, H, W) uint8, the actions between them, and rewards and
        continues where the data has them."""
        batch = batch if self.blocks is None else self.blocks.spaced(batch)
        (frames,) = batch.require("frames")
        patches = self._patches(frames.flatten(0, 1))
        if self.training:
            self.background.collect(patches)
        patches = patches - self.background.mean
        embeds, patches = (
            x.unflatten(0, frames.shape[:2]) for x in (self._encode(patches), patches)
        )
        return self.sequence_loss(embeds, patches, batch, self._weight(patches))

    def reconstruction_loss(
        self, features: Tensor, target: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """Squared error, summed over the numbers of a frame; target: (B, T, P, V), less the
        background; errors are multiplied by `weight`, (B, T, P, V), before they are squared."""
        error = self.decoder(features.flatten(0, 1)).unflatten(0, target.shape[:2]) - target
        if weight is not None:
            error = error * weight
        # a norm and its gradient pass over the pixels half as often as a mean of squares
        return torch.linalg.vector_norm(error).square() / target[..., 0, 0].numel()

    def state_vectors(self, latents: Tensor) -> Tensor:
        """The frame that a state shows, in cells of half a patch: h also holds the past, in which
        states differ whose frames do not."""
        patches = self.decoder(latents.flatten(0, -2))
        half = math.gcd(self.config.patch_size, 2)
        cells = reduce(
            patches, "n p (c hy y hx x) -> n (p c hy hx)", "mean", c=3, hy=half, hx=half,
            y=self.config.patch_size // half,
        )  # fmt: skip
        return cells.unflatten(0, latents.shape[:-1])

    def _encode(self, patches: Tensor) -> Tensor:
        """The difference from the background, (N, P, V), in standard deviations -> (N, E)."""
        return self.encoder(patches / self.background.scale.square().mean().sqrt())

    def _weight(self, patches: Tensor) -> Tensor | None:
        """The root of `changed_weight` where a frame of (B, T, P, V) differs from the one before,
        and 1 elsewhere; the first frame is compared with the second."""
        if self.config.changed_weight == 1 or patches.shape[1] == 1:
            return None
        changed = (patches[:, 1:] - patches[:, :-1]).abs_() > CHANGED
        changed = torch.cat([changed[:, :1], changed], dim=1)
        return 1 + (math.sqrt(self.config.changed_weight) - 1) * changed

    def _patches(self, frames: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> (N, P, V) float, from 0 to 1."""
        # in 8 bits while they are moved: a quarter of the memory
        return to_patches(frames, self.config.patch_size) / 255
