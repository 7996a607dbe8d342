"""A frozen backbone as tokenizer, on tiny random backbones in local folders."""

from __future__ import annotations

import shutil
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


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> FrozenEncoderConfig:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("siglip")
    config = transformers.SiglipVisionConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        image_size=32, patch_size=8,
    )  # fmt: skip
    transformers.SiglipVisionModel(config).save_pretrained(folder)
    return FrozenEncoderConfig((32, 32), str(folder), input_size=48, channels=16, num_res_blocks=1)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> FrozenEncoderConfig:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vit")
    config = transformers.ViTConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        image_size=32, patch_size=8,
    )  # fmt: skip
    transformers.ViTModel(config).save_pretrained(folder)
    return FrozenEncoderConfig((32, 32), str(folder), input_size=48, channels=16, num_res_blocks=1)


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


@pytest.mark.parametrize(
    "kind, grid_side", [("dinov2", 4), ("clip", 6), ("registers", 4), ("siglip", 6), ("vit", 6)]
)
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
        loss = model.loss(Batch(frames=noise(), latents=model.encode(noise())))["reconstruction"]
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


CLASSES = {
    "dinov2": ("Dinov2Model", 1, 14),
    "registers": ("Dinov2WithRegistersModel", 4, 14),
    "clip": ("CLIPVisionModel", 1, 8),
    "siglip": ("SiglipVisionModel", 0, 8),
    "vit": ("ViTModel", 1, 8),
}
"""The class of transformers, the tokens that are no patch, and the side of a patch."""


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("times", [2, 3, 5])
def test_every_family_reads_any_size_that_its_patch_divides(
    kind: str, times: int, request: pytest.FixtureRequest
) -> None:
    name, prefix, patch = CLASSES[kind]
    config, side = request.getfixturevalue(kind), times * patch
    model = FrozenEncoder(replace(config, input_size=side, image_size=(side, side))).eval()
    own = getattr(transformers, name).from_pretrained(config.pretrained).eval()
    frames = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    kwargs = {} if "Dinov2" in name else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        out = own(pixel_values=(frames / 255 - model.mean) / model.std, **kwargs)
    assert torch.allclose(model.encode(frames), out.last_hidden_state[:, prefix:], atol=1e-4)
    assert model.latents.grid == (times, times)
    whole = FrozenEncoder(replace(model.config, tokens="cls")).eval()
    whole.backbone = model.backbone
    image = out.last_hidden_state[:, :1] if prefix else out.pooler_output[:, None]
    assert torch.allclose(whole.encode(frames), image, atol=1e-4)
    with pytest.raises(ValueError, match=f"patch size {patch}; give a multiple"):
        FrozenEncoder(replace(config, input_size=side + 1))


@pytest.mark.parametrize(
    ("kind", "mean"),
    [("dinov2", 0.485), ("registers", 0.485), ("clip", 0.481), ("siglip", 0.5), ("vit", 0.5)],
)
def test_every_family_has_its_normalization_and_a_file_comes_before_it(
    kind: str, mean: float, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    config = request.getfixturevalue(kind)
    assert float(FrozenEncoder(config).mean[0]) == pytest.approx(mean)
    shutil.copytree(config.pretrained, tmp_path / "copy")
    file = tmp_path / "copy" / "preprocessor_config.json"
    file.write_text('{"image_mean": [0.1, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]}')
    own = FrozenEncoder(replace(config, pretrained=str(tmp_path / "copy")))
    assert own.mean.flatten().tolist() == pytest.approx([0.1, 0.4, 0.3])
    file.write_text('{"do_normalize": false, "image_mean": [0.1, 0.4, 0.3]}')
    raw = FrozenEncoder(replace(config, pretrained=str(tmp_path / "copy")))
    assert not raw.mean.any() and (raw.std == 1).all()


def test_vision_is_taken_out_of_a_model_of_images_and_texts(tmp_path: Path) -> None:
    vision = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 1,
              "num_attention_heads": 2, "image_size": 32, "patch_size": 8}  # fmt: skip
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1,
            "pad_token_id": 1}  # fmt: skip
    torch.manual_seed(0)
    whole = transformers.SiglipModel(
        transformers.SiglipConfig(vision_config=vision, text_config=text)
    ).eval()
    whole.save_pretrained(tmp_path)
    frames = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    config = FrozenEncoderConfig((32, 32), str(tmp_path), input_size=32, channels=16)
    with torch.no_grad():
        expected = whole.vision_model(pixel_values=frames / 255 * 2 - 1).last_hidden_state
    assert torch.allclose(FrozenEncoder(config).encode(frames), expected, atol=1e-4)
    untrained = FrozenEncoder(replace(config, pretrained=f"random:{tmp_path}"))
    assert untrained.encode(frames).shape == expected.shape
    assert not torch.allclose(untrained.encode(frames), expected, atol=1e-2)


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


