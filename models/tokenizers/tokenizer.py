"""What callers may rely on when they hold a tokenizer."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True)
class LatentSpec:
    """What a tokenizer makes of one frame."""

    kind: Literal["discrete", "continuous"]
    grid: tuple[int, int]
    """Rows and columns of latents in a frame."""
    dim: int
    """Numbers that stand for one patch, all its codes together."""
    codebook_size: int = 0
    """Size of a codebook; 0 where latents are continuous."""
    num_codebooks: int = 1
    """Codes of one patch, each from a codebook of its own."""
    is_xy: bool = field(default=False, compare=False)
    """The numbers are x and y of places in the frame, from -1 to 1 (runs of before do not say)."""

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def tokens_per_frame(self) -> int:
        """Latents of a frame: its codes, patch by patch, or its vectors."""
        return self.num_patches * self.num_codebooks

    def as_dict(self) -> dict[str, Any]:
        """Give plain values for checkpoints."""
        return asdict(self) | {"grid": list(self.grid)}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> LatentSpec:
        plain: dict[str, Any] = values | {"grid": tuple(values["grid"])}
        return LatentSpec(**plain)


@runtime_checkable
class Tokenizer(Protocol):
    """Frames to latents and back.

    B frames, P patches, G codebooks of K codes, N latents a frame (P, or P G codes), D width.
    """

    latents: LatentSpec
    image_size: tuple[int, int]

    @property
    def clip_length(self) -> int:
        """Frames in a row that its loss looks at: 1 where each is learnt by itself."""
        ...

    @property
    def codebooks(self) -> Tensor:
        """(G, K, D / G) float, the vectors of the codes; empty where latents are continuous."""
        ...

    def encode(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, N) int64 codes, or (B, P, D) float."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """(B, N) codes or (B, P, D) -> (B, 3, H, W) uint8."""
        ...

    def loss(self, frames: Tensor, actions: Tensor) -> dict[str, Tensor]:
        """(B, T, 3, H, W) uint8, T = `clip`, and normalised actions (B, T, A), or (B, T) codes ->
        named terms; the sum of those with a gradient is minimised."""
        ...
