"""A frame of MaskGIT dynamics beside the same weights without a cache."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.areas.genie_speed import (
    LARGE,
    PLAIN,
    SMALL,
    check,
    measure,
    random_context,
    random_model,
    start,
    workload,
)
from bench.peers.plain_genie import PlainMaskGit
from bench.races.pairs import Incorrect, Options
from models.layers.transformer import TransformerConfig
from models.tokenizers.st_vivit import StVivit
from models.tokenizers.tokenizer import LatentSpec

NARROW = TransformerConfig(32, 1, 2, 32, context_frames=1)
TINY = workload("tiny", (32, 2, 2, 64, 3), 3, LatentSpec("discrete", (4, 4), 8, 50, 2))


@torch.no_grad()
def test_without_a_cache_the_same_codes_are_predicted_and_other_weights_are_noticed():
    model = random_model(TINY)
    plain = PlainMaskGit(model).eval()
    check(model, plain)
    block: Any = plain.transformer.weights.blocks[0]
    block.over_time.out.weight.mul_(1.5)
    with pytest.raises(Incorrect, match="outputs differ"):
        check(model, plain)
    block.over_time.out.weight.div_(1.5)
    plain.class_head.neg_()
    with pytest.raises(Incorrect, match="codes differ"):
        check(model, plain)


@torch.no_grad()
def test_a_predicted_frame_depends_on_all_frames_of_the_context_and_on_the_action():
    model = random_model(TINY)
    latents, actions = random_context(model, 0, torch.device("cpu"))

    def predict(latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return model.step(start(model, latents, actions), actions[:, -1]).latents

    found = predict(latents, actions)
    for frame in range(latents.shape[1]):
        changed = latents.clone()
        changed[:, frame] = (changed[:, frame] + 1) % 50
        assert not torch.equal(predict(changed, actions), found)
    changed = actions.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 8
    assert not torch.equal(predict(latents, changed), found)


@pytest.mark.parametrize(("work", "size"), [(SMALL, "cpu"), (LARGE, "coinrun")])
def test_the_sizes_of_the_bench_are_the_recipes(work, size):
    from pipeline import presets
    from train_dynamics import Config as DynamicsConfig
    from train_tokenizer import Config as TokenizerConfig

    dynamics: Any = presets.apply(DynamicsConfig(), "dynamics", ["genie", size]).model
    assert work.config.transformer == dynamics.transformer
    assert work.config.sampling_steps == dynamics.sampling_steps
    tokenizer: Any = presets.apply(TokenizerConfig(), "tokenizer", ["genie", size]).model
    assert work.latents == StVivit(replace(tokenizer, encoder=NARROW, decoder=NARROW)).latents


def test_frames_and_passes_are_raced_with_bars_from_the_frames_that_are_saved():
    assert TINY.saved == pytest.approx(9 / 4)
    found = list(measure(Options(rounds=2), TINY, compiled=False))
    assert [row.baseline for row in found] == [PLAIN, PLAIN]
    assert [row.name.split(",")[0] for row in found] == [
        "frame of 3 passes", "ST-transformer over a frame",
    ]  # fmt: skip
    assert all(row.ratio and row.rounds == 2 for row in found)
