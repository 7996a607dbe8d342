"""The predictor of an image world model, trained on under recorded actions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_predictor import GRID, MOVES, POINTER, episode

from data.actions import ActionSpec
from data.batch import Batch
from models.dynamics.iwm_dynamics import IwmDynamics, IwmDynamicsConfig
from models.layers.vit import VitConfig
from models.tokenizers.iwm import Iwm, IwmConfig
from models.tokenizers.keypoints import Keypoints, KeypointsConfig

SMALL = VitConfig(dim=24, num_layers=1, num_heads=2)
CONFIG = IwmDynamicsConfig(frameskip=3, clip_length=10, predictor=SMALL, action_dim=24)
TOKENIZER = IwmConfig((16, 16), 8, VitConfig(8, 1, 2), SMALL, channels=8, num_res_blocks=1)


def dynamics(config: IwmDynamicsConfig = CONFIG, actions: ActionSpec = POINTER) -> IwmDynamics:
    torch.manual_seed(0)
    model = IwmDynamics(config, GRID, actions)
    torch.nn.init.normal_(model.gate)  # it would predict no change
    torch.nn.init.normal_(model.frame_emb)
    return model.eval().to("cpu")


@pytest.mark.parametrize("actions", [POINTER, MOVES])
@pytest.mark.parametrize("conditioning", ["feature", "sequence"])
def test_every_loss_falls_on_one_batch(actions: ActionSpec, conditioning) -> None:
    torch.manual_seed(0)
    model = IwmDynamics(replace(CONFIG, conditioning=conditioning), GRID, actions)
    seen, acts = episode(GRID, actions)
    batch = Batch(None, seen.cumsum(1) / 3, acts, torch.rand(3, 10), torch.ones(3, 10))
    first = model.loss(batch)
    assert float(first["prediction"]) == pytest.approx(1)  # to predict no change
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        losses = model.loss(batch)
        torch.stack([*losses.values()]).sum().backward()
        optimizer.step()
    for name, value in losses.items():
        assert value < 0.7 * first[name], name


@pytest.mark.parametrize("context_frames", [1, 2, 4])
def test_single_steps_equal_the_rollout_and_the_training_pass(context_frames: int) -> None:
    model = dynamics(replace(CONFIG, context_frames=context_frames))
    seen, acts = episode(GRID)
    state = model.start(seen[:, :7], acts[:, :6])
    many = model.rollout(state, acts[:, 6:9])
    for t in range(6, 9):
        state = model.step(state, acts[:, t])
    assert torch.allclose(many.latents, state.latents, atol=1e-5)
    whole, _ = model.predict(seen[:, :7:3], acts[:, :9].unflatten(1, (3, 3)), torch.full((3, 3), 3))
    assert torch.allclose(many.latents, whole[:, 2], atol=1e-5)


def test_observing_equals_starting_there_and_sees_what_was_before() -> None:
    model = dynamics()
    seen, acts = episode(GRID)
    state = model.start(seen[:, :1], acts[:, :0])
    for t in range(6):
        state = model.observe(state, acts[:, t], seen[:, t + 1])
    again = model.start(seen[:, :7], acts[:, :6])
    here, there = (model.rollout(s, acts[:, 6:9]).latents for s in (state, again))
    assert torch.allclose(here, there, atol=1e-5)
    alone = model.rollout(model.start(seen[:, 6:7], acts[:, :0]), acts[:, 6:9]).latents
    assert not torch.allclose(here, alone, atol=1e-3)


@pytest.mark.parametrize("actions", [POINTER, MOVES])
def test_an_action_changes_what_follows_it_and_nothing_before(actions: ActionSpec) -> None:
    model = dynamics(actions=actions)
    seen, acts = episode(GRID, actions)
    other = acts.clone()
    other[:, 4] = (acts[:, 4] + 1) % 3 if actions.kind == "discrete" else -acts[:, 4]
    one, two = (model.start(seen[:, :1], acts[:, :0]) for _ in range(2))
    for t in range(7):
        one, two = model.step(one, acts[:, t]), model.step(two, other[:, t])
        assert torch.equal(one.latents, two.latents) == (t < 4)


def test_it_begins_with_the_tokenizers_predictor() -> None:
    torch.manual_seed(1)
    tokenizer = Iwm(TOKENIZER)
    model = IwmDynamics(CONFIG, tokenizer.latents, POINTER)
    model.begin_with(tokenizer)
    theirs = tokenizer.predictor.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in model.predictor.state_dict().items())
    other = IwmDynamics(replace(CONFIG, from_tokenizer=False), tokenizer.latents, POINTER)
    other.begin_with(tokenizer)
    assert not torch.equal(other.predictor.mask_token, tokenizer.predictor.mask_token)


def test_predictors_of_another_kind_are_refused_with_both_values() -> None:
    tokenizer = Iwm(TOKENIZER)
    deep = IwmDynamics(replace(CONFIG, predictor=VitConfig(24, 2, 2)), GRID, POINTER)
    with pytest.raises(ValueError, match="num_layers=2.*num_layers=1.*--model.no-from-tokenizer"):
        deep.begin_with(tokenizer)
    keypoints = Keypoints(KeypointsConfig((16, 16), num_keypoints=2, channels=8, num_res_blocks=1))
    with pytest.raises(ValueError, match="is a Keypoints, .*--preset iwm"):
        dynamics().begin_with(keypoints)
