"""The races of an RSSM's training step: all runners do the same work."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.areas import rssm_speed
from bench.areas.rssm_speed import CompiledRssm, LoopRssm, PlainRssm, TrainStep, check, random_batch
from bench.races.pairs import Incorrect, Options
from data.batch import Batch
from models.dynamics.rssm import Rssm
from models.method import Losses

SMALL: dict[str, Any] = {
    "deter_dim": 16, "num_groups": 2, "num_classes": 4, "hidden_dim": 8, "num_blocks": 4,
    "embed_dim": 8, "channels": 2,
}  # fmt: skip
CONFIG = replace(rssm_speed.PEER_CONFIGS["1m"], **SMALL)
ONCE = Options(rounds=1)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(rssm_speed, "FRAMES", 3)


def weights(step: TrainStep) -> dict[str, torch.Tensor]:
    return {name: weight.detach() for name, weight in step.model.named_parameters()}


def test_every_runner_has_the_losses_of_ours(uncompiled: None):
    kinds = {"ours": Rssm, "plain": PlainRssm, "loop": LoopRssm, "compiled": CompiledRssm}
    batch = random_batch(2)
    check({name: TrainStep(kind, batch, ONCE, CONFIG, "fp32") for name, kind in kinds.items()})


def test_a_runner_with_other_losses_is_not_timed(uncompiled: None):
    class OtherRssm(PlainRssm):
        def loss(self, batch: Batch) -> Losses:
            terms = super().loss(batch)
            return terms | {"kl": 1.001 * terms["kl"]}

    batch = random_batch(2)
    kinds = {"ours": Rssm, "other": OtherRssm}
    with pytest.raises(Incorrect, match="other: kl is .*, but ours is"):
        check({name: TrainStep(kind, batch, ONCE, CONFIG, "fp32") for name, kind in kinds.items()})


def test_a_captured_step_is_a_step(uncompiled: None):
    """On a CPU the function runs that a GPU would capture."""
    batch, steps = random_batch(2), []
    for captured in (False, True):
        step = TrainStep(Rssm, batch, ONCE, CONFIG, "fp32")
        run = step.captured()  # the background is seen
        run = run if captured else step
        torch.manual_seed(3)
        before = {name: weight.clone() for name, weight in weights(step).items()}
        for _ in range(5):
            run()
        assert step.model.background.known
        assert any(not torch.equal(before[name], weight) for name, weight in weights(step).items())
        steps.append(step)
    plain, captured = (weights(step) for step in steps)
    assert all(torch.equal(plain[name], captured[name]) for name in plain)


def test_the_sizes_of_the_bench_are_the_recipes():
    from pipeline import presets
    from train_dynamics import Config

    for size, config in rssm_speed.PEER_CONFIGS.items():
        stage = presets.apply(Config(), "dynamics", ["dreamer", size])
        assert stage.model == config


def test_a_peer_that_is_not_here_is_a_row_with_its_install_command(
    uncompiled: None, monkeypatch: pytest.MonkeyPatch
):
    def missing(*arguments: object) -> None:
        raise ImportError("no module named sheeprl")

    monkeypatch.setattr(rssm_speed.sheeprl, "world_step", missing)
    monkeypatch.setattr(rssm_speed, "PEER_CONFIGS", {"1m": CONFIG})
    rows = list(rssm_speed.next_to_peers(random_batch(2), ONCE, "step", "1m", "fp32"))
    assert [row.baseline for row in rows] == ["sheeprl"]
    assert "pip install --no-deps -r requirements-bench.txt" in rows[0].note
