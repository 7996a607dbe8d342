"""Image metrics, and how much of an image or of its codes changes in a step.

Letters: B clips, T frames, N codes of a frame, H and W pixels.

A curve is the PSNR of the mean squared error over its clips (`pooled_psnr`), not the mean of PSNRs:
a copy of one still scene is infinitely good, and so would be the mean.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from models.layers.precision import to_float64

WINDOW_SIZE, SIGMA = 11, 1.5  # SSIM's Gaussian window, Wang et al. 2004
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2  # its constants for 8-bit images
MAX_PSNR = 60.0  # dB, the limit of a frame in a mean of per-frame PSNRs
PART = 256  # frames at once
CPU_PART = 32  # whose windows stay in a CPU's cache: half the time of 256
MIN_MSE = 1e-10  # lowest mean squared error of a curve: 100 dB stands for equal images


def mse(truth: Tensor, predicted: Tensor) -> Tensor:
    """Compute each frame's squared error, pixels 0 to 1: two (..., 3, H, W) uint8 -> (...)."""
    error = (truth.float() - predicted.float()) / 255
    return error.square().flatten(-3).mean(-1)


def psnr(truth: Tensor, predicted: Tensor) -> Tensor:
    """Compute each frame's peak signal-to-noise ratio in dB; infinite where frames are equal."""
    return -10 * torch.log10(mse(truth, predicted))


def pooled_psnr(errors: Tensor) -> float:
    """Compute the PSNR in dB of the mean of squared errors; 100 dB where all are equal."""
    return float(-10 * torch.log10(to_float64(errors).mean().clamp(min=MIN_MSE)))


def capped_psnr(errors: Tensor) -> float:
    """Average the frames' PSNRs in dB, each at most MAX_PSNR."""
    return float((-10 * torch.log10(to_float64(errors))).clamp(max=MAX_PSNR).mean())


def ssim(truth: Tensor, predicted: Tensor) -> Tensor:
    """Compute each frame's SSIM, mean of channels: two (..., 3, H, W) uint8 -> (...).

    Wang et al. 2004: a Gaussian window of 11 x 11 pixels, sigma 1.5, only inside the image.
    """
    batch_shape = truth.shape[:-3]
    a = rearrange(truth.float(), "... C H W -> (...) C H W")
    b = rearrange(predicted.float(), "... C H W -> (...) C H W")
    with torch.autocast(truth.device.type, enabled=False):  # bf16 is too coarse for variances
        part = CPU_PART if a.is_cpu else PART
        scores = [_ssim(x, y) for x, y in zip(a.split(part), b.split(part), strict=True)]
    return torch.cat(scores).reshape(batch_shape)


def _ssim(a: Tensor, b: Tensor) -> Tensor:
    """(B, C, H, W) floats -> (B,)"""
    moments = torch.cat([a, b, a * a, b * b, a * b], dim=1)
    mean_a, mean_b, square_a, square_b, product = _blur(moments).chunk(5, dim=1)
    variance_a, variance_b = square_a - mean_a**2, square_b - mean_b**2
    covariance = product - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    contrast_structure = (2 * covariance + C2) / (variance_a + variance_b + C2)
    return (luminance * contrast_structure).flatten(1).mean(1)


def _blur(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, H - size + 1, W - size + 1), as products with banded matrices: faster
    on a CPU than convolutions of one channel each."""
    size = min(WINDOW_SIZE, x.shape[-2], x.shape[-1])
    offsets = torch.arange(size, device=x.device, dtype=x.dtype) - (size - 1) / 2
    window = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    window = window / window.sum()
    return _band_matrix(window, x.shape[-2]).T @ x @ _band_matrix(window, x.shape[-1])


def _band_matrix(window: Tensor, length: int) -> Tensor:
    """Build (length, length - size + 1), whose columns hold the window, each a row lower."""
    size, num_positions = len(window), length - len(window) + 1
    rows = torch.arange(num_positions, device=window.device) + torch.arange(
        size, device=window.device
    ).unsqueeze(1)
    band = window.new_zeros(length, num_positions)
    return band.scatter_(0, rows, window[:, None].expand(size, num_positions))


def code_flip_rate(codes: Tensor) -> float:
    """Compute the share of codes that differ from the frame before: (B, T, N) integers."""
    return float((codes[:, 1:] != codes[:, :-1]).float().mean())


def patch_change_rate(frames: Tensor, grid: tuple[int, int], threshold: int = 8) -> float:
    """Compute the share of patches in which a pixel changes by over `threshold` of 255 in a step.

    frames: (B, T, 3, H, W) uint8; grid: rows and columns of patches.  The threshold is above the
    rounding and resampling noise of a dataset and below any visible edge.
    """
    change = (frames[:, 1:].short() - frames[:, :-1].short()).abs()
    rows, columns = grid
    patches = rearrange(change, "B T C (R h) (S w) -> B T R S (C h w)", R=rows, S=columns)
    return float((patches.amax(-1) > threshold).float().mean())
