"""Auxiliary losses on layers: by name, with a weight, logged, and free of cost at weight 0."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import test_llama
import torch
from test_predictor import GRID, episode, predictor
from torch import Tensor, nn
from untrained_run import write_run

import train_dynamics
from data.batch import Batch
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from evaluation.measures.probe import ridge_predict
from models.hooks.auxiliary_losses import (
    LOSSES,
    AuxiliaryLoss,
    AuxiliaryLosses,
    decorrelation,
    linear_cka,
    parse,
)
from models.hooks.loss_with_layers import by_frame, loss_with_layers
from pipeline import checkpoint as ckpt
from pipeline import presets
from pipeline.training.train_config import TrainConfig

LAST = "transformer.layers.1"
NORM = f"feature_norm:{LAST}:0.5"


def clips(count: int = 6, seed: int = 1) -> Batch:
    """Latents that move as their actions say, and a teacher's features of them."""
    random = torch.Generator().manual_seed(seed)
    acts = torch.rand(count, 10, 2, generator=random) * 2 - 1
    place = torch.randn(count, 1, 2, generator=random) + acts.cumsum(1)
    mix = torch.randn(2, 6, generator=torch.Generator().manual_seed(9))
    latents = (place @ mix).tanh()[:, :, None]
    teacher = torch.cat([place.sin(), place.cos(), place**2 / 4], -1)[:, :, None]
    return Batch(None, latents, acts, extra={"teacher": teacher})


# -- what is asked for -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [("feature_norm", "is not NAME:LAYER:WEIGHT, such as feature_norm:"),
     ("feature_norm:delta_head:much", "is not NAME:LAYER:WEIGHT"),
     ("feature_nrom:delta_head:1", "no loss is called 'feature_nrom'; did you mean feature_norm?"),
     ("x:delta_head:1", "no loss is called 'x'; there are feature_norm, decorrelation, distill"),
     ("distill:delta_head:-1", "a weight is a number from 0 on, not -1"),
     ("distill:delta_haed:1", "has no layer 'delta_haed'; did you mean delta_head"),
     ("distill:transformer.*:1", "name one layer for each loss")],
)  # fmt: skip
def test_what_cannot_be_is_one_line(text: str, reason: str):
    with pytest.raises(ValueError) as refused:
        AuxiliaryLosses(predictor(), (text,))
    assert reason in str(refused.value) and "\n" not in str(refused.value)


def test_a_loss_that_is_asked_for_twice_is_refused_with_both_weights():
    reason = rf"^--auxiliary feature_norm@{LAST} is asked .* weights 0.5 and 2; give it once$"
    with pytest.raises(ValueError, match=reason):
        AuxiliaryLosses(predictor(), (NORM, f"feature_norm:{LAST}:2"))
    with pytest.raises(ValueError, match="with weights 0.5 and 0;"):
        AuxiliaryLosses(predictor(), (NORM, f"feature_norm:{LAST}:0"))


def test_compiled_steps_and_auxiliary_losses_do_not_go_together():
    with pytest.raises(
        ValueError, match="compiled steps ignore those; leave --train.compile at no"
    ):
        AuxiliaryLosses(predictor(), (NORM,), compiled=True)
    AuxiliaryLosses(predictor(), (), compiled=True)


def test_at_weight_0_the_loss_is_the_model_s_own():
    model = predictor()
    for asked in ((), (f"feature_norm:{LAST}:0", "distill:delta_head:0.0")):
        auxiliary = AuxiliaryLosses(model, asked)
        assert auxiliary.loss == model.loss and not auxiliary.needs


def test_terms_are_weighted_and_the_others_stay():
    model = predictor().train()
    batch = clips()

    def terms(*asked: str) -> dict[str, Tensor]:
        torch.manual_seed(0)
        return AuxiliaryLosses(model, asked).loss(batch)

    plain, once, twice = terms(), terms(NORM), terms(NORM.replace("0.5", "1"))
    assert once.keys() - plain.keys() == {f"feature_norm@{LAST}"}
    assert all(torch.equal(once[name], plain[name]) for name in plain)
    assert torch.allclose(2 * once[f"feature_norm@{LAST}"], twice[f"feature_norm@{LAST}"])
    both = terms(NORM, f"decorrelation:{LAST}:1", "feature_norm:delta_head:1")
    assert len(both) == len(plain) + 3 and not any(m._forward_hooks for m in model.modules())


