"""A head that reads a simulator's state of what an RSSM knows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_rssm import MODELS, SMALL, a_batch, rssm
from torch import Tensor

import train_dynamics
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from models.dynamics.rssm import Rssm, RssmConfig
from models.dynamics.rssm_base import RssmBase
from models.dynamics.state_head import StateHead
from models.layers.precision import autocast
from models.world import World

NAMES = ("x", "block_angle")


def reading(name: str) -> RssmBase:
    """A model of `MODELS` with such a head."""
    model = MODELS[name]()
    model.state_head = StateHead(model.spec.dim, 16, NAMES)
    model.config = replace(model.config, overshooting=3, first_frames=2)
    return model.train()


def states(clips: int = 3, length: int = 6) -> Tensor:
    x = torch.linspace(100, 500, clips * length).view(clips, length)
    return torch.stack([x, x / 50], dim=-1)


@pytest.mark.parametrize("name", ["frames", "patches", "codes"])
def test_the_world_learns_nothing_of_the_states(name: str):
    model = reading(name)
    batch = a_batch(model)
    assert not any("states" in term for term in model.loss(batch))
    batch.extra["states"] = states()
    assert model.loss(batch)["states"] == 0 and not model.capturable
    with torch.no_grad():
        model.after_step()
    assert model.capturable
    losses = model.loss(batch)
    terms = ["states", "overshooting_states", "first_frames_states"]
    total = sum(losses[term] for term in terms)
    assert (
        isinstance(total, Tensor) and total.isfinite() and all(losses[term] > 0 for term in terms)
    )
    total.backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient and all(name.startswith("state_head.") for name in with_gradient)


def test_columns_are_in_standard_deviations_of_the_first_batch_and_angles_turn():
    head = StateHead(4, 16, NAMES).train()
    head.loss(torch.randn(3, 6, 4), states())
    assert not head.columns.known
    head.columns.update()
    columns = head.standardize(head._columns(states()))
    assert torch.allclose(columns.flatten(0, 1).mean(0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(columns.flatten(0, 1).std(0, correction=0), torch.ones(3), atol=1e-4)
    turned = states() + torch.tensor([0.0, 2 * torch.pi])
    assert torch.allclose(head._columns(turned), head._columns(states()), atol=1e-4)


def test_a_head_learns_to_read():
    torch.manual_seed(0)
    head = StateHead(4, 32, NAMES).train()
    optimizer = torch.optim.AdamW(head.parameters(), 1e-2)
    known = torch.randn(256, 4)
    true = torch.stack([known[:, 0] * 90 + 200, known[:, 1]], dim=-1)
    for _ in range(150):
        loss = head.loss(known, true)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        head.columns.update()
    assert head.loss(known, true) < 0.05


def test_worlds_compare_goals_by_what_is_read():
    model = rssm()
    latents = torch.randn(5, 1, model.spec.dim)
    drawn = World(model, model).vectors(latents)
    model.state_head = StateHead(model.spec.dim, 16, NAMES)
    with torch.no_grad(), autocast(torch.device("cpu"), "fp32"):
        read = World(model, model).vectors(latents)
        assert torch.allclose(read, model.state_head(latents)) and read.shape == (5, 1, 3)
    assert drawn.shape != read.shape


def test_the_stage_names_what_is_read(tmp_path: Path):
    dataset = EpisodeDataset(write_toy_shards(tmp_path / "shards", 6, 16, 16))
    config = RssmConfig(**SMALL, channels=8, read_states=True)
    named = train_dynamics.with_heads(config, dataset)
    assert isinstance(named, RssmConfig) and named.state_names == dataset.state_names
    model = Rssm(named, dataset.image_size, dataset.actions)
    assert model.state_head is not None and len(model.state_head.is_angle) == len(named.state_names)
    plain = replace(config, read_states=False)
    assert train_dynamics.with_heads(plain, dataset) == plain


def test_data_without_states_is_refused_in_one_line():
    with pytest.raises(ValueError, match="--model.read-states reads a simulator's states, and"):
        rssm(read_states=True)
