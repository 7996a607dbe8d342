"""What callers may rely on when they hold a tokenizer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True)
class Latents:
    """What a tokenizer makes of one frame."""

    kind: Literal["discrete", "continuous"]
    grid: tuple[int, int]
    """Rows and columns of latents in a frame."""
    width: int
    """Numbers in one latent vector (of a code: in its codebook vector)."""
    codes: int = 0
    """Size of the codebook; 0 where latents are continuous."""

    @property
    def per_frame(self) -> int:
        return self.grid[0] * self.grid[1]

    def as_dict(self) -> dict[str, Any]:
        """Give plain values for checkpoints."""
        return asdict(self) | {"grid": list(self.grid)}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Latents:
        plain: dict[str, Any] = values | {"grid": tuple(values["grid"])}
        return Latents(**plain)


@runtime_checkable
class Tokenizer(Protocol):
    """Frames to latents and back. B frames, N latents a frame, D numbers a latent vector."""

    latents: Latents
    image_size: tuple[int, int]

    def encode(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, N) int64 codes, or (B, N, D) float."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """(B, N) codes or (B, N, D) -> (B, 3, H, W) uint8."""
        ...

    def vectors(self, latents: Tensor) -> Tensor:
        """(..., N) codes or (..., N, D) -> (..., N, D) float."""
        ...

    def loss(self, frames: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) uint8 -> named terms; their sum is minimised."""
        ...
