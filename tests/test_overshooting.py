"""Rollouts that an RSSM is trained on, in addition to the states of real frames."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_rssm import KEYS, MODELS, MOUSE, a_batch, rssm
from torch import Tensor

from data.actions import ActionSpec
from data.batch import Batch
from models.dynamics.rssm import Rssm


@pytest.mark.parametrize("name", ["frames", "keys", "patches", "codes"])
def test_what_a_rollout_comes_to_is_learned_besides(name: str):
    model = MODELS[name]().train()
    batch = a_batch(model)
    assert not any("overshooting" in term for term in model.loss(batch))
    model.config = replace(model.config, overshooting=4)
    losses = model.loss(batch)
    terms = ["reconstruction", "reward", "continue"]
    total = sum(losses[f"overshooting_{term}"] for term in terms)
    assert isinstance(total, Tensor) and total.isfinite()
    total.backward()
    cell = model.cell
    # the prior, which no other loss but the KL moves, and through the first state the posterior
    assert cell.prior_head[2].weight.grad.any() and cell.posterior_out.weight.grad.any()


def drawn_of(model: Rssm, batch: Batch, features: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """States (B, K, F) and targets (B, K) of an overshooting loss."""
    seen: list[tuple[Tensor, Tensor]] = []
    model.reconstruction_loss = lambda *given: seen.append(given[:2])  # type: ignore[method-assign]
    model.overshooting_losses(features, target, batch)
    return seen[0]


@pytest.mark.parametrize("actions", [MOUSE, KEYS])
def test_states_of_overshooting_are_those_of_a_rollout_with_expected_z(actions: ActionSpec):
    model = rssm(actions, overshooting=3).eval()
    batch, features = a_batch(model, clips=8), torch.randn(8, 6, 56)
    with torch.no_grad():
        states, target = drawn_of(model, batch, features, torch.arange(6).expand(8, 6))
        starts = target[:, 0] - 1
        assert (
            torch.equal(target, starts[:, None] + torch.arange(1, 4)) and len(starts.unique()) > 1
        )
        assert batch.actions is not None
        for row, start in enumerate(starts.tolist()):
            state = model.from_state(features[row : row + 1, start : start + 1])
            for k in range(3):
                state = model.step(state, batch.actions[row : row + 1, start + k])
                assert torch.allclose(state.latents[:, 0], states[row, k], atol=1e-5)


def test_overshooting_stays_where_another_episode_begins():
    model, target = rssm(overshooting=5).eval(), torch.arange(6).expand(4, 6)
    batch, features = a_batch(model, clips=4), torch.randn(4, 6, 56)
    begins = [[1, 0, 0, 1, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 1, 0, 1, 0, 0]]
    batch.extra["is_first"] = torch.tensor(begins).bool()
    with torch.no_grad():
        states, found = drawn_of(model, batch, features, target)
    assert found.tolist() == [[1, 2, 2, 2, 2], [0] * 5, [1, 2, 3, 4, 5], [0] * 5]
    assert torch.equal(states[0, 1:], states[0, 1].expand(4, -1))
    assert torch.equal(states[1], features[1, 0].expand(5, -1))
