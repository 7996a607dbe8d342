"""One step of training: precision, micro-batches, terms, learning rates, what is not finite."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_trainer import (
    IDENTITY,
    TRAIN,
    Line,
    Points,
    equal,
    last,
    log,
    take_steps,
    times,
    train,
    weights,
)
from torch import Tensor, nn

from data.batch import Batch
from pipeline.training.trainer import Trainer

# -- a step --------------------------------------------------------------------------------------


def test_a_step_that_overflows_fp16_is_skipped_and_the_loss_scale_halves(tmp_path):
    torch.manual_seed(0)
    line, factor = Line(), {"is": 1.0}
    trainer = Trainer("tokenizer", tmp_path, line, replace(TRAIN, precision="fp16"), IDENTITY)

    def state() -> dict[str, Tensor]:
        moments = trainer.step_fn.optimizer.state_dict()["state"]
        named = {f"{i} {k}": v for i, kept in moments.items() for k, v in kept.items()}
        named |= {f"ema {k}": v for k, v in trainer.step_fn.ema.weights.items()}
        return {k: v.clone() for k, v in (named | line.state_dict()).items()}

    for step, batch in enumerate(trainer.batches(Points())):
        factor["is"] = 1e5 if step == 5 else 1.0
        before, scale = state(), trainer.step_fn.scaler.get_scale()
        trainer.step(lambda batch: {"error": factor["is"] * line.loss(batch)["error"]}, batch)
        after, skipped = state(), trainer.step_fn.scaler.get_scale() < scale
        assert skipped == (step == 5) and trainer.global_step == step + 1
        if skipped:
            assert equal(before, after) and trainer.step_fn.scaler.get_scale() == scale / 2
        elif before.keys() == after.keys():
            assert not any(torch.equal(before[k], after[k]) for k in before)
    trainer._lock.close()
    lines = log(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert ["train/grad_norm" in line for line in lines].index(False) == 5
    assert lines[5]["train/loss_scale"] == 32768 and lines[4]["train/loss_scale"] == 65536


def test_compiling_is_timed_in_the_last_turn(tmp_path, monkeypatch):
    """Steps of a part that learns alone first say nothing of those after it."""
    monkeypatch.setattr("pipeline.training.auto_compile.cpp_compiler", lambda: "g++")
    line = Line()
    line.turns = (3, 5)
    trainer = Trainer("tokenizer", tmp_path, line, replace(TRAIN, compile="auto"), IDENTITY)
    trial, timed = trainer.step_fn.auto_compile, []
    assert trial is not None
    for batch in trainer.batches(Points()):
        trainer.step(line.loss, batch)
        timed.append(len(trial._eager_seconds))
    trainer._lock.close()
    assert timed[:8] == [0, 0, 0, 0, 0, 1, 2, 3]


def test_fp16_learns_what_fp32_learns(tmp_path):
    losses, norms = {}, {}
    for precision in ("fp32", "fp16"):
        trainer = train(tmp_path / precision, precision=precision, steps=40, learning_rate=1e-2)
        assert trainer.best is not None
        losses[precision] = trainer.best
        norms[precision] = log(tmp_path / precision)[0]["train/grad_norm"]
    assert norms["fp16"] == pytest.approx(norms["fp32"], rel=1e-2)  # unscaled before it is clipped
    assert losses["fp16"] < 1.1 * losses["fp32"] and losses["fp32"] < 0.5


class Loud(Line):
    """A loss whose gradient passes what fp16 holds, until the loss scaler has come down."""

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return {k: 1000 * v for k, v in super().loss(batch).items()}


def test_k_plus_m_steps_equal_k_stop_resume_m_in_fp16_too(tmp_path):
    train(tmp_path / "whole", model=Loud, precision="fp16")
    train(tmp_path / "parts", stop_at=7, model=Loud, precision="fp16")
    train(tmp_path / "parts", model=Loud, precision="fp16")
    whole, parts = last(tmp_path / "whole"), last(tmp_path / "parts")
    assert whole["scaler"] == parts["scaler"] and whole["scaler"]["scale"] < 65536
    assert equal(whole["model"], parts["model"]) and equal(whole["ema"], parts["ema"])


class Quiet(Line):
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        (x,) = batch.require("latents")
        return {"error": (self.net(x) - (2 * x - 1)).square().mean()}


def test_micro_batches_add_up_to_the_batch(tmp_path):
    for parts in (1, 3, 4):  # 10 rows: 3, 3 and 4; 2, 3, 2 and 3
        torch.manual_seed(0)
        config = replace(TRAIN, steps=3, batch_size=10, grad_accum_steps=parts)
        model = Quiet()
        trainer = Trainer("tokenizer", tmp_path / str(parts), model, config, IDENTITY)
        errors = [
            float(trainer.step(model.loss, batch)["error"]) for batch in trainer.batches(Points())
        ]
        trainer._lock.close()
        if parts == 1:
            one, expected = weights(tmp_path / "1"), errors
        found = weights(tmp_path / str(parts))
        assert all(torch.allclose(one[k], found[k], atol=1e-6) for k in one)
        assert np.allclose(errors, expected, rtol=1e-5)


class Terms(Quiet):
    """Two terms with a gradient and one without."""

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        (x,) = batch.require("latents")
        return super().loss(batch) | {
            "weight": 0.1 * next(self.net.parameters()).square().sum(),
            "size": 1 + x.mean(),
        }


@pytest.mark.parametrize("changes", [{}, {"grad_accum_steps": 3}, {"cuda_graph": True}])
def test_the_logged_loss_is_the_sum_of_the_terms_with_a_gradient(tmp_path, changes):
    torch.manual_seed(0)
    model = Terms()
    trainer = Trainer("tokenizer", tmp_path, model, replace(TRAIN, **changes), IDENTITY)
    for batch in trainer.batches(Points()):
        losses = trainer.step(model.loss, batch)
        assert list(losses) == ["loss", "error", "weight", "size"]
        assert torch.allclose(losses["loss"], losses["error"] + losses["weight"])
    trainer._lock.close()
    lines = log(tmp_path)
    assert len(lines) == 12
    for line in lines:
        total = line["train/error"] + line["train/weight"]
        assert line["train/loss"] == pytest.approx(total, rel=1e-5)
        assert line["train/size"] > 1 and line["train/weight"] > 0
        assert line.keys() == {"step", "time"} | {
            f"train/{k}" for k in (*losses, "grad_norm", "learning_rate", "device_idle")
        }


def test_the_number_of_workers_changes_nothing(tmp_path):
    train(tmp_path / "none", steps=4)
    train(tmp_path / "two", steps=4, num_workers=2)
    assert equal(weights(tmp_path / "none"), weights(tmp_path / "two"))


# -- learning rates ------------------------------------------------------------------------------


@pytest.mark.parametrize("before, after", [(False, True), (True, False)])
def test_a_run_may_be_captured_or_not_at_a_resume(tmp_path, before, after):
    """A captured step reads its learning rates as tensors on the device; others, as numbers."""
    train(tmp_path / "whole")
    train(tmp_path / "parts", stop_at=5, cuda_graph=before)
    resumed = train(tmp_path / "parts", cuda_graph=after)
    found, expected = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    assert all(torch.allclose(found[k], expected[k], atol=1e-6) for k in expected)
    rates = [group["lr"] for group in resumed.step_fn.optimizer.param_groups]
    assert [isinstance(rate, Tensor) for rate in rates] == [after]


class TwoRates(Line):
    """Two lines that learn the same at two rates: the second at a tenth of the first's."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 1)
        self.slow = nn.Linear(1, 1)
        self.slow.load_state_dict(self.net.state_dict())
        self.start = {k: v.clone() for k, v in self.net.state_dict().items()}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        (x,) = batch.require("latents")
        fast, slow = self.net(x), self.slow(x)
        # the same gradient at every step, whatever the weights
        return {"fast": fast.mean(), "slow": slow.mean()}

    def param_groups(self) -> list[dict[str, Any]]:
        return [
            {"params": list(self.net.parameters())},
            {"params": list(self.slow.parameters()), "lr_scale": 0.1},
        ]

    def moved(self) -> list[tuple[Tensor, Tensor]]:
        """By how much each weight has changed: at the full rate, and at a tenth."""
        return [
            (fast - self.start[name], slow - self.start[name])
            for (name, fast), slow in zip(
                self.net.state_dict().items(), self.slow.state_dict().values(), strict=True
            )
        ]


