"""Autoencoders of diffusers as tokenizer, on tiny random ones in local folders."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_hub import TOKEN, Repository, fake_hub
from hub_client import turn_client
from torch import Tensor

from data.batch import Batch
from data.pusht.simulator import ACTIONS
from models.external_weights import weights_hash
from models.method import ExternalWeightsError
from models.registry import DataSpec, build_tokenizer, describe
from models.tokenizers import image_vae
from models.tokenizers.image_vae import ImageVae, ImageVaeConfig

diffusers = pytest.importorskip("diffusers")
SMALL = ImageVaeConfig((32, 32), "random", channels=8, downsamples=2)


@pytest.fixture(scope="module")
def kl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("kl")
    diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 16], norm_num_groups=4, scaling_factor=0.5, shift_factor=0.25,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny")
    diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1),
    ).save_pretrained(folder)  # fmt: skip
    return folder


def noise(count: int = 3, side: int = 32) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=random)


def pixels(frames: Tensor) -> Tensor:
    return frames.float() / 127.5 - 1


@torch.no_grad()
def test_latents_and_frames_are_those_of_diffusers(kl: Path):
    model, peer = ImageVae(ImageVaeConfig((32, 32), str(kl))), diffusers.AutoencoderKL
    peer = peer.from_pretrained(kl)
    mean = peer.encode(pixels(noise())).latent_dist.mode()
    latents = model.encode(noise())
    assert latents.shape == (3, 16 * 16, 4) == (3, model.latents.num_patches, model.latents.dim)
    as_map = latents.transpose(1, 2).unflatten(2, (16, 16))
    assert torch.allclose(as_map, (mean - 0.25) * 0.5, atol=1e-5)
    drawn = ((peer.decode(mean).sample + 1) * 127.5).clamp(0, 255)
    assert (model.decode(latents).float() - drawn).abs().max() <= 0.51  # rounding


@torch.no_grad()
def test_a_tiny_one_is_read_as_well(tiny: Path):
    model, peer = ImageVae(ImageVaeConfig((32, 32), str(tiny))), diffusers.AutoencoderTiny
    found = peer.from_pretrained(tiny).encode(pixels(noise())).latents
    assert torch.allclose(model.encode(noise()), found.flatten(2).transpose(1, 2), atol=1e-5)
    assert model.latents.grid == (8, 8) and model.decode(model.encode(noise())).shape[1:] == (
        3, 32, 32,
    )  # fmt: skip


def test_only_the_decoder_is_tuned_or_both_are():
    def moved(model: ImageVae) -> tuple[bool, bool]:
        before = {k: v.clone() for k, v in model.state_dict().items()}
        trained = [p for p in model.train().parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, 0.1)
        batch = Batch(frames=noise(), latents=model.encode(noise()).detach())
        sum(model.loss(batch).values(), torch.zeros(())).backward()
        optimizer.step()
        after = model.state_dict()
        found = [
            any(not torch.equal(before[k], after[k]) for k in after if k.startswith(part))
            for part in ("encoder.", "decoder.")
        ]
        return found[0], found[1]

    assert moved(ImageVae(SMALL)) == (False, True)
    assert moved(ImageVae(replace(SMALL, tuning="full"))) == (True, True)
    losses = ImageVae(replace(SMALL, tuning="full")).loss(Batch(frames=noise()))
    assert set(losses) == {"reconstruction", "kl"} and all(v.requires_grad for v in losses.values())


def test_frames_are_learned_from_random_weights():
    torch.manual_seed(0)
    frames = torch.zeros(8, 3, 32, 32, dtype=torch.uint8)
    for number in range(8):  # a square that moves
        frames[number, :, 3 * number : 3 * number + 8, 8:20] = 255
    model = ImageVae(replace(SMALL, tuning="full")).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)

    def step() -> float:
        optimizer.zero_grad()
        losses = model.loss(Batch(frames=frames))
        sum(losses.values(), torch.zeros(())).backward()
        optimizer.step()
        return float(losses["reconstruction"])

    errors = [step() for _ in range(60)]
    blank = 100 * ((frames.float() / 255).var(dim=(0, 1, 2, 3), correction=0))
    assert errors[-1] < 0.3 * float(blank) < errors[0]


def test_a_checkpoint_holds_what_nobody_else_has(kl: Path, tmp_path: Path):
    model = ImageVae(ImageVaeConfig((32, 32), str(kl)))
    assert not model.config.sha256  # of a folder: held
    again = build_tokenizer(describe(model.config), DataSpec((32, 32), ACTIONS))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.encode(noise()), model.encode(noise()))
    assert again.latents_key("a") == model.latents_key("b")  # whatever the decoder was trained to
    with torch.no_grad():
        next(model.encoder.parameters()).add_(1)
    assert again.latents_key("a") != model.latents_key("a")
    full = ImageVae(replace(SMALL, tuning="full"))
    assert full.latents_key("a") == "a"


def test_weights_of_the_hub_are_named_by_commit_and_hash(kl: Path, monkeypatch: Any):
    read = image_vae._read
    monkeypatch.setattr(
        image_vae.backbones, "resolve_commit", lambda name, revision, noun: "c" * 40
    )
    monkeypatch.setattr(image_vae, "_read", lambda name, commit, subfolder: read(str(kl), "", ""))
    model = ImageVae(ImageVaeConfig((32, 32), "maker/vae"))
    assert model.config.revision == "c" * 40
    assert model.config.sha256 == weights_hash(model.encoder)
    state = model.state_dict()
    assert not any(name.startswith("encoder.") for name in state)
    again = build_tokenizer(describe(model.config), DataSpec((32, 32), ACTIONS))
    assert not again.load_state_dict(state).missing_keys
    assert torch.equal(again.encode(noise()), model.encode(noise()))
    changed = read(str(kl), "", "")
    with torch.no_grad():
        changed.encoder.conv_in.weight.add_(1)
    monkeypatch.setattr(image_vae, "_read", lambda name, commit, subfolder: changed)
    with pytest.raises(ExternalWeightsError, match=r"needs the weights of maker/vae.* SHA-256"):
        build_tokenizer(describe(model.config), DataSpec((32, 32), ACTIONS))
    full = ImageVae(ImageVaeConfig((32, 32), "maker/vae", tuning="full"))
    assert not full.config.sha256 and any(k.startswith("encoder.") for k in full.state_dict())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"image_size": (36, 34)}, "36 x 34 pixels do not divide into cells of 4 x 4"),
        ({"pretrained": "no/such folder"}, "no image autoencoder 'no/such folder' could be read"),
        ({"pretrained": " "}, "--model.pretrained is empty"),
        ({"channels": 12}, "--model.channels 12 is no multiple of 8"),
        ({"revision": "main"}, "--model.pretrained random has neither a revision nor a hash"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(changes: dict[str, Any], told: str):
    with pytest.raises(ValueError, match=told):
        ImageVae(replace(SMALL, **changes))


def test_a_folder_of_something_else_is_named(kl: Path, tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(ValueError, match="holds a UNet2DModel, and an image autoencoder is one of"):
        ImageVae(replace(SMALL, pretrained=str(other)))
    torn = tmp_path / "torn"
    torn.mkdir()
    for file in kl.iterdir():
        (torn / file.name).write_bytes(file.read_bytes()[:300])
    with pytest.raises(
        ValueError, match=f"no image autoencoder '{torn}' could be read from that folder"
    ):
        ImageVae(replace(SMALL, pretrained=str(torn)))
    with pytest.raises(ValueError, match=r"--model.revision main is of a repository, and .*folder"):
        ImageVae(replace(SMALL, pretrained=str(kl), revision="main"))


def test_it_is_read_from_the_hub_at_a_commit(kl: Path, tmp_path: Path, monkeypatch: Any):
    with fake_hub() as server:
        server.repositories["maker/pipeline"] = Repository(private=False)
        files = {f"vae/{file.name}": file.read_bytes() for file in kl.iterdir()}
        server.repositories["maker/pipeline"].commit(files)
        turn_client(monkeypatch, tmp_path / "home", server, TOKEN)
        config = ImageVaeConfig((32, 32), "maker/pipeline", subfolder="vae")
        model = ImageVae(config)
        assert model.config.revision == server.repositories["maker/pipeline"].refs["main"]
        assert torch.equal(
            model.encode(noise()), ImageVae(replace(SMALL, pretrained=str(kl))).encode(noise())
        )
        with pytest.raises(ValueError, match="no image autoencoder 'maker/pipeline' could be read"):
            ImageVae(replace(config, subfolder=""))
        server.status = 503
        again = build_tokenizer(describe(model.config), DataSpec((32, 32), ACTIONS))  # of the cache
        assert torch.equal(again.encode(noise()), model.encode(noise()))


def changed(kl: Path, folder: Path, **fields: Any) -> Path:
    """A copy with another config."""
    shutil.copytree(kl, folder)
    spec = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in spec.items() if v is not None})
    )
    return folder


def test_the_subfolder_is_read_and_no_other(kl: Path, tmp_path: Path):
    whole = changed(kl, tmp_path / "whole", scaling_factor=3.0)
    changed(kl, whole / "vae", scaling_factor=2.0)
    config = replace(SMALL, pretrained=str(whole))
    assert ImageVae(replace(config, subfolder="vae")).scale == 2.0 and ImageVae(config).scale == 3.0
    with pytest.raises(ValueError, match=f"{whole} has no folder unet; mend --model.subfolder"):
        ImageVae(replace(config, subfolder="unet"))
    for outside in ("../kl", str(kl), "vae/../.."):
        with pytest.raises(ValueError, match="--model.subfolder .* leaves .*; give a folder in it"):
            replace(config, subfolder=outside)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"scaling_factor": 0}, "scaling_factor of .*/bad/config.json is 0; make it a number abov"),
        ({"scaling_factor": -0.5}, r"scaling_factor of .*/config.json is -0.5; make it a number"),
        ({"scaling_factor": float("nan")}, "scaling_factor of .*/config.json is nan; make it"),
        ({"scaling_factor": "1"}, "scaling_factor of .*/config.json is '1'; make it"),
        ({"shift_factor": float("nan")}, "shift_factor of .* is nan; make it a finite number"),
        ({"_class_name": None}, "/config.json has no _class_name, and an image autoencoder is one"),
        ({"_class_name": [1]}, r"/config.json holds a \[1\], and an image autoencoder is one"),
    ],
)
def test_a_config_that_cannot_be_used_is_named(
    kl: Path, tmp_path: Path, fields: dict[str, Any], told: str
):
    bad = changed(kl, tmp_path / "bad", **fields)
    with pytest.raises(ValueError, match=told) as refused:
        ImageVae(replace(SMALL, pretrained=str(bad)))
    assert "\n" not in str(refused.value)


def test_a_config_that_is_a_list_is_named(kl: Path, tmp_path: Path):
    bad = changed(kl, tmp_path / "bad")
    (bad / "config.json").write_text("[1]")
    with pytest.raises(
        ValueError, match=r"bad/config.json holds \[1\] and no fields; get it again"
    ):
        ImageVae(replace(SMALL, pretrained=str(bad)))


@pytest.mark.parametrize("text", ["{", "[1]", "{}", '{"_class_name": "AutoencoderKL", "a": [}'])
def test_a_damaged_architecture_is_one_line(text: str):
    plain = describe(ImageVae(SMALL).config) | {"architecture": text}
    with pytest.raises(ValueError, match="the architecture in the config, .* cannot be built") as e:
        build_tokenizer(plain, DataSpec((32, 32), ACTIONS))
    assert "\n" not in str(e.value) and "get the checkpoint again" in str(e.value)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_weights_that_are_not_finite_are_named(kl: Path, tmp_path: Path, part: str):
    vae = diffusers.AutoencoderKL.from_pretrained(kl)
    with torch.no_grad():
        getattr(vae, part).conv_in.weight[0, 0] = torch.nan
    vae.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=f"{tmp_path}'s weights are not finite in {part}.conv_in.weight; get them"
    ):
        ImageVae(replace(SMALL, pretrained=str(tmp_path)))
