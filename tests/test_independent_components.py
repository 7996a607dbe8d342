"""Things that differ in color are told apart by how they change, and the steadiest comes first."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.layers.independent_components import IndependentComponents, independent_components

OFTEN, SELDOM = torch.tensor([-0.7, -0.6, -0.1]), torch.tensor([-0.5, -0.5, -0.4])


def changes(pairs: int = 300, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Changed pixels (R, 40, 3) of a small thing that moves in each pair, and of a large one that
    moves in a quarter of them; and how much of each is in a pixel, (R, 40, 2)."""
    rng = torch.Generator().manual_seed(seed)
    amount = torch.zeros(pairs, 40, 2)
    amount[:, :10, 0] = torch.rand(pairs, 10, generator=rng) - 0.5
    moves = torch.rand(pairs, generator=rng) < 0.25
    amount[:, 10:, 1] = 2 * (torch.rand(pairs, 30, generator=rng) - 0.5) * moves[:, None]
    noise = 1e-3 * torch.randn(pairs, 40, 3, generator=rng)
    return amount @ torch.stack([OFTEN, SELDOM]) + noise, amount


def fitted(values: Tensor, **sizes: int) -> IndependentComponents:
    components = IndependentComponents(3, **sizes)
    for part in values.split(7):
        components.collect(part)
        components.keep()
    components.fit()
    return components


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_moves_most_often_comes_first_though_another_moves_more(seed: int):
    values, amount = changes(seed=seed)
    found = fitted(values)(values)[..., :2].flatten(0, 1)
    true = amount.flatten(0, 1)
    assert (true[:, 1].square().mean() / true[:, 0].square().mean()) > 2
    correlation = torch.corrcoef(torch.cat([found, true], dim=1).mT)[:2, 2:].abs()
    assert correlation.diagonal().min() > 0.99
    assert correlation.fliplr().diagonal().max() < 0.1


def test_a_component_has_variance_1_and_a_sign_of_its_own():
    values, _ = changes()
    matrix = independent_components(values.double())
    assert torch.allclose((values.double() @ matrix).square().mean((0, 1)), torch.ones(3).double())
    largest = matrix.gather(0, matrix.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()
    assert torch.allclose(independent_components(-values.double()), matrix)


def test_before_it_is_fitted_vectors_are_passed_as_they_are():
    values, _ = changes(20)
    components = IndependentComponents(3)
    components.collect(values)
    components.keep()
    assert not components.known and torch.equal(components(values), values)
    components.fit()
    assert components.known and not torch.equal(components(values), values)


@pytest.mark.parametrize("values", [torch.zeros(5, 8, 3), torch.zeros(0, 8, 3)])
def test_where_nothing_changes_nothing_is_told_apart(values: Tensor):
    components = fitted(values)
    assert components.known and torch.equal(components.matrix, torch.eye(3))


def test_gray_frames_have_one_component():
    gray = changes()[0].mean(-1, keepdim=True).expand(-1, -1, 3)
    found = fitted(gray, group_size=40)(gray)
    assert found.isfinite().all()
    assert found[..., 0].square().mean() == pytest.approx(1, abs=1e-3)
    assert found[..., 1:].abs().max() < 1e-3


def test_it_is_full_after_so_many_groups_and_a_resume_goes_on():
    values, _ = changes(50)
    whole, first = (IndependentComponents(3, num_groups=30, group_size=16) for _ in range(2))
    for part in values.split(20):
        whole.collect(part)
        whole.keep()
    first.collect(values[:20])
    first.keep()
    assert whole.full and not first.full
    again = IndependentComponents(3, num_groups=30, group_size=16)
    again.load_state_dict(first.state_dict())
    again.collect(values[40:])
    again.forget()
    again.collect(values[20:40])
    again.keep()
    assert again.full and torch.equal(again.groups, whole.groups)
    for each in (whole, again):
        each.fit()
    assert torch.equal(again.matrix, whole.matrix)
    loaded = IndependentComponents(3, num_groups=30, group_size=16)
    loaded.load_state_dict(whole.state_dict())
    assert loaded.known
