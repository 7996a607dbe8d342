"""Variance, invariance and covariance, each by hand where the others are nothing."""

from __future__ import annotations

import pytest
import torch

from models.layers.vicreg import COVARIANCE_WEIGHT, EPSILON, vicreg

# four images, three numbers that vary by 1 and without each other
APART = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
VARIANCE = 4 / 3


def test_views_alike_and_apart_cost_nothing():
    assert float(vicreg(APART, APART, 1.0)) == pytest.approx(0, abs=1e-6)


def test_two_views_are_to_be_alike():
    moved = APART + torch.tensor([0.0, 0.3, 0])
    assert float(vicreg(APART, moved, 1.0)) == pytest.approx(0.09 / 3, abs=1e-6)


def test_images_are_to_be_apart():
    same = torch.ones(4, 3)
    assert float(vicreg(same, same, 0.5)) == pytest.approx(2 * (0.5 - EPSILON**0.5), abs=1e-6)
    small = 0.1 * APART
    std = (0.01 * VARIANCE + EPSILON) ** 0.5
    assert float(vicreg(small, small, 0.5)) == pytest.approx(2 * (0.5 - std), abs=1e-6)


def test_numbers_are_to_differ_from_each_other():
    twice = APART[:, [0, 0, 1]]
    expected = 2 * COVARIANCE_WEIGHT * 2 * VARIANCE**2 / 3
    assert float(vicreg(twice, twice, 1.0)) == pytest.approx(expected, abs=1e-6)


def test_its_gradient_moves_images_apart_and_views_together():
    x = torch.tensor([[0.01], [-0.01]], requires_grad=True)
    y = x.detach() + 0.1
    vicreg(x, y, 1.0).backward()
    assert x.grad is not None and x.grad[0] < x.grad[1]  # a step down moves the first up
    (alone,) = torch.autograd.grad(vicreg(x + 5, y, 0.0), x)
    assert bool((alone > 0).all())


def test_one_image_is_refused():
    with pytest.raises(ValueError, match="--train.batch-size to 2 or more"):
        vicreg(APART[:1], APART[:1], 0.5)