@pytest.mark.parametrize("changes", [{}, {"cuda_graph": True}, {"schedule": "constant"}])
def test_a_group_with_lr_scale_learns_at_that_part_of_the_rate_under_a_resume_too(
    tmp_path, changes
):
    given = {"model": TwoRates, "weight_decay": 0.0} | changes
    models: list[Any] = []
    for folder, stops in (("whole", [None]), ("parts", [5, None])):
        for stop_at in stops:
            trainer = train(tmp_path / folder, stop_at=stop_at, **given)
            models.append(trainer.model)
            first, second = trainer.step_fn.optimizer.param_groups
            assert first["lr_scale"] == 1 and second["lr_scale"] == 0.1
            assert float(second["lr"]) == pytest.approx(0.1 * float(first["lr"]))
    for model in models:  # Adam's step is the rate, whatever the size of the gradient
        for fast, slow in model.moved():
            assert fast.abs().max() > 2e-3
            assert torch.allclose(slow, 0.1 * fast, rtol=1e-2, atol=1e-6)
    whole, stopped, resumed = (model.state_dict() for model in models)
    assert equal(whole, resumed) and not equal(whole, stopped)


# -- losses and gradients that are not finite ----------------------------------------------------


def test_a_loss_that_is_not_finite_stops_with_the_checkpoint_whole(tmp_path):
    train(tmp_path, stop_at=4)
    torch.manual_seed(0)
    line = Line()
    trainer = Trainer("tokenizer", tmp_path, line, TRAIN, IDENTITY)
    with pytest.raises(ValueError, match="the loss is not finite at step 4"):
        take_steps(trainer, times(line, float("nan")))
    assert last(tmp_path)["step"] == 4


