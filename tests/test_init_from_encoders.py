"""Weights of another run for a tokenizer whose encoder was trained by others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.registry import describe
from models.tokenizers.frozen_encoder import FrozenEncoder, FrozenEncoderConfig
from models.tokenizers.image_vae import ImageVae, ImageVaeConfig
from pipeline import checkpoint as ckpt
from pipeline.training.init_from import Taken, init_from

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")


def vae(folder: Path, seed: int, **changes: Any) -> ImageVae:
    torch.manual_seed(seed)
    if not folder.exists():
        diffusers.AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
            block_out_channels=[8, 16], norm_num_groups=4,
        ).save_pretrained(folder)  # fmt: skip
    return ImageVae(
        replace(
            ImageVaeConfig((32, 32), str(folder), channels=8, downsamples=1, latent_dim=4),
            **changes,
        )
    )


def frozen(folder: Path, seed: int, **changes: Any) -> FrozenEncoder:
    torch.manual_seed(seed)
    if not folder.exists():
        transformers.Dinov2Model(
            transformers.Dinov2Config(
                hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=28
            )
        ).save_pretrained(folder)
    config = FrozenEncoderConfig((32, 32), str(folder), input_size=28, channels=16)
    return FrozenEncoder(replace(config, **changes))


def take(
    monkeypatch: pytest.MonkeyPatch, into: ImageVae | FrozenEncoder, source: Any, **config: Any
) -> Taken:
    checkpoint = {
        "model": {k: v for k, v in source.state_dict().items() if not config.get("sha256")
                  or k.startswith("decoder.")},
        "config": describe(source.config) | config, "actions": None, "fingerprint": "0",
    }  # fmt: skip
    monkeypatch.setattr(ckpt, "load", lambda *_: checkpoint)
    return init_from(into, __file__, Path("tokenizer"), "tokenizer")[0]


@pytest.mark.parametrize("make", [vae, frozen])
def test_an_encoder_that_was_asked_for_is_not_replaced(
    make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    into, source = make(tmp_path / "two", 2), make(tmp_path / "one", 1)
    before = {k: v.clone() for k, v in into.state_dict().items()}
    with pytest.raises(ValueError, match="it holds an encoder of .*one .*weights") as refused:
        take(monkeypatch, into, source)
    told = str(refused.value)
    assert f"--model.pretrained {tmp_path / 'two'} (weights" in told and "\n" not in told
    assert f"give --model.pretrained {tmp_path / 'one'}, or leave --train.init-from out" in told
    with pytest.raises(ValueError, match=r"it names an encoder of a/b .*--model.revision c0ffee"):
        take(monkeypatch, into, source, pretrained="a/b", revision="c0ffee", sha256="a" * 64)
    assert all(torch.equal(before[k], v) for k, v in into.state_dict().items())


@pytest.mark.parametrize("make", [vae, frozen])
def test_the_decoder_of_the_same_encoder_is_taken(
    make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = make(tmp_path / "one", 1)
    for weight in source.decoder.parameters():
        weight.data += 0.1
    into = make(tmp_path / "one", 2)
    take(monkeypatch, into, source)
    assert all(torch.equal(source.state_dict()[k], v) for k, v in into.state_dict().items())


def test_random_weights_and_those_that_are_trained_are_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    random = {"pretrained": "random"}
    source = vae(tmp_path / "one", 1, tuning="full", **random)
    into = vae(tmp_path / "one", 2, **random)
    take(monkeypatch, into, source)
    assert all(torch.equal(source.state_dict()[k], v) for k, v in into.state_dict().items())
    source, into = vae(tmp_path / "one", 1), vae(tmp_path / "two", 2, tuning="full")
    take(monkeypatch, into, source)
    assert all(torch.equal(source.state_dict()[k], v) for k, v in into.state_dict().items())
    with pytest.raises(ValueError, match="--model.tuning full goes on with that one"):
        take(monkeypatch, vae(tmp_path / "three", 3), into)
    with pytest.raises(ValueError, match="--model.pretrained random .* stays as it is"):
        take(monkeypatch, vae(tmp_path / "one", 2, **random), source)
