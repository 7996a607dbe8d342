"""Image metrics against their definitions."""

import math

import pytest
import torch

from evaluation.measures import metrics
from evaluation.measures.metrics import (
    capped_psnr,
    code_flip_rate,
    mse,
    patch_change_rate,
    pooled_psnr,
    psnr,
    ssim,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator).to(torch.uint8)


def test_equal_frames_have_infinite_psnr_and_ssim_1():
    frames = noise(2, 3, 3, 24, 32)
    assert psnr(frames, frames).shape == (2, 3)
    assert torch.isinf(psnr(frames, frames)).all()
    assert torch.allclose(ssim(frames, frames), torch.ones(2, 3))


def test_an_error_of_one_level_everywhere_is_48_decibels():
    frames = torch.full((1, 3, 16, 16), 100, dtype=torch.uint8)
    assert float(psnr(frames, frames + 1)) == pytest.approx(20 * math.log10(255))


def test_uint8_does_not_wrap_around():
    dark = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    assert float(mse(dark, dark + 255)) == 1
    assert float(mse(dark + 255, dark)) == 1


def test_a_curve_pools_errors_before_the_logarithm():
    errors = torch.tensor([0.0, 0.02])
    assert pooled_psnr(errors) == pytest.approx(20)
    assert capped_psnr(errors) == pytest.approx((60 + 10 * math.log10(50)) / 2)


def test_ssim_agrees_with_its_definition_pixel_by_pixel():
    truth, other = noise(1, 3, 13, 12), noise(1, 3, 13, 12, seed=1)
    offsets = torch.arange(11, dtype=torch.double) - 5
    line = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = line[:, None] * line[None]
    window = window / window.sum()
    scores = []
    for channel in range(3):
        for row in range(3):
            for column in range(2):
                a = truth[0, channel, row : row + 11, column : column + 11].double()
                b = other[0, channel, row : row + 11, column : column + 11].double()
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                var_a = (window * (a - mean_a) ** 2).sum()
                var_b = (window * (b - mean_b) ** 2).sum()
                covariance = (window * (a - mean_a) * (b - mean_b)).sum()
                one, two = (0.01 * 255) ** 2, (0.03 * 255) ** 2
                scores.append(
                    (2 * mean_a * mean_b + one)
                    * (2 * covariance + two)
                    / ((mean_a**2 + mean_b**2 + one) * (var_a + var_b + two))
                )
    assert float(ssim(truth, other)) == pytest.approx(float(torch.stack(scores).mean()), abs=1e-4)


def test_ssim_does_not_depend_on_the_parts_of_a_batch(monkeypatch):
    truth, other = torch.randint(0, 256, (2, 7, 3, 24, 20), dtype=torch.uint8)
    whole = ssim(truth, other)
    monkeypatch.setattr(metrics, "CPU_PART", 3)
    # the order of a sum may depend on how many frames are convolved together
    torch.testing.assert_close(ssim(truth, other), whole, rtol=0, atol=1e-6)


def test_ssim_falls_as_noise_grows():
    frames = noise(1, 3, 32, 32) // 2 + 64
    small = (frames.int() + noise(1, 3, 32, 32, seed=1).int() // 16).to(torch.uint8)
    large = (frames.int() + noise(1, 3, 32, 32, seed=1).int() // 4).to(torch.uint8)
    assert 1 > float(ssim(frames, small)) > float(ssim(frames, large))


def test_ssim_does_not_depend_on_the_precision_around_it():
    frames, other = noise(1, 3, 32, 32), noise(1, 3, 32, 32, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        rough = ssim(frames, other)
    assert torch.equal(rough, ssim(frames, other))


def test_only_codes_that_differ_from_the_frame_before_count():
    codes = torch.tensor([[[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 0, 0]]])
    assert code_flip_rate(codes) == pytest.approx(0.25)


def test_a_patch_changes_when_one_pixel_passes_the_threshold():
    frames = torch.zeros(1, 2, 3, 8, 8, dtype=torch.uint8)
    frames[0, 1, 0, 0, 0] = 9
    frames[0, 1, 2, 7, 7] = 8
    assert patch_change_rate(frames, (2, 2)) == pytest.approx(0.25)
