"""Invalid settings are refused in one line, before anything is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import evaluate
import preprocess
import train_dynamics
from data.actions import ActionSpec
from models import registry
from models.controllers.planner import PlannerConfig
from models.dynamics.llama import LlamaConfig
from models.dynamics.predictor import PredictorConfig
from models.layers.transformer import TransformerConfig
from models.tokenizers.vqvae import VqVaeConfig
from pipeline import presets

TRANSFORMER = ("num_layers", "num_heads", "dim", "mlp_dim", "context_frames")
PLANNER = (
    "num_samples", "iterations", "warm_start_iterations", "num_elites", "horizon", "action_block",
    "prior_noise_blocks",
)  # fmt: skip
VQVAE = ("codebook_size", "num_codebooks", "downsample", "patch_size")
EVALUATE = (
    "num_clips", "play_frames", "task_episodes", "task_max_steps", "goal_pairs",
    "prior_receding_horizon",
)  # fmt: skip


@pytest.mark.parametrize(
    ("config", "flags", "name"),
    [
        *((TransformerConfig, "--model.transformer.", name) for name in TRANSFORMER),
        *((PlannerConfig, "--planner.", name) for name in PLANNER),
        *((VqVaeConfig, "--model.", name) for name in VQVAE),
    ],
)
@pytest.mark.parametrize("value", [0, -2])
def test_counts_below_one_are_refused(config: type, flags: str, name: str, value: int):
    flag = flags + name.replace("_", "-")
    with pytest.raises(ValueError, match=f"^{flag} {value} is below 1; give 1 or more$"):
        config(**{name: value})


@pytest.mark.parametrize("value", [2, -0.1])
def test_scheduled_sampling_outside_0_to_1_is_refused(value: float):
    with pytest.raises(ValueError, match=f"--model.scheduled-sampling {value} must be between"):
        LlamaConfig(scheduled_sampling=value)


@pytest.mark.parametrize("value", [-1, float("nan")])
def test_a_negative_rollout_weight_is_refused(value: float):
    with pytest.raises(ValueError, match=f"--model.rollout-weight {value} must be 0 or more"):
        PredictorConfig(rollout_weight=value)


@pytest.mark.parametrize("value", [1, 0])
def test_a_training_clip_has_two_frames_or_more(value: int):
    for config in (LlamaConfig, PredictorConfig):
        with pytest.raises(ValueError, match=f"--model.clip-length {value} "):
            config(clip_length=value)


def test_a_clip_of_the_predictor_is_a_multiple_of_frameskip_plus_one():
    PredictorConfig(frameskip=3, clip_length=7)
    with pytest.raises(ValueError, match="--model.clip-length 8 is not a multiple of .* 3, plus 1"):
        PredictorConfig(frameskip=3, clip_length=8)


@pytest.mark.parametrize("name", EVALUATE)
def test_an_evaluation_of_nothing_is_refused(tmp_path: Path, name: str):
    flag = name.replace("_", "-")
    config: Any = evaluate.Config(run=tmp_path)
    with pytest.raises(ValueError, match=f"^--{flag} 0 is below 1"):
        evaluate.main(replace(config, **{name: 0}))
    assert not list(tmp_path.iterdir())


def test_an_evaluation_may_have_no_videos_but_not_fewer(tmp_path: Path):
    evaluate.check(evaluate.Config(num_videos=0))
    with pytest.raises(ValueError, match="--num-videos -1 is below 0; 0 draws none"):
        evaluate.main(evaluate.Config(run=tmp_path, num_videos=-1))


def test_a_validation_without_clips_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="--num-eval-clips 0 is below 1"):
        train_dynamics.main(train_dynamics.Config(run=tmp_path, num_eval_clips=0))


@pytest.mark.parametrize("resolution", [15, -3, 100_000])
def test_an_image_size_out_of_range_is_refused(tmp_path: Path, resolution: int):
    message = f"--resolution {resolution} must be between 16 and 1024"
    with pytest.raises(ValueError, match=message):
        preprocess.pusht(preprocess.PushTConfig(run=tmp_path, resolution=resolution))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("recipe", ["keypoints", "dinov2", "lewm"])
def test_autoregressive_decoding_of_continuous_latents_is_refused(recipe: str):
    with pytest.raises(ValueError, match="--preset autoregressive sets decoding, .*Predictor"):
        presets.apply(train_dynamics.Config(), "dynamics", [recipe, "autoregressive"])


@pytest.mark.parametrize("change, said", [({"new": 1}, "an unknown new"), (None, "no channels")])
def test_a_config_of_another_version_is_refused_not_filled_in(change, said):
    values = registry.describe(registry.default_config("keypoints"))
    if change is None:
        del values["channels"]
    else:
        values |= change
    data = registry.DataSpec((64, 64), ActionSpec("none", ()))
    with pytest.raises(ValueError, match=f"KeypointsConfig with {said} was written by another"):
        registry.build_tokenizer(values, data)


def test_the_kind_of_a_config_is_that_of_its_own_file():
    for name in registry.TOKENIZERS | registry.DYNAMICS | registry.CONTROLLERS:
        config = registry.default_config(name)
        assert registry.describe(config)["kind"] == name
        assert type(config).__module__.endswith(f".{name}")
