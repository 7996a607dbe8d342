"""What a tokenizer of codes loses of a frame, kept where the frame does not change.

Letters: B worlds, T frames, P patches of h x w, each of p x q pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

from einops import reduce, repeat
from torch import Tensor

SHRINKAGE = 0.3  # weight of the whole frame in what is measured of one patch


@dataclass
class FrameResidual:
    """The last real frames, from which a World keeps what codes cannot represent (skip connections
    from the last true frame: Denton & Fergus, arXiv:1802.07687)."""

    frames: Tensor  # (B, T, 3, H, W) uint8
    latents: Tensor  # (B, T, N) of these frames
    unchanged: Tensor  # (B, P), share of a patch's codes unchanged since then
    residual: Tensor | None = None  # (B, 3, H, W) float, once it was decoded

    def select(self, index: Tensor) -> FrameResidual:
        residual = None if self.residual is None else self.residual[index]
        return FrameResidual(
            self.frames[index], self.latents[index], self.unchanged[index], residual
        )


def persistent_residual(
    frames: Tensor, reconstruction: Tensor, grid: tuple[int, int], patch: tuple[int, int]
) -> Tensor:
    """Give what the tokenizer loses of the last of T real frames and of the next one, too.

    Noise is lost as edges are, but it does not persist.  Of what was lost of each frame, the share
    that was missing from the one after it is found patch by patch, by least squares shrunk towards
    that of the whole frame.  Two (B, T, 3, H, W) -> (B, 3, H, W).
    """
    residual = frames - reconstruction
    if frames.shape[1] == 1:
        return residual[:, 0]
    before, after = residual[:, :-1], frames[:, 1:] - reconstruction[:, :-1]
    sums = (_patch_sums(x, grid, patch) for x in (before * after, before.square()))
    covariance, variance = (x + SHRINKAGE * x.mean(1, keepdim=True) for x in sums)
    gain = (covariance / variance.clamp(min=1e-6)).clamp(0, 1)
    return residual[:, -1] * expand_patches(gain, grid, patch)


def expand_patches(values: Tensor, grid: tuple[int, int], patch: tuple[int, int]) -> Tensor:
    """(B, P) -> (B, 1, H, W), each patch over its pixels."""
    return repeat(values, "B (h w) -> B 1 (h p) (w q)", h=grid[0], p=patch[0], q=patch[1])


def _patch_sums(pixels: Tensor, grid: tuple[int, int], patch: tuple[int, int]) -> Tensor:
    """(B, T, 3, H, W) -> (B, P)."""
    return reduce(pixels, "B T c (h p) (w q) -> B (h w)", "sum", h=grid[0], p=patch[0], q=patch[1])
