"""What latents know of a state."""

from __future__ import annotations

import torch

from evaluation.measures.probe import TARGETS, _correlations, _linear, _mlp, probe_targets


def states(count: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.rand(count, 5, generator=random) * torch.tensor([512, 512, 512, 512, 6.28])


def test_a_linear_probe_finds_what_is_linear_and_an_mlp_the_rest() -> None:
    truth = probe_targets(states(3000))
    mean, spread = truth.mean(0), truth.std(0)
    wanted = (truth - mean) / spread
    angle = states(3000)[:, 4]
    # x and y as they are; the angle as itself, which sine and cosine are no linear map of
    latents = torch.cat([wanted[:, :4] @ torch.randn(4, 4), (angle - 3.14)[:, None] / 1.8], 1)
    x, y, asked, answers = latents[:2000], wanted[:2000], latents[2000:], wanted[2000:]
    linear = _correlations(_linear(x, y, asked), answers)
    mlp = _correlations(_mlp(x, y, asked, seed=0), answers)
    assert list(linear) == list(TARGETS)
    assert all(linear[name] > 0.99 for name in TARGETS[:4])
    assert linear["block_cos"] < 0.5 < 0.95 < mlp["block_cos"]


def test_a_wide_latent_is_solved_through_the_smaller_side() -> None:
    torch.manual_seed(0)
    x = torch.randn(300, 20)
    y = x @ torch.randn(20, 6)
    padded = torch.cat([x, torch.zeros(300, 400)], 1)
    assert torch.allclose(_linear(x, y, x), _linear(padded, y, padded), atol=1e-3)
