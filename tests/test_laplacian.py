"""The perceptual distance."""

from dataclasses import replace

import torch

from data.batch import Batch
from models.layers.laplacian import laplacian_l1
from models.tokenizers.vqvae import VqVae, VqVaeConfig


def test_the_distance_of_equal_images_is_zero_and_it_is_symmetric():
    torch.manual_seed(0)
    a, b = torch.rand(2, 2, 3, 24, 20) * 2 - 1
    assert laplacian_l1(a, a) == 0
    assert laplacian_l1(a, b) == laplacian_l1(b, a) > 0


def test_a_blurred_edge_is_farther_than_a_flat_error_of_the_same_size():
    edge = torch.where(torch.arange(32) < 16, -0.5, 0.5).expand(1, 3, 32, 32)
    blurred = torch.nn.functional.avg_pool2d(edge, (1, 9), 1, (0, 4), count_include_pad=False)
    flat = edge + (blurred - edge).square().mean().sqrt()

    def fine(other: torch.Tensor) -> torch.Tensor:
        return laplacian_l1(edge, other) - (edge - other).mean().abs()

    assert fine(blurred) > 10 * fine(flat).clamp(min=1e-6)


def test_it_is_a_loss_of_the_tokenizer_if_its_weight_is_not_zero():
    frames = torch.randint(0, 256, (2, 1, 3, 32, 32), dtype=torch.uint8)
    small = VqVaeConfig((32, 32), channels=16, codebook_size=8, num_res_blocks=1)
    with_it = VqVae(replace(small, laplacian_weight=0.5)).loss(Batch(frames=frames))
    assert with_it["laplacian"].requires_grad and with_it["laplacian"] > 0
    assert "laplacian" not in VqVae(small).loss(Batch(frames=frames))
