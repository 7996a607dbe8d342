"""Mean reciprocal rank: an oracle has 1, chance its sum, and a constant the middle."""

from __future__ import annotations

import pytest
import torch

from models.layers.mrr import chance, reciprocal_ranks


@pytest.fixture
def candidates() -> torch.Tensor:
    return torch.randn(256, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_an_oracle_ranks_first(candidates, distance):
    index = torch.arange(256)
    assert (reciprocal_ranks(candidates, candidates, index, distance) == 1).all()


def test_a_random_prediction_is_at_chance(candidates):
    predicted = torch.randn(4000, 8, generator=torch.Generator().manual_seed(1))
    index = torch.randint(256, (4000,), generator=torch.Generator().manual_seed(2))
    assert chance() == pytest.approx(0.0239, abs=1e-4)
    found = reciprocal_ranks(predicted, candidates, index).mean()
    assert float(found) == pytest.approx(chance(), abs=0.006)


def test_one_prediction_for_all_candidates_is_near_chance(candidates):
    """It ranks each candidate once, whatever it is."""
    predicted = candidates.mean(0, keepdim=True).expand(256, -1)
    found = reciprocal_ranks(predicted, candidates, torch.arange(256)).mean()
    assert float(found) == pytest.approx(chance(), abs=1e-6)


def test_candidates_that_cannot_be_told_apart_give_the_middle_rank():
    same = torch.ones(255, 4)
    assert reciprocal_ranks(same[:1], same, torch.tensor([7])).item() == pytest.approx(1 / 128)


def test_the_second_nearest_has_half():
    candidates = torch.tensor([[0.0], [1.0], [5.0]])
    assert reciprocal_ranks(torch.tensor([[0.4]]), candidates, torch.tensor([1])).item() == 0.5


def test_distances_that_differ_by_little_are_told_apart():
    candidates = torch.tensor([[1.0, 100.0], [1.00001, 100.0]])
    assert reciprocal_ranks(candidates[1:], candidates, torch.tensor([1])).item() == 1
