"""Figures of the tokenizer by how bright the true frames are."""

from types import SimpleNamespace

import pytest
import torch
from fake_worlds import Identity
from key_worlds import KeyClips

from evaluation.measures.reconstruction import brightness, by_brightness, measure_tokenizer


def test_brightness_is_the_mean_of_a_frame():
    frames = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    frames[1] = 255
    frames[2, 0] = 255
    assert brightness(frames).tolist() == pytest.approx([0, 1, 1 / 3])


def test_each_frame_counts_in_the_band_of_its_brightness():
    bright = torch.tensor([0.0, 0.099, 0.1, 0.299, 0.3, 1.0])
    errors = torch.tensor([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    bands = by_brightness(bright, errors, torch.tensor([0.1, 0.3, 0.4, 0.6, 0.8, 1.0]))
    assert [band["n"] for band in bands.values()] == [2, 2, 2]
    assert [band["psnr"] for band in bands.values()] == pytest.approx([10, 20, 30])
    assert [band["ssim"] for band in bands.values()] == pytest.approx([0.2, 0.5, 0.9])


def test_a_band_without_frames_is_null():
    bands = by_brightness(torch.tensor([0.5]), torch.tensor([0.01]), torch.tensor([1.0]))
    assert bands["dark"] == bands["dim"] == {"n": 0, "psnr": None, "ssim": None}
    assert bands["light"]["n"] == 1


def test_bands_are_those_of_the_true_frames_and_hold_all_of_them():
    class Blinding(Identity):
        latents = SimpleNamespace(grid=(2, 2), codes=0, codebooks=0)

        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return torch.full_like(super().decode(latents), 255)

    figures = measure_tokenizer(Blinding(), KeyClips(), 8, torch.device("cpu"))
    assert figures["bands"]["dark"]["n"] == figures["n"] == 8 * 9
    assert figures["bands"]["dark"]["psnr"] == pytest.approx(figures["psnr"])
    assert figures["bands"]["light"]["n"] == 0
