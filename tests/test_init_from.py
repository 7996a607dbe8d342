"""Fine-tuning: weights of another run, what is taken of them, and what stays frozen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import train_dynamics
from data.actions import ActionSpec
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from models.controllers.policy import LatentPolicy, PolicyConfig
from models.dynamics.rssm import RssmConfig
from models.tokenizers.tokenizer import LatentSpec
from pipeline import checkpoint as ckpt
from pipeline.training.init_from import _of_actions
from pipeline.training.train_config import TrainConfig
from pipeline.training.trainer import Trainer

CONFIG = RssmConfig(
    deter_dim=32, num_groups=4, num_classes=4, hidden_dim=16, num_blocks=4, embed_dim=24,
    channels=8, context_frames=3, clip_length=6,
)  # fmt: skip
TRAIN = TrainConfig(
    steps=6, batch_size=4, learning_rate=1e-2, warmup_steps=0, eval_every=6, save_every=3,
    log_every=1, schedule="constant", precision="fp32",
)  # fmt: skip


def config(run: Path, **train: Any) -> train_dynamics.Config:
    return train_dynamics.Config(
        run, CONFIG, num_eval_clips=2, train=replace(TRAIN, **train), device="cpu"
    )


def a_run(folder: Path, **shards: Any) -> Path:
    given: dict[str, Any] = {"episodes": 6, "length": 24, "size": 32} | shards
    write_toy_shards(folder / "shards", **given)
    return folder


def saved(run: Path, name: str = "last.pt") -> dict[str, Any]:
    return ckpt.load(run / "dynamics" / name, "dynamics")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = a_run(tmp_path_factory.mktemp("first"))
    train_dynamics.main(config(run))
    return run


def begun(monkeypatch: pytest.MonkeyPatch, run: Path, **train: Any) -> dict[str, torch.Tensor]:
    """The weights that a training begins with."""
    found: dict[str, torch.Tensor] = {}

    def stop(self: Trainer[Any], *_: Any) -> None:
        found.update({k: v.clone() for k, v in self.model.state_dict().items()})
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "step", stop)
        train_dynamics.main(config(run, **train))
    return found


def test_a_frozen_encoder_is_bit_equal_and_nowhere_else(tmp_path: Path, first: Path):
    run = a_run(tmp_path, seed=1)
    train_dynamics.main(config(run, init_from=str(first), freeze=("encoder.*",)))
    given, last, best = saved(first, "best.pt")["model"], saved(run), saved(run, "best.pt")
    names = [n for n in given if n.startswith("encoder.")]
    assert len(names) == 7
    for name in names:
        assert torch.equal(last["model"][name], given[name]), name
        assert torch.equal(best["model"][name], given[name]), name
        assert name not in last["ema"]
    weights = len([n for n in last["model"] if not n.startswith(("encoder.", "background."))])
    trained = sum(len(group["params"]) for group in last["optimizer"]["param_groups"])
    assert trained == len(last["ema"]) == weights
    assert not torch.equal(last["model"]["cell.deter_proj.weight"],
                           given["cell.deter_proj.weight"])  # fmt: skip


def test_at_another_resolution_what_has_its_shape_is_begun_anew_and_listed(
    tmp_path: Path, first: Path, capsys: pytest.CaptureFixture[str], monkeypatch
):
    run = a_run(tmp_path, size=48)
    weights = begun(monkeypatch, run, init_from=str(first))
    given = saved(first, "best.pt")["model"]
    printed = capsys.readouterr().out
    (line,) = [x for x in printed.splitlines() if "of another shape there" in x]
    differing = [n for n in given if given[n].shape != weights[n].shape]
    assert "background.mean" in differing and "decoder.dense.weight" in differing
    for name, value in weights.items():
        assert (name in line) == (name in differing)
        assert name in differing or torch.equal(value, given[name]), name
    assert "background.mean (36, 192) not (16, 192)" in line
    assert f"init: {len(weights) - len(differing)} tensors from" in printed
    assert not weights["background.mean"].any()  # it is taken from the new data


def test_with_another_action_space_what_reads_actions_is_begun_anew(
    tmp_path: Path, first: Path, capsys: pytest.CaptureFixture[str], monkeypatch
):
    run = a_run(tmp_path, discrete=True)
    weights = begun(monkeypatch, run, init_from=str(first))
    given = saved(first, "best.pt")["model"]
    printed = capsys.readouterr().out
    assert "not in the checkpoint: cell.action_emb.0.table.weight" in printed
    assert all(torch.equal(weights[n], given[n]) for n in weights if "action_emb.0" not in n)


def test_an_action_space_of_the_same_shape_is_another_one_too(
    tmp_path: Path, first: Path, capsys: pytest.CaptureFixture[str], monkeypatch
):
    run = a_run(tmp_path)
    turned = replace(EpisodeDataset(run / "shards").actions, names=("up", "down"))
    monkeypatch.setattr(ActionSpec, "from_dict", staticmethod(lambda _: turned))
    weights = begun(monkeypatch, run, init_from=str(first))
    given = saved(first, "best.pt")["model"]
    line = "since the action space is another one: cell.action_emb.0.linear.weight, cell.action"
    assert line in capsys.readouterr().out
    name = "cell.action_emb.0.linear.weight"
    assert not torch.equal(weights[name], given[name])
    assert torch.equal(weights["cell.deter_proj.weight"], given["cell.deter_proj.weight"])


def test_the_layer_that_gives_actions_is_of_the_action_space():
    actions = ActionSpec("discrete", ("a", "b"))
    policy = LatentPolicy(PolicyConfig(), LatentSpec("continuous", (1, 1), 8), actions)
    assert _of_actions(policy) == {"head.1.6.weight", "head.1.6.bias"}


def rates(run: Path) -> set[float]:
    groups = saved(run)["optimizer"]["param_groups"]
    return {round(float(group["lr"]), 9) for group in groups}


def test_the_learning_rate_is_a_tenth_also_after_a_resume(tmp_path: Path, first: Path, capsys):
    assert rates(first) == {1e-2}
    run = a_run(tmp_path)
    train_dynamics.main(config(run, init_from=str(first)))
    assert rates(run) == {1e-3}
    assert "the learning rate is 0.001, 0.1 of --train.learning-rate" in capsys.readouterr().out
    train_dynamics.main(config(run, steps=8))  # not said again
    assert saved(run)["step"] == 8 and rates(run) == {1e-3}
    train_dynamics.main(config(run, steps=9, init_from=str(first), init_lr_scale=1.0))
    assert rates(run) == {1e-2}


def test_a_fine_tuning_that_is_stopped_equals_one_that_is_not(tmp_path: Path, first: Path):
    made = {"init_from": str(first), "freeze": ("decoder.*",)}
    runs = [a_run(tmp_path / name) for name in ("whole", "parts")]
    train_dynamics.main(config(runs[0], **made))
    step = Trainer.step
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def step_or_stop(self: Trainer[Any], *inputs: Any) -> Any:
            losses = step(self, *inputs)
            self._stop_requested = self.global_step == 3
            return losses

        patch.setattr(Trainer, "step", step_or_stop)
        train_dynamics.main(config(runs[1], **made))
    assert saved(runs[1])["step"] == 3
    train_dynamics.main(config(runs[1], freeze=("decoder.*",)))
    whole, parts = (saved(run) for run in runs)
    assert whole["fingerprint"] == parts["fingerprint"] and whole["best"] == parts["best"]
