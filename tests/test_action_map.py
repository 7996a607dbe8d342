"""The map between latent and true actions: exact for an oracle, at chance for what is deaf."""

from __future__ import annotations

import math

import pytest
import torch

from data.actions import ActionSpec
from data.toy import KEYS, MOVES, POINTER
from models.action_map import ActionMap, fit_action_map

LATENT = ActionSpec("discrete", tuple(f"action {i}" for i in range(8)))
STICK = ActionSpec("continuous", ("x", "y"), (-2.0, -2.0), (2.0, 2.0))


def directions(n: int, noise: float = 0.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of 8 directions, and the vectors of length 1 that they stand for."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(8, (n,), generator=generator)
    angle = codes * math.pi / 4
    vectors = torch.stack([angle.cos(), angle.sin()], 1)
    return codes, vectors + noise * torch.randn(n, 2, generator=generator)


@pytest.mark.parametrize("budget", [50, 200])
def test_an_oracle_of_codes_is_mapped_exactly_both_ways(budget: int):
    codes = torch.arange(budget) % 5
    names = torch.tensor([3, 0, 4, 1, 2])
    found = fit_action_map(LATENT, MOVES, names[codes], codes)
    assert torch.equal(found.to_true(names), torch.arange(5))
    assert torch.equal(found.to_latent(torch.arange(5)), names)


def test_an_oracle_of_directions_is_mapped_both_ways():
    codes, vectors = directions(200)
    found = fit_action_map(LATENT, STICK, codes, vectors)
    assert torch.equal(found.to_latent(vectors), codes)
    assert (found.to_true(codes) - vectors).abs().max() < 0.05


def test_places_are_taken_relative_to_the_agent():
    codes, vectors = directions(200)
    places = torch.rand(200, 2, generator=torch.Generator().manual_seed(1)) * 300 + 100
    found = fit_action_map(LATENT, POINTER, codes, places + 40 * vectors, places)
    elsewhere = torch.tensor([[250.0, 250.0]]).expand(8, 2)
    reached = found.to_true(torch.arange(8), elsewhere)
    angle = torch.arange(8) * math.pi / 4
    expected = elsewhere + 40 * torch.stack([angle.cos(), angle.sin()], 1)
    assert (reached - expected).abs().max() < 2
    assert torch.equal(found.to_latent(expected, elsewhere), torch.arange(8))
    with pytest.raises(ValueError, match="the agent's own is needed"):
        found.to_true(codes)


def test_more_labels_map_noisy_directions_better():
    test_codes, test_vectors = directions(2000, 0.3, seed=9)
    accuracies = []
    for budget in (10, 50, 1000):
        found = fit_action_map(LATENT, STICK, *directions(budget, 0.3, seed=2))
        accuracies.append(float((found.to_latent(test_vectors) == test_codes).float().mean()))
    assert accuracies[0] < accuracies[1] <= accuracies[2] + 0.02 and accuracies[2] > 0.75


def test_codes_that_say_nothing_map_to_the_commonest():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(8, (1000,), generator=generator)
    actions = torch.where(torch.rand(1000, generator=generator) < 0.6, 2, 4)
    found = fit_action_map(LATENT, MOVES, codes, actions)
    assert (found.to_true(torch.arange(8)) == 2).all()


def test_what_has_no_label_is_what_all_together_are():
    found = fit_action_map(LATENT, MOVES, torch.tensor([1, 1, 0]), torch.tensor([3, 3, 2]))
    assert found.to_true(torch.tensor([7])) == 3 and found.to_latent(torch.tensor([4])) == 1
    moved = fit_action_map(LATENT, STICK, torch.tensor([1, 1]), torch.tensor([[1.0, 0], [1.0, 0]]))
    assert torch.allclose(moved.to_true(torch.tensor([5])), torch.tensor([[1.0, 0.0]]))
    assert moved.to_latent(torch.tensor([[-1.0, 0.0]])) == 1


def test_a_map_is_the_same_after_it_was_written():
    for spec, actions in ((KEYS, torch.arange(15)), (STICK, directions(15)[1])):
        found = fit_action_map(LATENT, spec, torch.arange(15) % 8, actions)
        read = ActionMap.from_dict(found.as_dict())
        assert torch.equal(read.to_true(torch.arange(8)), found.to_true(torch.arange(8)))
        assert read.latent == LATENT and read.true == spec and read.budget == 15