def test_a_loss_reaches_the_layers_before_it_and_no_others():
    model = predictor().train()
    term = AuxiliaryLosses(model, ("feature_norm:transformer.layers.0:1",)).loss(clips())
    term["feature_norm@transformer.layers.0"].backward()
    assert model.input_proj.weight.grad is not None
    later = [p.grad for p in model.transformer.layers[1].parameters()]
    assert later and all(grad is None for grad in later)


def test_activations_that_are_computed_again_give_the_same_gradient():
    gradients = []
    for again in (False, True):
        model = predictor().train()
        model.transformer.config = replace(model.transformer.config, activation_checkpointing=again)
        torch.manual_seed(0)
        losses = AuxiliaryLosses(model, (NORM,)).loss(clips())
        sum(losses.values(), torch.zeros(())).backward()
        gradients.append(model.input_proj.weight.grad)
    assert torch.allclose(*gradients, atol=1e-6)


def test_a_loss_of_one_s_own_is_registered_by_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(LOSSES, "mean", AuxiliaryLoss(lambda output, target: output.mean()))
    assert parse("mean:delta_head:2").weight == 2
    assert "mean@delta_head" in AuxiliaryLosses(predictor(), ("mean:delta_head:2",)).loss(clips())


# -- by frame ----------------------------------------------------------------------------------


def test_outputs_are_those_of_the_context_frames():
    model = predictor(GRID)
    seen, acts = episode(GRID)
    _, outputs, frames = loss_with_layers(model, Batch(None, seen, acts), ["input_proj", LAST])
    assert list(frames) == [0, 3, 6]
    assert outputs[LAST].shape == (3, 3, 4, 24)
    flat = by_frame(torch.arange(24.0).view(2, 6, 2), 2, range(3), "x")
    assert torch.equal(flat[1, 2], torch.tensor([[20.0, 21.0], [22.0, 23.0]]))
    alone = by_frame(torch.zeros(6, 5), 2, range(3), "x")
    assert alone.shape == (2, 3, 1, 5)
    with pytest.raises(
        ValueError, match=r"x gives \(2, 5\) of 2 clips, which are not the 3 frames"
    ):
        by_frame(torch.zeros(2, 5), 2, range(3), "x")


@pytest.mark.parametrize("decoding, count", [("parallel", 5), ("autoregressive", 6)])
def test_layers_of_a_transformer_over_tokens_stand_for_its_frames(decoding: Any, count: int):
    model = test_llama.dynamics(decoding)
    latents, acts = test_llama.episode()
    torch.manual_seed(0)  # of scheduled sampling
    _, outputs, frames = loss_with_layers(model, Batch(None, latents, acts), [LAST])
    assert list(frames) == list(range(count)) and outputs[LAST].shape[:2] == (3, count)
    # the output at a frame is of that frame: another one changes it, and none before it
    changed = latents.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 12
    torch.manual_seed(0)
    _, after, _ = loss_with_layers(model, Batch(None, changed, acts), [LAST])
    moved = (after[LAST] - outputs[LAST]).abs().amax((0, 2, 3)) > 1e-4
    assert moved.tolist()[:4] == [False, False, False, True]


# -- the losses --------------------------------------------------------------------------------


def test_cka_sees_rotations_and_scales_as_alike_and_noise_as_not():
    x = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)))[0]
    assert float(linear_cka(x, 3 * x @ rotation + 7)) == pytest.approx(1, abs=1e-4)
    other = torch.randn(200, 5, generator=torch.Generator().manual_seed(2))
    assert float(linear_cka(x, other)) < 0.1


def test_decorrelation_is_1_of_copies_and_near_0_of_independent_features():
    x = torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
    assert float(decorrelation(x.expand(-1, 4), x)) == pytest.approx(1, abs=1e-3)
    apart = torch.randn(500, 4, generator=torch.Generator().manual_seed(1))
    assert float(decorrelation(apart, apart)) < 0.02


