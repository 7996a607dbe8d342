"""Invalid settings are refused in one line, before anything is read."""

from __future__ import annotations

from typing import Any

import pytest

import train_dynamics
from data.actions import ActionSpec
from models import registry
from models.controllers.policy import PolicyConfig
from models.dynamics.predictor import PredictorConfig
from models.layers.transformer import TransformerConfig
from models.tokenizers.vqvae import VqVaeConfig
from pipeline import presets


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (PolicyConfig, {"min_std": 2.0}, "--min-std 2.0 is above --max-std 1.0"),
        (TransformerConfig, {"dim": 15}, "--dim 15 is not divisible by 6 heads of even width"),
        (TransformerConfig, {"dim": 6144, "num_layers": 500}, "--num-layers 500 of --dim 6144 and"),
        (VqVaeConfig, {"encoder_kernel": 4}, "--encoder-kernel 4 is even"),
        (VqVaeConfig, {"decoder_kernel": 2}, "--decoder-kernel 2 is even"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    config: type, values: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=f"^{message}"):
        config(**values)


def test_a_clip_of_the_predictor_is_a_multiple_of_frameskip_plus_one():
    PredictorConfig(frameskip=3, clip_length=7)
    with pytest.raises(ValueError, match="--clip-length 8 is not a multiple of .* 3, plus 1"):
        PredictorConfig(frameskip=3, clip_length=8)


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
