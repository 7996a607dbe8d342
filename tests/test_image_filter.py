"""Filters of images by matrices: what a convolution gives, each image by its own."""

from __future__ import annotations

import torch
from torch.nn.functional import conv2d, pad

from models.layers.image_filter import filter_images, gaussian


def test_rows_and_columns_are_convolved_and_the_border_continues():
    torch.manual_seed(0)
    images, sigma = torch.rand(3, 2, 12, 9), torch.tensor([0.0, 0.7, 2.0])
    filtered = filter_images(images, gaussian(sigma, 4))
    assert torch.allclose(filtered[0], images[0], atol=1e-6)  # nothing is blurred
    for image, weights, found in zip(images, gaussian(sigma, 4), filtered, strict=True):
        padded = pad(image[:, None], [4] * 4, mode="replicate")
        expected = conv2d(conv2d(padded, weights[None, None, None]), weights[None, None, :, None])
        assert torch.allclose(found, expected[:, 0], atol=1e-5)


def test_weights_are_a_normal_distribution():
    (weights,) = gaussian(torch.tensor([1.0]), 2)
    assert torch.allclose(weights.sum(), torch.tensor(1.0))
    assert torch.allclose(weights / weights[2], torch.tensor([4.0, 1, 0, 1, 4]).mul(-0.5).exp())