def test_a_gradient_that_is_not_finite_is_not_applied(tmp_path):
    torch.manual_seed(0)
    line = Line()
    trainer = Trainer("tokenizer", tmp_path, line, TRAIN, IDENTITY)

    def rooted(batch: Batch) -> dict[str, Tensor]:
        return {"error": (0 * line.net(*batch.require("latents"))).abs().sqrt().mean()}

    before = {k: v.clone() for k, v in line.state_dict().items()}
    with pytest.raises(ValueError, match="the gradient is not finite at step 0"):
        take_steps(trainer, rooted)
    assert equal(before, line.state_dict())


def test_where_a_gpu_is_not_waited_for_nothing_infinite_is_handed_on(tmp_path):
    train(tmp_path, stop_at=4)
    before = (tmp_path / "last.pt").read_bytes()
    torch.manual_seed(0)
    line = Line()
    trainer = Trainer("tokenizer", tmp_path, line, replace(TRAIN, log_every=100), IDENTITY)
    loss = times(line, float("nan"))
    trainer.nan_guard.immediate = False
    batches = trainer.batches(Points())
    for _ in range(2):  # nothing is looked at before the checkpoint after step 6
        batch = next(batches)
        trainer.step(loss, batch)
    assert all(p.isnan().all() for p in line.parameters())

    def log_step() -> None:
        trainer.train = replace(trainer.train, log_every=1)
        trainer.step(loss, batch)

    def validate() -> None:
        trainer.save_best({"error": 1.0})

    acts = (validate, trainer.save, trainer.ema_model().__enter__, lambda: next(batches), log_step)
    for act in acts:
        with pytest.raises(ValueError, match="the loss is not finite at step 4"):
            act()
    assert (tmp_path / "last.pt").read_bytes() == before
