"""The tokenizer's contract: frames to latents and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from data.batch import Batch
from models.config import from_plain, to_plain
from models.method import Losses, TrainableModule


@dataclass(frozen=True)
class LatentSpec:
    """What stands for one frame."""

    kind: Literal["discrete", "continuous"]
    grid: tuple[int, int]
    """Rows and columns of latents in a frame."""
    dim: int
    """Numbers that stand for one patch, all its codes together."""
    codebook_size: int = 0
    """Codes of a codebook; 0 where latents are continuous."""
    num_codebooks: int = 1
    """Codes of one patch, each from a codebook of its own."""
    is_xy: bool = False
    """The numbers are x and y of points in the frame, from -1 to 1."""

    @property
    def num_patches(self) -> int:  # places of the grid
        return self.grid[0] * self.grid[1]

    @property
    def tokens_per_frame(self) -> int:
        """Latents of a frame: its codes, patch by patch, or its vectors."""
        return self.num_patches * self.num_codebooks

    def as_dict(self) -> dict[str, Any]:
        """Give plain values for checkpoints."""
        return to_plain(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> LatentSpec:
        return from_plain(LatentSpec, values)


class Tokenizer(TrainableModule, ABC):
    """Frames to latents and back.

    Letters: B frames or clips, T frames of a clip, P patches, G codebooks of K codes, N latents a
    frame (P, or P G codes), D width.
    """

    needs: frozenset[str] = frozenset({"frames"})
    """`latents` are those of the dataset's frames, made once before training: for an encoder that
    stays as it is, and has a `latents_key` of its own."""
    latents: LatentSpec
    image_size: tuple[int, int]
    temporal_context: int = 1
    """Frames that the latents of one depend on, itself included: 1 for a frame tokenizer, more
    for one that is causal in time."""
    has_decoder: ClassVar[bool] = True
    encoder_parts: ClassVar[tuple[str, ...]] = ()
    """Attributes that only `encode` reads; by default all but the decoder's."""
    decoder_parts: ClassVar[tuple[str, ...]] = ("decoder",)
    """Attributes that only `decode` reads."""

    def latents_key(self, fingerprint: str) -> str:
        """What a cache of its latents is made again for when it changes: its checkpoint's
        fingerprint, or what alone the latents depend on."""
        return fingerprint

    @property
    def codebooks(self) -> Tensor:
        """(G, K, D / G) float, the vectors of the codes; empty where latents are continuous."""
        return torch.zeros(0)

    @abstractmethod
    def encode(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, N) int64 codes, or (B, P, D) float."""

    def decode(self, latents: Tensor) -> Tensor:
        """(B, N) codes or (B, P, D) -> (B, 3, H, W) uint8."""
        raise ValueError(f"{type(self).__name__} has no decoder, so its latents cannot be drawn")

    def encode_clip(self, frames: Tensor) -> Tensor:
        """(B, T, 3, H, W) uint8 -> (B, T, N) or (B, T, P, D), each frame with those before it."""
        return self.encode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])

    def decode_clip(self, latents: Tensor) -> Tensor:
        """(B, T, N) or (B, T, P, D) -> (B, T, 3, H, W) uint8, each frame with those before it."""
        return self.decode(latents.flatten(0, 1)).unflatten(0, latents.shape[:2])

    @abstractmethod
    def loss(self, batch: Batch) -> Losses:
        """Named terms on clips of `clip_length` frames; the sum of those with a gradient is
        minimized."""
