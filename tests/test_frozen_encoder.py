"""A frozen backbone as tokenizer, on tiny random backbones in local folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.batch import Batch
from data.pusht.simulator import ACTIONS
from models.registry import DataSpec, build_tokenizer, describe
from models.tokenizers.frozen_encoder import FrozenEncoder, FrozenEncoderConfig

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> FrozenEncoderConfig:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dinov2")
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=56
    )
    transformers.Dinov2Model(config).save_pretrained(folder)
    return FrozenEncoderConfig((32, 32), str(folder), input_size=56, channels=16, num_res_blocks=1)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> FrozenEncoderConfig:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    config = transformers.CLIPVisionConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        image_size=32, patch_size=8, projection_dim=16,
    )  # fmt: skip
    transformers.CLIPVisionModel(config).save_pretrained(folder)
    return FrozenEncoderConfig((32, 32), str(folder), input_size=48, channels=16, num_res_blocks=1)


@pytest.fixture(scope="module")
def registers(tmp_path_factory: pytest.TempPathFactory) -> FrozenEncoderConfig:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("registers")
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14,
        num_register_tokens=3,
    )  # fmt: skip
    transformers.Dinov2WithRegistersModel(config).save_pretrained(folder)
    return FrozenEncoderConfig((32, 32), str(folder), input_size=56, channels=16, num_res_blocks=1)


MAPS = {
    "convnext": lambda: transformers.ConvNextConfig(hidden_sizes=[8, 12, 16, 24], depths=[1] * 4),
    "resnet": lambda: transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12, 16, 24], depths=[1] * 4, layer_type="basic"
    ),
    "swin": lambda: transformers.SwinConfig(
        image_size=64, embed_dim=6, depths=[1, 1, 1], num_heads=[1, 2, 2], window_size=4
    ),
}
"""Backbones that give a map of features, as AutoBackbone reads them."""


def map_config(kind: str, folder: Path, **changes: object) -> FrozenEncoderConfig:
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(MAPS[kind]())
    model.save_pretrained(folder)
    config = FrozenEncoderConfig(
        (32, 32), str(folder), input_size=64, channels=16, num_res_blocks=1
    )
    return replace(config, **changes)


def noise(count: int = 3) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=random)


@pytest.mark.parametrize("kind, grid_side", [("dinov2", 4), ("clip", 6), ("registers", 4)])
def test_frames_become_patches_or_one_vector(
    kind: str, grid_side: int, request: pytest.FixtureRequest
) -> None:
    config = request.getfixturevalue(kind)
    model = FrozenEncoder(config)
    latents = model.encode(noise())
    assert latents.shape == (3, grid_side**2, 24) == (3, model.latents.num_patches, 24)
    whole = FrozenEncoder(replace(config, tokens="cls"))
    assert whole.encode(noise()).shape == (3, 1, 24)
    assert (
        model.decode(latents).shape == whole.decode(whole.encode(noise())).shape == (3, 3, 32, 32)
    )


def test_features_are_those_of_the_backbone_on_normalized_rgb(dinov2: FrozenEncoderConfig) -> None:
    model = FrozenEncoder(replace(dinov2, image_size=(56, 56)))
    frames = torch.randint(0, 256, (2, 3, 56, 56), dtype=torch.uint8)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    own = transformers.Dinov2Model.from_pretrained(dinov2.pretrained).eval()
    with torch.no_grad():
        out = own(pixel_values=(frames / 255 - mean) / std).last_hidden_state[:, 1:]
    assert torch.allclose(model.encode(frames), out, atol=1e-4)


def test_training_changes_the_decoder_and_not_the_backbone(
    dinov2: FrozenEncoderConfig,
) -> None:
    model = FrozenEncoder(dinov2).train()
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-2)
    history = []
    for _ in range(30):
        loss = model.loss(Batch(frames=noise()))["reconstruction"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert history[-1] < 0.7 * history[0]
    assert all(torch.equal(v, before[k]) for k, v in model.backbone.state_dict().items())
    assert all(p.grad is None for p in model.backbone.parameters())
    assert not model.backbone.training


def test_registers_are_no_patches(registers: FrozenEncoderConfig) -> None:
    model = FrozenEncoder(replace(registers, image_size=(56, 56)))
    frames = torch.randint(0, 256, (2, 3, 56, 56), dtype=torch.uint8)
    own = transformers.Dinov2WithRegistersModel.from_pretrained(registers.pretrained).eval()
    with torch.no_grad():
        out = own(pixel_values=(frames / 255 - model.mean) / model.std).last_hidden_state
    assert out.shape[1] == 1 + 3 + 16
    assert torch.allclose(model.encode(frames), out[:, 4:], atol=1e-4)


@pytest.mark.parametrize("kind", MAPS)
def test_a_map_of_features_is_read_as_patches(kind: str, tmp_path: Path) -> None:
    model = FrozenEncoder(map_config(kind, tmp_path, image_size=(64, 64))).eval()
    frames = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    own = transformers.MODEL_FOR_BACKBONE_MAPPING[type(MAPS[kind]())].from_pretrained(tmp_path)
    with torch.no_grad():
        maps = own.eval()((frames / 255 - model.mean) / model.std).feature_maps[-1]
    _, width, height, columns = maps.shape
    assert model.latents.grid == (height, columns) and model.latents.dim == width == 24
    latents = model.encode(frames)
    assert torch.allclose(latents[:, columns], maps[:, :, 1, 0], atol=1e-4)  # row by row
    assert model.decode(latents).shape == frames.shape


@pytest.mark.parametrize("kind", MAPS)
def test_a_checkpoint_of_a_map_needs_no_folder(kind: str, tmp_path: Path) -> None:
    model = FrozenEncoder(map_config(kind, tmp_path)).eval()
    plain = describe(model.config) | {"pretrained": "/nowhere/any/more"}
    with torch.device("meta"):
        shapes = build_tokenizer(plain, DataSpec((32, 32), ACTIONS)).state_dict()
    again = build_tokenizer(plain, DataSpec((32, 32), ACTIONS)).eval()
    again.load_state_dict(model.state_dict())
    assert shapes.keys() == model.state_dict().keys()
    assert torch.equal(again.encode(noise()), model.encode(noise()))


def test_a_map_has_no_token_for_the_image(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--model.tokens cls .* a convnext has none"):
        FrozenEncoder(map_config("convnext", tmp_path, tokens="cls"))


def test_images_are_normalized_as_the_weights_say(tmp_path: Path) -> None:
    config = map_config("convnext", tmp_path)
    assert FrozenEncoder(config).mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]}'
    )
    model = FrozenEncoder(config)
    assert model.mean.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])
    again = build_tokenizer(describe(model.config), DataSpec((32, 32), ACTIONS))
    assert torch.equal(again.std, model.std)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["dinov2", "clip", "registers"])
def test_a_checkpoint_needs_neither_folder_nor_hub(
    kind: str, request: pytest.FixtureRequest
) -> None:
    model = FrozenEncoder(request.getfixturevalue(kind)).eval()
    plain = describe(model.config) | {"pretrained": "/nowhere/any/more"}
    again = build_tokenizer(plain, DataSpec((32, 32), ACTIONS)).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.encode(noise()), model.encode(noise()))


def test_an_unreadable_backbone_is_named(dinov2: FrozenEncoderConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="patch size 14; give a multiple"):
        FrozenEncoder(replace(dinov2, input_size=60))
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match="holds a vit"):
        FrozenEncoder(replace(dinov2, pretrained=str(tmp_path)))
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="that folder"):
        FrozenEncoder(replace(dinov2, pretrained=str(tmp_path)))
