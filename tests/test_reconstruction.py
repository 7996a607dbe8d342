"""Metrics of the tokenizer by the brightness of the true frames."""

import pytest
import torch
from fake_worlds import CopyWorld
from key_worlds import KeyClips

from evaluation.measures.reconstruction import brightness, by_brightness, measure_tokenizer
from models.tokenizers.tokenizer import LatentSpec


def test_brightness_is_the_mean_of_a_frame():
    frames = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    frames[1] = 255
    frames[2, 0] = 255
    assert brightness(frames).tolist() == pytest.approx([0, 1, 1 / 3])


def test_each_frame_counts_in_the_bin_of_its_brightness():
    bright = torch.tensor([0.0, 0.099, 0.1, 0.299, 0.3, 1.0])
    errors = torch.tensor([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    bins = by_brightness(bright, errors, torch.tensor([0.1, 0.3, 0.4, 0.6, 0.8, 1.0]))
    assert [row["n"] for row in bins.values()] == [2, 2, 2]
    assert [row["psnr"] for row in bins.values()] == pytest.approx([10, 20, 30])
    assert [row["ssim"] for row in bins.values()] == pytest.approx([0.2, 0.5, 0.9])


def test_a_bin_without_frames_is_null():
    bins = by_brightness(torch.tensor([0.5]), torch.tensor([0.01]), torch.tensor([1.0]))
    assert bins["dark"] == bins["dim"] == {"n": 0, "psnr": None, "ssim": None}
    assert bins["light"]["n"] == 1


def test_bins_are_those_of_the_true_frames_and_hold_all_of_them():
    class White(CopyWorld):
        latents = LatentSpec("continuous", (2, 2), 12)

        def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
            return torch.full_like(super().decode_latents(latents), 255)

    metrics = measure_tokenizer(White(), KeyClips(), 8)
    assert metrics["by_brightness"]["dark"]["n"] == metrics["n"] == 8 * 9
    assert metrics["by_brightness"]["dark"]["psnr"] == pytest.approx(metrics["psnr"])
    assert metrics["by_brightness"]["light"]["n"] == 0
