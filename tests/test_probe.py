"""Probes of the state in the latents."""

from __future__ import annotations

import torch

from evaluation.measures.probe import TARGETS, _mlp, correlations, probe_targets, ridge_predict


def states(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 5, generator=generator) * torch.tensor([512, 512, 512, 512, 6.28])


def test_a_linear_probe_finds_what_is_linear_and_an_mlp_the_rest() -> None:
    torch.manual_seed(0)  # an ill-conditioned mixing matrix would cost the ridge its accuracy
    truth = probe_targets(states(3000))
    mean, std = truth.mean(0), truth.std(0)
    targets = (truth - mean) / std
    angle = states(3000)[:, 4]
    # x and y, and the angle, of which sine and cosine are not linear
    latents = torch.cat([targets[:, :4] @ torch.randn(4, 4), (angle - 3.14)[:, None] / 1.8], 1)
    x, y, x_test, answers = latents[:2000], targets[:2000], latents[2000:], targets[2000:]
    linear = correlations(ridge_predict(x, y, x_test), answers)
    mlp = correlations(_mlp(x, y, x_test, seed=0), answers)
    assert list(linear) == list(TARGETS)
    assert all(linear[name] > 0.99 for name in TARGETS[:4])
    assert linear["block_cos"] < 0.5 < 0.95 < mlp["block_cos"]


def test_wide_latents_are_solved_through_the_smaller_gram_matrix() -> None:
    torch.manual_seed(0)
    x = torch.randn(300, 20)
    y = x @ torch.randn(20, 6)
    padded = torch.cat([x, torch.zeros(300, 400)], 1)
    assert torch.allclose(ridge_predict(x, y, x), ridge_predict(padded, y, padded), atol=1e-3)


def test_latents_of_as_many_numbers_as_frames_are_read_all_the_same() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(1500, 480), torch.randn(480, 6)
    y = x @ weight + 20 * torch.randn(1500, 6)  # what is there, and as much noise
    read = correlations(ridge_predict(x[:500], y[:500], x[500:]), x[500:] @ weight)
    assert min(read.values()) > 0.55  # 0.26 to 0.34 by the smallest penalty
