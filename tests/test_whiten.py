"""Whitened images: nothing is lost, light and color are apart, and what is flat has no detail."""

from __future__ import annotations

import importlib

import pytest
import torch

import models.layers.whiten
from models.layers.whiten import COLOR_GAIN, whiten


def test_gray_images_have_no_color():
    gray = torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(0)).expand(
        -1, 3, -1, -1
    )
    light, *colors = whiten(gray).unbind(1)
    assert light.std() > 1
    assert all(color.abs().max() < 1e-3 for color in colors)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_flat_image_has_its_level_and_no_detail(value):
    light = whiten(torch.full((1, 3, 9, 9), value))[0, 0]
    assert torch.allclose(light, torch.full_like(light, 4 * value - 2), atol=1e-4)


def test_it_is_linear_and_nothing_is_lost():
    images = torch.rand(30, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    rows = (whiten(images) - whiten(torch.zeros(1, 3, 3, 3))).flatten(1)
    assert torch.linalg.matrix_rank(rows) == 27  # as many as the images have numbers
    halves = whiten(images / 2) - whiten(torch.zeros(1, 3, 3, 3))
    assert torch.allclose(2 * halves.flatten(1), rows, atol=1e-3)


def test_hue_and_edges_weigh_more_than_in_the_pixels():
    gray, red = torch.full((1, 3, 9, 9), 0.5), torch.full((1, 3, 9, 9), 0.5)
    red[:, 0] += 0.1
    moved = (whiten(red) - whiten(gray))[0, :, 4, 4]
    assert moved[1:].norm() > COLOR_GAIN * moved[0].abs()
    edge = gray.clone()
    edge[..., 5:] += 0.1
    assert (whiten(edge) - whiten(gray))[0, 0, 4, 5] > 2 * 4 * 0.1


def test_low_precision_does_not_blur_it():
    images = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = whiten(images)
    assert torch.equal(found, whiten(images))


def test_its_constants_are_numbers_where_a_model_is_made_on_the_meta_device():
    """As where a checkpoint is loaded, and this method's modules are imported by that."""
    images = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    expected = whiten(images)
    with torch.device("meta"):
        importlib.reload(models.layers.whiten)
    assert torch.equal(models.layers.whiten.whiten(images), expected)
