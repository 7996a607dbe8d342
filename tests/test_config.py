"""Settings that nothing can be made of are refused in one line, before anything is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import evaluate
import preprocess
import train_dynamics
from models.controllers.planner import PlannerConfig
from models.dynamics.llama import LlamaConfig
from models.dynamics.predictor import PredictorConfig
from models.layers.transformer import TransformerConfig
from models.tokenizers.vqvae import VqVaeConfig

TRANSFORMER = ("layers", "heads", "width", "hidden", "context")
PLANNER = ("samples", "iterations", "revisions", "best", "legs", "leg", "detours")
EVALUATE = ("windows", "play_frames", "task_episodes", "task_steps", "goal_pairs", "guided_keep")


@pytest.mark.parametrize(
    ("config", "flags", "name"),
    [
        *((TransformerConfig, "--model.transformer.", name) for name in TRANSFORMER),
        *((PlannerConfig, "--planner.", name) for name in PLANNER),
        *((VqVaeConfig, "--model.", name) for name in ("codes", "codebooks", "downsample", "stem")),
    ],
)
@pytest.mark.parametrize("value", [0, -2])
def test_what_counts_starts_at_one(config: type, flags: str, name: str, value: int):
    with pytest.raises(ValueError, match=f"^{flags}{name} {value} is below 1; give 1 or more$"):
        config(**{name: value})


@pytest.mark.parametrize(
    ("config", "value"),
    [(LlamaConfig, 2), (LlamaConfig, -0.1), (PredictorConfig, -1), (PredictorConfig, float("nan"))],
)
def test_what_is_no_share_and_no_weight_of_imagined_clips_is_refused(config: type, value: float):
    with pytest.raises(ValueError, match=f"--model.imagined {value} is no"):
        config(imagined=value)


@pytest.mark.parametrize("name", EVALUATE)
def test_an_evaluation_of_nothing_is_refused(tmp_path: Path, name: str):
    flag = name.replace("_", "-")
    config: Any = evaluate.Config(run=tmp_path)
    with pytest.raises(ValueError, match=f"^--{flag} 0 is below 1"):
        evaluate.main(replace(config, **{name: 0}))
    assert not list(tmp_path.iterdir())


def test_an_evaluation_may_be_without_films_but_not_with_fewer(tmp_path: Path):
    evaluate.check(evaluate.Config(num_videos=0))
    with pytest.raises(ValueError, match="--films -1 is below 0; 0 draws none"):
        evaluate.main(evaluate.Config(run=tmp_path, num_videos=-1))


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"frames": 1}, "--frames 1 leaves nothing"), ({"windows": 0}, "--windows 0 is below 1")],
)
def test_dynamics_are_not_learnt_from_nothing(tmp_path: Path, fields: Any, said: str):
    with pytest.raises(ValueError, match=said):
        train_dynamics.main(train_dynamics.Config(run=tmp_path, **fields))


@pytest.mark.parametrize("resolution", [15, -3, 100_000])
def test_frames_are_neither_dots_nor_posters(tmp_path: Path, resolution: int):
    said = f"--resolution {resolution} is no picture; give 16 to 1024"
    with pytest.raises(ValueError, match=said):
        preprocess.pusht(preprocess.PushTConfig(run=tmp_path, resolution=resolution))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["goals", "dinov2", "latent"])
def test_codes_one_by_one_and_vectors_do_not_go_together(method: str):
    config = train_dynamics.PRESETS[method](train_dynamics.Config())
    with pytest.raises(ValueError, match=f"--preset tokens .*{method}.* leave out the one"):
        train_dynamics.PRESETS["tokens"](config)