@pytest.mark.parametrize("kind", ["dinov2", "clip", "registers", "siglip", "vit"])
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
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"holds a bert; .* a class of your own"):
        FrozenEncoder(replace(dinov2, pretrained=str(tmp_path)))
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="that folder"):
        FrozenEncoder(replace(dinov2, pretrained=str(tmp_path)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [('{"image_mean": [0.5, 0.5, 0.5]}', r"has image_mean \[0.5, 0.5, 0.5\] and no image_std; add"),
     ('{"image_std": [1, 1, 1]}', r"has image_std \[1, 1, 1\] and no image_mean; add it"),
     ('{"image_mean": [0.5], "image_std": [0.5]}', "have 1 and 1 numbers; give three of each"),
     ('{"image_mean": 0.5, "image_std": 0.5}', "are 0.5 and 0.5; give three numbers of each"),
     ('{"image_mean": "abc", "image_std": [1, 1, 1]}', r"are 'abc' and \[1, 1, 1\]; give three"),
     ('{"image_mean": [0, 0, 0], "image_std": [0, 0, 0]}', "give finite numbers, and for std"),
     ('{"image_mean": [NaN, 0, 0], "image_std": [1, 1, 1]}', r"are \[nan, 0.0, 0.0\] and"),
     ("{", r"could not be read \(Expecting .*\); mend it, or leave it out"),
     ("[1]", r"holds \[1\] and no fields; mend it, or leave it out")],
)  # fmt: skip
def test_a_preprocessor_config_that_cannot_be_used_is_named(
    text: str, reason: str, vit: FrozenEncoderConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(vit.pretrained, folder)
    (folder / "preprocessor_config.json").write_text(text)
    for name in (f"{folder}", f"random:{folder}"):
        with pytest.raises(
            ValueError, match=rf"{folder}/preprocessor_config.json .*{reason}"
        ) as no:
            FrozenEncoder(replace(vit, pretrained=name))
        assert "\n" not in str(no.value)


def test_a_tensor_of_another_shape_is_named_with_both(
    vit: FrozenEncoderConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(vit.pretrained, folder)
    config = transformers.ViTConfig.from_pretrained(folder)
    config.image_size = 64
    config.save_pretrained(folder)
    reason = (
        r"\(\S*position_embeddings is \(1, 17, 24\) in its file and \(1, 65, 24\) by its config"
    )
    with pytest.raises(ValueError, match=reason) as refused:
        FrozenEncoder(replace(vit, pretrained=str(folder)))
    assert "\n" not in str(refused.value)


def test_weights_that_give_nan_are_refused(vit: FrozenEncoderConfig, tmp_path: Path) -> None:
    model = transformers.ViTModel.from_pretrained(vit.pretrained, add_pooling_layer=False)
    torch.nn.init.constant_(model.layernorm.weight, float("nan"))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"weights are not finite in layernorm.weight; get them"):
        FrozenEncoder(replace(vit, pretrained=str(tmp_path)))


def test_weights_that_are_not_finite_are_named(dinov2: FrozenEncoderConfig, tmp_path: Path) -> None:
    own = transformers.Dinov2Model.from_pretrained(dinov2.pretrained)
    torch.nn.init.constant_(own.layernorm.weight, torch.inf)
    own.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'s weights are not finite in layernorm.weight; get them"):
        FrozenEncoder(replace(dinov2, pretrained=str(tmp_path)))


@pytest.mark.parametrize("text", ["{", "[1]", "{}", '{"model_type": "dinov2", "stats": 1}'])
def test_a_damaged_architecture_is_one_line(dinov2: FrozenEncoderConfig, text: str) -> None:
    plain = describe(FrozenEncoder(dinov2).config) | {"architecture": text}
    with pytest.raises(ValueError, match="the architecture in the config, .* cannot be built") as e:
        build_tokenizer(plain, DataSpec((32, 32), ACTIONS))
    assert "\n" not in str(e.value)
