"""The motion of an image's content, read from two images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from data.toy import ToyPushT
from pipeline.inference.image_motion import image_motion


def toy(x: float, y: float, size: int = 64) -> torch.Tensor:
    """The toy world with its disc at a place, of 512: (3, H, W)."""
    frame = ToyPushT(np.array([x, y, 300.0, 350.0, 0.0])).render(size)
    return torch.from_numpy(frame).permute(2, 0, 1)


@pytest.mark.parametrize("size", [32, 64, 96])
def test_a_disc_that_moves_is_followed_in_its_direction(size: int):
    angles = [2 * math.pi * i / 12 for i in range(12)]
    before = torch.stack([toy(150, 120, size)] * 12)
    after = torch.stack([toy(150 + 24 * math.cos(a), 120 + 24 * math.sin(a), size) for a in angles])
    found = image_motion(before, after)
    true = torch.tensor([[math.cos(a), math.sin(a)] for a in angles])
    assert torch.nn.functional.cosine_similarity(found, true).min() > 0.9
    assert (found.norm(dim=1) * 512 / 24 > 0.4).all() and (found.norm(dim=1) * 512 / 24 < 2).all()


def test_an_image_that_is_shifted_as_a_whole_moved_as_far():
    wall = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 16, 24), np.uint8))
    wall = torch.nn.functional.interpolate(wall[None].float(), scale_factor=4, mode="bicubic")
    wall = wall.clamp(0, 255).byte()
    found = image_motion(wall[..., 6:70], wall[..., 3:67])[0]
    assert abs(float(found[0]) - 3 / 64) < 0.01 and abs(float(found[1])) < 0.01


def test_nothing_moves_where_nothing_changes():
    frame = toy(150, 120)[None]
    assert image_motion(frame, frame).abs().max() == 0
