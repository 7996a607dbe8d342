"""Episodes that are shorter than what is asked for: horizons shrink, the rest is said at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from untrained_run import write_run

import evaluate
import train_dynamics
import train_tokenizer
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from evaluation import validation
from evaluation.measures.world_clips import horizons_within
from evaluation.session import Session
from models.dynamics.predictor import PredictorConfig
from models.layers.transformer import TransformerConfig
from pipeline import presets
from pipeline.inference.load_world import load_world


def dataset(folder: Path, length: int) -> EpisodeDataset:
    return EpisodeDataset(write_toy_shards(folder / "shards", episodes=6, length=length))


def test_horizons_are_those_that_the_longest_episode_reaches(tmp_path):
    made = dataset(tmp_path, 12)
    assert horizons_within(made, "test", 3, (1, 4, 9, 10)) == [1, 4, 9]
    assert horizons_within(made, "test", 3, (16, 12)) == [9]
    assert horizons_within(made, "test", 12, (16, 2)) == [1]


def test_a_world_is_validated_as_far_as_episodes_go(tmp_path):
    made = dataset(tmp_path, 9)
    world = load_world(write_run(tmp_path, made, controllers=False))
    metrics = validation.validate_world(world, made, 4)
    # three frames are its context
    assert set(metrics) == {"psnr", "psnr_1", "psnr_4", "delta_psnr_4"}
    assert len(validation.rollout_rows(world, made, 1)) == 2


def test_an_evaluation_says_which_horizons_are_left(tmp_path, capsys):
    run = write_run(tmp_path, dataset(tmp_path, 7))
    config = replace(
        presets.apply(evaluate.Config(), "evaluate", ["pusht", "debug"]), run=run, num_workers=1
    )
    with Session(run, None, None, 1, 2) as session:
        found = evaluate.within_episodes(replace(config, horizons=(8, 1, 4)), session)
        assert found.horizons == (1, 4)
        assert "horizons 1 4: the longest held-out episode has 7 frames" in capsys.readouterr().out


def test_clips_that_are_too_long_are_told_with_their_flag_before_training(tmp_path):
    write_run(tmp_path, dataset(tmp_path, 11), method="keypoints", controllers=False)
    config = presets.apply(train_dynamics.Config(), "dynamics", ["keypoints", "debug"])
    small = TransformerConfig(dim=32, num_layers=1, num_heads=2, mlp_dim=64, context_frames=3)
    (tmp_path / "dynamics" / "best.pt").unlink()
    for model, answer in (
        (
            PredictorConfig(transformer=small),
            "has the 21 frames of a clip .* lower --model.clip-length",
        ),
        (
            PredictorConfig(transformer=small, clip_length=11),
            "lower --model.transformer.context-frames",
        ),
    ):
        with pytest.raises(ValueError, match=answer):
            train_dynamics.main(replace(config, run=tmp_path, model=model))
    assert not list(tmp_path.rglob("last.pt")) and not (tmp_path / "latents").exists()


def test_a_tokenizer_learns_from_episodes_of_one_frame_and_dynamics_refuses_them(tmp_path):
    dataset(tmp_path, 1)
    config = presets.apply(train_tokenizer.Config(), "tokenizer", ["pusht", "debug"])
    model = replace(config.model, image_size=(32, 32))  # type: ignore[type-var]
    train = replace(config.train, steps=2, eval_every=2)
    train_tokenizer.main(replace(config, run=tmp_path, model=model, train=train))
    log = (tmp_path / "tokenizer" / "log.jsonl").read_text()
    assert "validation/psnr" in log and "code_flip_rate" not in log  # there is no next frame
    dynamics = presets.apply(train_dynamics.Config(), "dynamics", ["pusht", "debug"])
    with pytest.raises(ValueError, match="frames of a clip"):
        train_dynamics.main(replace(dynamics, run=tmp_path))
    assert not list((tmp_path / "dynamics").glob("*.pt"))