def test_a_layer_that_starts_at_zero_has_finite_gradients():
    model = predictor().train()
    for parameter in model.delta_head.parameters():
        nn.init.zeros_(parameter)
    for name in LOSSES:
        model.zero_grad()
        losses = AuxiliaryLosses(model, (f"{name}:delta_head:1",)).loss(clips())
        losses[f"{name}@delta_head"].backward()
        assert model.delta_head.weight.grad is not None
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def probe_error(model: nn.Module, train: Batch, test: Batch) -> float:
    """Squared error of a linear probe of the teacher's features in the first layer, relative to
    their variance."""
    found = []
    for batch in (train, test):
        _, outputs, frames = loss_with_layers(model, batch, ["transformer.layers.0"])  # type: ignore[arg-type]
        x = outputs["transformer.layers.0"].flatten(0, 1).flatten(1)
        y = batch.extra["teacher"][:, frames.start : frames.stop : frames.step]
        found.append((x, y.flatten(0, 1).flatten(1)))
    (x, y), (x_test, y_test) = found
    mean, std, center = x.mean(0), x.std(0) + 1e-6, y.mean(0)
    predicted = ridge_predict((x - mean) / std, y - center, (x_test - mean) / std) + center
    return float((predicted - y_test).square().sum() / (y_test - center).square().sum())


def test_a_layer_that_is_distilled_toward_a_teacher_holds_more_of_it():
    """Worked example: the loss falls, and a probe of the layer is better than without."""
    train, test, errors = clips(48), clips(48, seed=2), {}
    for weight in (0.0, 3.0):
        model = predictor().train()
        loss = AuxiliaryLosses(model, (f"distill:transformer.layers.0:{weight}",)).loss
        optimizer, history = torch.optim.AdamW(model.parameters(), 3e-3), []
        for _ in range(120):
            losses = loss(train)
            optimizer.zero_grad()
            sum(losses.values(), torch.zeros(())).backward()
            optimizer.step()
            if weight:
                history.append(float(losses["distill@transformer.layers.0"].detach()) / weight)
        if weight:
            assert history[-1] < 0.4 * history[0]
        errors[weight] = probe_error(model.eval(), train, test)
    assert errors[3.0] < 0.7 * errors[0.0]


# -- the stage ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_toy_shards(folder / "shards", episodes=12)
    return write_run(folder, EpisodeDataset(folder / "shards"), False, method="keypoints")


def config(run: Path, *auxiliary: str, **changes: object) -> train_dynamics.Config:
    stage = presets.apply(train_dynamics.Config(), "dynamics", ["keypoints", "debug"])
    train = TrainConfig(steps=4, batch_size=4, eval_every=2, save_every=2, log_every=1)
    return replace(stage, run=run, train=train, auxiliary=auxiliary, restart=True, **changes)  # type: ignore[arg-type]


def test_the_stage_trains_with_them_logs_each_and_its_checkpoint_is_as_ever(run: Path):
    layer = "transformer.layers.0"
    asked = (f"distill:{layer}:0.5", f"feature_norm:{layer}:0.1", f"decorrelation:{layer}:0")
    with pytest.raises(ValueError, match="has a teacher's latents as target; give --teacher RUN"):
        train_dynamics.main(config(run, *asked))
    with pytest.raises(ValueError, match="Predictor has no layer 'transformer.layer.0'; did you"):
        train_dynamics.main(config(run, "feature_norm:transformer.layer.0:1"))
    train_dynamics.main(config(run, *asked, teacher=str(run)))
    lines = [json.loads(x) for x in (run / "dynamics" / "log.jsonl").read_text().splitlines()]
    terms = [line for line in lines if "train/loss" in line]
    assert len(terms) == 4 and (run / "teacher" / "latents.bin").exists()
    assert all(0 < line[f"train/distill@{layer}"] < 0.5 for line in terms)
    assert all(line[f"train/feature_norm@{layer}"] > 0 for line in terms)
    assert not any("decorrelation" in key for line in terms for key in line)
    with_losses = ckpt.load(run / "dynamics" / "last.pt", "dynamics")["model"]
    train_dynamics.main(config(run))
    without = ckpt.load(run / "dynamics" / "last.pt", "dynamics")["model"]
    assert with_losses.keys() == without.keys()
    assert any(not torch.equal(with_losses[k], without[k]) for k in without)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("auxiliary", ("feature_norm:transformer.layers.0:0.2",)), ("event_share", 0.5)],
)
def test_what_is_learned_from_stays_when_a_training_resumes(run: Path, setting: str, value: Any):
    begun = config(run, "feature_norm:transformer.layers.0:0.1")
    train_dynamics.main(begun)
    longer = replace(begun, restart=False, train=replace(begun.train, steps=6))
    with pytest.raises(ValueError, match=rf"begun with {setting} = .*, but now it is .*--restart"):
        train_dynamics.main(replace(longer, **{setting: value}))
    train_dynamics.main(longer)
    assert ckpt.load(run / "dynamics" / "last.pt", "dynamics")["step"] == 6
