"""The image world model of recordings: what its latents keep, and what its predictor is told."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from data.actions import ActionSpec
from data.batch import Batch
from models.dynamics.iwm_dynamics import IwmDynamics, IwmDynamicsConfig
from models.layers.vit import VitConfig
from models.layers.wide_encoder import WideEncoder
from models.tokenizers.iwm_actions import IwmActions, IwmActionsConfig

SMALL = VitConfig(dim=24, num_layers=1, num_heads=2)
CONFIG = IwmActionsConfig(
    (32, 32), 16, 16, 24, SMALL, frameskip=2, action_dim=12, channels=16, num_res_blocks=1
)
ACTIONS = ActionSpec("continuous", ("x", "y"), (-1.0, -1.0), (1.0, 1.0))


@pytest.fixture
def model() -> IwmActions:
    torch.manual_seed(0)
    return IwmActions(CONFIG, ACTIONS)


@pytest.fixture
def batch() -> Batch:
    """A square that each action moves by up to 8 pixels of 32."""
    generator = torch.Generator().manual_seed(0)
    actions = 2 * torch.rand(24, 3, 2, generator=generator) - 1
    places = torch.cat([torch.full((24, 1, 2), 14.0), 14 + 4 * actions[:, :2].cumsum(1)], 1)
    frames = torch.full((24, 3, 3, 32, 32), 255, dtype=torch.uint8)
    for clip, row in enumerate(places.round().long().tolist()):
        for step, (x, y) in enumerate(row):
            frames[clip, step, :, y : y + 5, x : x + 5] = 60
    return Batch(frames=frames, actions=actions)


def test_a_frame_is_a_vector_per_patch_and_back(model, batch):
    frames = batch.frames[:, 0]
    latents = model.eval().encode(frames)
    assert latents.shape == (24, 4, 24) and model.latents.grid == (2, 2)
    assert model.clip_length == 3
    drawn = model.decode(latents)
    assert drawn.shape == frames.shape and drawn.dtype == torch.uint8


def test_neither_prediction_nor_decoder_reaches_the_latents(model, batch):
    losses = model.loss(batch)
    (losses["reconstruction"] + losses["prediction"]).backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    for part in (model.action_emb, model.to_slots, model.predictor):
        assert all(p.grad is not None for p in part.parameters())
    filters = model.encoder.conv.weight
    model.loss(batch)["lost"].backward()
    assert model.encoder.components.grad is not None and filters.grad is None


def test_it_learns_to_predict_under_actions_and_hears_them(model, batch):
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(150):
        losses = model.loss(batch)
        (losses["prediction"] + losses["lost"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    learned = float(model.loss(batch)["relative_error"])
    swapped = replace(batch, actions=batch.actions.flip(0))
    assert learned < 0.8 * float(model.loss(swapped)["relative_error"])


def test_the_components_become_the_principal_ones():
    torch.manual_seed(0)
    encoder = WideEncoder(4, 8, (32, 32), 16)
    answers = torch.randn(64, 4, 16) * torch.linspace(3, 0.1, 16)
    optimizer = torch.optim.Adam([encoder.components], 1e-2)
    for _ in range(400):
        loss = encoder.lost(answers, encoder.project(answers))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    values = torch.linalg.svdvals(answers.flatten(0, 1)).square()
    best = float(values[4:].sum() / values.sum())
    assert best - 1e-4 < float(encoder.lost(answers, encoder.project(answers))) < best + 0.02


def test_where_an_object_is_is_in_its_patch():
    torch.manual_seed(0)
    encoder = WideEncoder(24, 16, (64, 64), 32).eval()
    frames = torch.zeros(2, 3, 64, 64)
    frames[1, :, 40:52, 4:16] = 0.7
    answers = encoder.conv(torch.nn.functional.avg_pool2d(frames, 2)).relu()
    pooled = torch.nn.functional.max_pool2d(answers, encoder.pool_size)
    assert pooled.shape == (2, 16, 2, 2)
    assert (pooled[1].amax(0) > 0).tolist() == [[False, False], [True, False]]


def test_stage_3_begins_with_the_predictor_and_with_what_tells_it_of_actions(model):
    config = IwmDynamicsConfig(
        frameskip=2, clip_length=5, predictor=SMALL, action_dim=12, rewards=False
    )
    dynamics = IwmDynamics(config, model.latents, ACTIONS)
    dynamics.begin_with(model)
    for name in ("predictor", "action_emb", "to_slots"):
        mine, theirs = (getattr(m, name).state_dict() for m in (dynamics, model))
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    other = IwmDynamics(replace(config, action_dim=10), model.latents, ACTIONS)
    before = other.to_slots.weight.clone()
    other.begin_with(model)
    assert torch.equal(other.to_slots.weight, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_dim": 33}, "--latent-dim 33 is more than the 32 answers of --num-filters 16"),
        ({"patch_size": 24}, "not divisible by --patch-size 24"),
        ({"image_size": (36, 36), "patch_size": 6}, "--patch-size 6 is no multiple of 4.* give 8"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)
