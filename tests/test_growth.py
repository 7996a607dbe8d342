"""Data that grows: trainings go on from their checkpoints, and an episode stays in its split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_resume import recordings
from test_trainer import IDENTITY, TRAIN, Line, last

import evaluate
import play
import preprocess
import train_controller
import train_dynamics
import train_tokenizer
from data.shards.episode_dataset import EpisodeDataset
from models.tokenizers.codes import CodebookEmbedding
from pipeline import checkpoint as ckpt
from pipeline import presets
from pipeline.inference.load_world import load_world
from pipeline.lineage import count_trained_on, follows
from pipeline.recording.gym_config import GymConfig
from pipeline.training.trainer import Trainer

SHARDS = {"parent": {"path": "shards", "fingerprint": "one"}}


def begin(folder: Path, metadata: dict[str, Any]) -> Trainer[Line]:
    trainer = Trainer("tokenizer", folder, Line(), TRAIN, IDENTITY | metadata)
    trainer._lock.close()
    return trainer


def learn(trainer: Trainer[Line]) -> None:
    """Move the weights, and their averages."""
    with torch.no_grad():
        for weight in (*trainer.model.parameters(), *trainer.step_fn.ema.weights.values()):
            weight += 1.0


def finish(trainer: Trainer[Line], error: float) -> None:
    trainer.global_step = trainer.train.steps
    trainer.bad_validations = 3
    trainer.save()
    trainer.save_best({"error": error})
    trainer.save()


def test_a_training_takes_as_many_steps_again_and_chooses_its_best_anew(tmp_path: Path):
    trainer = begin(tmp_path, SHARDS | recordings("one", 1, 2))
    finish(trainer, 0.25)
    assert begin(tmp_path, SHARDS | recordings("one", 1, 2)).finished
    before = ckpt.load(tmp_path / "best.pt", "tokenizer")["fingerprint"]

    grown = {"parent": {"path": "shards", "fingerprint": "two"}} | recordings("two", 1, 2, 3)
    trainer = begin(tmp_path, grown)
    assert not trainer.finished and trainer.train.steps == 2 * TRAIN.steps
    assert trainer.best is None and trainer.bad_validations == 0
    assert (tmp_path / "best.pt").exists()  # until there is a better one, on the episodes of now
    learn(trainer)
    finish(trainer, 0.5)  # worse than before, on other episodes
    best = ckpt.load(tmp_path / "best.pt", "tokenizer")
    assert best["best"] == 0.5 and best["fingerprint"] != before
    assert best["lineage"] == [before] and follows(best, before)
    assert last(tmp_path)["recordings"]["train"].tolist() == [1, 2, 3]

    assert begin(tmp_path, grown).finished  # it has grown once
    more = {"parent": {"path": "shards", "fingerprint": "three"}} | recordings("three", 1, 2, 3, 4)
    trainer = begin(tmp_path, more)
    assert trainer.train.steps == 3 * TRAIN.steps
    assert trainer.metadata["lineage"] == [before, best["fingerprint"]]


def test_shards_with_more_held_out_episodes_alone_are_gone_on_with(tmp_path: Path):
    """Or with copies of training episodes, as a world without chance gives them."""
    finish(begin(tmp_path, SHARDS | recordings("one", 1, 2)), 0.25)
    trainer = begin(tmp_path, {"parent": {"path": "shards", "fingerprint": "two"}}
                    | recordings("two", 1, 2))  # fmt: skip
    assert trainer.finished and trainer.best == 0.25
    with pytest.raises(ValueError, match="was begun on shards with fingerprint"):
        begin(tmp_path, {"parent": {"path": "tokenizer", "fingerprint": "other"}}
              | recordings("one", 1, 2))  # fmt: skip


def test_data_that_lost_an_episode_has_not_grown(tmp_path: Path):
    finish(begin(tmp_path, SHARDS | recordings("one", 1, 2)), 0.25)
    with pytest.raises(ValueError, match="of its 2 training episodes 1 are among the 4 of now"):
        begin(tmp_path, SHARDS | recordings("two", 1, 3, 4, 5))


def test_a_parent_that_followed_as_data_grew_is_taken_and_another_is_not(tmp_path: Path):
    def child(fingerprint: str, *train: int) -> Trainer[Line]:
        below = {"path": str(tmp_path / "tokenizer" / "best.pt"), "fingerprint": fingerprint}
        metadata = {"parent": below} | recordings(f"of {len(train)}", *train)
        trainer = Trainer("dynamics", tmp_path / "dynamics", Line(), TRAIN, IDENTITY | metadata)
        trainer._lock.close()
        return trainer

    path = tmp_path / "tokenizer"
    finish(begin(path, SHARDS | recordings("one", 1, 2)), 0.25)
    old = ckpt.load(path / "best.pt", "tokenizer")["fingerprint"]
    child(old, 1, 2).save()
    trainer = begin(path, SHARDS | recordings("two", 1, 2, 3))
    learn(trainer)
    finish(trainer, 0.25)
    new = ckpt.load(path / "best.pt", "tokenizer")["fingerprint"]
    trainer = child(new, 1, 2, 3)
    assert trainer.metadata["parent"]["fingerprint"] == new != old
    trainer.save()
    with pytest.raises(ValueError, match="was begun on .* with fingerprint"):
        child("another", 1, 2, 3)


# -- a whole loop ----------------------------------------------------------------------------


SHORT = {"steps": 4, "eval_every": 2, "save_every": 2, "warmup_steps": 1}


def stage(run: Path, name: str, module: Any, **changes: Any) -> None:
    config = presets.apply(module.Config(), name, ["pusht", "debug"])
    for part in ("train", "bc", "goal_policy_train"):
        if hasattr(config, part):
            short = {f"{part}.{key}": value for key, value in SHORT.items()}
            config = presets.changed(config, short, "short")
    if name == "controller":
        config = presets.changed(config, {"model.horizon": 4}, "short")
    module.main(replace(config, run=run, **changes))


def train(run: Path) -> None:
    for name, module in (
        ("tokenizer", train_tokenizer), ("dynamics", train_dynamics),
        ("controller", train_controller),
    ):  # fmt: skip
        changes = {"model": replace(module.Config().model, image_size=(32, 32), channels=16,
                                    num_res_blocks=1, codebook_size=32, latent_dim=8,
                                    vq_start_step=2)} if name == "tokenizer" else {}  # fmt: skip
        stage(run, name, module, **changes)


def collect(run: Path, **changes: Any) -> EpisodeDataset:
    config = GymConfig(run, env="CartPole-v1", episodes=10, resolution=32, num_workers=1)
    preprocess.gym(replace(config, **changes))
    return EpisodeDataset(run / "shards")


def test_the_loop_of_collecting_and_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    first = collect(tmp_path)
    train(tmp_path)
    checkpoints = [p for p in sorted(tmp_path.rglob("best.pt")) if p.parent.name != "shards"]
    assert len(checkpoints) == 4
    stages = {p: ckpt.load(p, next(s for s in ckpt.SCRIPTS if s in p.parts)) for p in checkpoints}

    second = collect(tmp_path, env="", policy=str(tmp_path))
    assert second.notes[-1]["policy"] == str(tmp_path)
    held_out = {s: set(first.episodes(s)) for s in ("validation", "test")}
    assert all(held_out[s] < set(second.episodes(s)) for s in ("validation", "test"))
    train(tmp_path)
    said = capsys.readouterr().out
    for path, before in stages.items():
        after = ckpt.load(path, before["stage"])
        assert after["growths"] == 1 and after["lineage"] == [before["fingerprint"]]
        assert after["step"] > before["step"]
        assert count_trained_on([after], second, "test") == 0
        assert len(after["recordings"]["train"]) == len(second.episodes("train"))
    assert said.count("resuming from step") == 4

    # the codes of the world are those of its tokenizer, which has gone on
    world = load_world(tmp_path)
    fresh = CodebookEmbedding(world.latents)
    fresh.load_codebook(world.tokenizer)
    found = [m for m in world.dynamics.modules() if isinstance(m, CodebookEmbedding)]
    assert found and all(
        torch.allclose(m.codebook.float(), fresh.codebook, atol=1e-2) for m in found
    )

    train(tmp_path)
    assert capsys.readouterr().out.count("finished, ") == 4
    stage(tmp_path, "evaluate", evaluate, num_workers=1, parts=("returns",))
    stage(tmp_path, "play", play, headless=True, compare_simulator=True, steps=3)
    assert (tmp_path / "play" / "rollout.mp4").exists()
    assert np.isin(first.sources, second.sources).all()
