"""A training that is resumed: from where, with which settings, weights, recordings and log."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer import IDENTITY, TRAIN, Line, equal, last, log, train

from models.dynamics.genie import GenieConfig
from models.dynamics.latent_actions import LatentActionConfig
from models.dynamics.rssm import RssmConfig
from models.registry import describe
from pipeline import checkpoint as ckpt
from pipeline.training.logger import Logger
from pipeline.training.train_step import TrainStep
from pipeline.training.trainer import Trainer


@pytest.mark.parametrize("schedule", ["cosine", "plateau", "constant"])
def test_k_plus_m_steps_equal_k_stop_resume_m(tmp_path, schedule):
    train(tmp_path / "whole", schedule=schedule)
    for stop in (5, 8):
        train(tmp_path / "parts", stop_at=stop, schedule=schedule)
        assert last(tmp_path / "parts")["step"] == stop
    train(tmp_path / "parts", schedule=schedule)
    whole, parts = last(tmp_path / "whole"), last(tmp_path / "parts")
    assert whole["step"] == parts["step"] == 12
    assert equal(whole["model"], parts["model"]) and equal(whole["ema"], parts["ema"])
    assert whole["best"] == parts["best"] and whole["fingerprint"] == parts["fingerprint"]
    steps = [line["step"] for line in log(tmp_path / "parts") if "train/error" in line]
    assert steps == list(range(1, 13))


def test_recomputing_may_change_at_a_resume(tmp_path):
    def begin(**transformer: Any) -> Trainer[Line]:
        config = {"kind": "line", "transformer": transformer}
        return Trainer("tokenizer", tmp_path, Line(), TRAIN, IDENTITY | {"config": config})

    trainer = begin(width=8)  # as before there was such a setting
    trainer.save()
    trainer._lock.close()
    begin(width=8, activation_checkpointing=True)._lock.close()
    with pytest.raises(ValueError, match="was begun with transformer"):
        begin(width=9, activation_checkpointing=True)


def test_changed_settings_are_refused(tmp_path):
    train(tmp_path, stop_at=4)
    other = IDENTITY | {"config": {"kind": "curve"}}
    with pytest.raises(ValueError, match=r"was begun with kind = line, but now it is curve"):
        Trainer("tokenizer", tmp_path, Line(), TRAIN, other)


def test_a_training_from_before_a_setting_was_added_resumes_with_its_default(tmp_path):
    def begin(**changed: Any) -> None:
        config = describe(RssmConfig()) | changed
        config = {name: value for name, value in config.items() if value is not None}
        trainer = Trainer("tokenizer", tmp_path, Line(), TRAIN, IDENTITY | {"config": config})
        trainer.save()
        trainer._lock.close()

    begin(frameskip=None, residual_prior=None)
    with pytest.raises(ValueError, match="begun with residual_prior = False, but now it is True"):
        begin(residual_prior=True)
    begin()


def test_the_same_where_the_setting_is_of_a_part(tmp_path):
    before = describe(GenieConfig())
    del before["latent_actions"]["linear_length"]
    begin(tmp_path, {"config": before})
    begin(tmp_path, {"config": describe(GenieConfig())})
    other = GenieConfig(latent_actions=LatentActionConfig(linear_length=1.0))
    with pytest.raises(ValueError, match="latent_actions.linear_length = 0.5, but now it is 1.0"):
        begin(tmp_path, {"config": describe(other)})


def test_a_stage_resumes_with_the_settings_that_it_was_begun_with(tmp_path):
    begin(tmp_path, {})  # before they were kept
    begin(tmp_path, {"settings": {}})  # before this stage had any
    for _ in range(2):
        begin(tmp_path, {"settings": {"event_share": 0.5, "auxiliary": []}})
    with pytest.raises(ValueError, match=r"begun with event_share = 0.5, but now it is 0.0; --res"):
        begin(tmp_path, {"settings": {"event_share": 0.0, "auxiliary": []}})


@pytest.mark.parametrize("key", ["bc", "parent"])
def test_a_run_on_another_checkpoint_is_refused(tmp_path, key):
    def begin(fingerprint: str) -> Trainer[Line]:
        of = {key: {"path": "bc/best.pt", "fingerprint": fingerprint}}
        return Trainer("tokenizer", tmp_path, Line(), TRAIN, IDENTITY | of)

    for _ in range(2):
        trainer = begin("one")
        trainer.save()
        trainer._lock.close()
    with pytest.raises(ValueError, match="begun on bc/best.pt with fingerprint one, but now"):
        begin("two")


def test_a_best_checkpoint_in_place_of_the_last_is_refused(tmp_path):
    train(tmp_path)
    (tmp_path / "last.pt").write_bytes((tmp_path / "best.pt").read_bytes())
    with pytest.raises(ValueError, match=r"last\.pt holds no ema, optimizer.*--restart") as e:
        Trainer("tokenizer", tmp_path, Line(), TRAIN, IDENTITY)
    assert "\n" not in str(e.value)


def recordings(dataset: str, *train: int) -> dict[str, Any]:
    digests = torch.tensor(train, dtype=torch.int64)
    return {"recordings": {"dataset": dataset, "train": digests, "inherited": digests[:0]}}


def begin(folder: Path, metadata: dict[str, Any], **changes: Any) -> Trainer[Line]:
    trainer = Trainer("tokenizer", folder, Line(), replace(TRAIN, **changes), IDENTITY | metadata)
    trainer.save()
    trainer._lock.close()
    return trainer


def test_a_run_on_other_recordings_is_refused(tmp_path):
    begin(tmp_path, recordings("one", 1, 2, 3))
    begin(tmp_path, recordings("moved, or made again", 1, 2, 3))
    with pytest.raises(
        ValueError, match="of its 3 training episodes 2 are among the 4 of now; --r"
    ):
        begin(tmp_path, recordings("split anew", 2, 3, 4, 5))


def test_a_run_whose_recordings_are_not_known_resumes_and_does_not_learn_them(tmp_path):
    begin(tmp_path, {})
    begin(tmp_path, recordings("one", 1))
    assert last(tmp_path)["recordings"] is None


def test_a_run_remembers_what_the_weights_that_it_began_with_were_trained_on(tmp_path):
    begin(tmp_path / "tokenizer", recordings("one", 1, 2))
    source = str(tmp_path / "tokenizer" / "last.pt")
    for folder in ("two", "two"):  # it resumes
        begin(tmp_path / folder, recordings("two", 7), init_from=source)
        kept = last(tmp_path / folder)["recordings"]
        assert kept["dataset"] == "two" and kept["train"].tolist() == [7]
        assert kept["inherited"].tolist() == [1, 2]
    begin(tmp_path / "unknown", {})
    source = str(tmp_path / "unknown" / "last.pt")
    begin(tmp_path / "three", recordings("three", 9), init_from=source)
    assert last(tmp_path / "three")["recordings"]["inherited"] is None


def test_a_state_that_cannot_be_placed_is_not_told_as_damaged(tmp_path, monkeypatch):
    train(tmp_path, stop_at=4)

    def full(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TrainStep, "load_state_dict", full)
    with pytest.raises(ValueError, match=r"last\.pt is whole, but .*CUDA out of memory") as problem:
        Trainer("tokenizer", tmp_path, Line(), TRAIN, IDENTITY)
    assert "damaged" not in str(problem.value)


@pytest.mark.parametrize("key", ["ema", "optimizer"])
def test_a_state_of_other_weights_is_refused_in_one_line(tmp_path, key):
    train(tmp_path, stop_at=4)
    content = last(tmp_path)
    if key == "ema":
        content["ema"] = {}
    else:
        content["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3, 5)
    ckpt.save(tmp_path / "last.pt", content)
    with pytest.raises(ValueError, match=f"cannot take it over .*its {key}.* is not of the model"):
        Trainer("tokenizer", tmp_path, Line(), TRAIN, IDENTITY)


@pytest.mark.parametrize("line", [b"7", b"[1]", b"{", b'{"step": "a"}', b'{"step": 1, "a": "\xff'])
def test_a_broken_line_of_the_log_counts_as_not_there(tmp_path, line):
    train(tmp_path, stop_at=4)
    path = tmp_path / "log.jsonl"
    path.write_bytes(path.read_bytes() + line + b"\n" + b"[" * 100_000 + b"\n")
    train(tmp_path)
    steps = [entry["step"] for entry in log(tmp_path) if "train/error" in entry]
    assert steps == list(range(1, 13))


def test_a_log_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    logger = Logger(tmp_path, 0)
    monkeypatch.setattr(json, "dumps", lambda record: raise_full())
    with pytest.raises(ValueError, match=r"log\.jsonl was not written: No space left on device"):
        logger.write(1, {"loss": 0.5})


def raise_full() -> str:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
