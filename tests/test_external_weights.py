"""Frozen weights of others: a checkpoint names them, by name, commit and hash."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_hub import READ_TOKEN, TOKEN, FakeHub, Repository
from hub_client import go_offline
from torch import nn
from untrained_run import save, small_configs

import train_tokenizer
from data.io.hub_address import HubAddress
from data.pusht.simulator import ACTIONS
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from models.external_weights import leave_out, weights_hash
from models.registry import DataSpec, build_dynamics, build_tokenizer, describe
from models.tokenizers.frozen_encoder import FrozenEncoder, FrozenEncoderConfig
from models.tokenizers.tokenizer import LatentSpec
from pipeline import checkpoint as ckpt
from pipeline import presets, publish
from pipeline.batches.latent_cache import cache_latents
from pipeline.hub.pull_run import pull
from pipeline.inference.load_tokenizer import load_tokenizer
from pipeline.inference.load_world import load_world

transformers = pytest.importorskip("transformers")

NAME = "maker/tiny-dinov2"


def dinov2_files(folder: Path, seed: int) -> dict[str, bytes]:
    torch.manual_seed(seed)
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=56
    )
    transformers.Dinov2Model(config).save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(hub: FakeHub, tmp_path: Path) -> FakeHub:
    """A Hub with a backbone, and a working folder."""
    hub.repositories[NAME] = Repository(private=False)
    hub.repositories[NAME].commit(dinov2_files(tmp_path / "weights", 0))
    return hub


def settings(**changes: Any) -> FrozenEncoderConfig:
    config = FrozenEncoderConfig((32, 32), NAME, input_size=28, channels=16, num_res_blocks=1)
    return replace(config, **changes)


def noise() -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=random)


def train(run: Path, steps: int = 2, **changes: Any) -> Path:
    """Train the decoder for a few steps, and give best.pt."""
    if not (run / "shards").exists():
        write_toy_shards(run / "shards", episodes=12)
    config = presets.apply(train_tokenizer.Config(), "tokenizer", ["dinov2", "debug"])
    small = replace(config.train, steps=steps, eval_every=1, save_every=1, warmup_steps=0)
    train_tokenizer.main(replace(config, run=run, model=settings(**changes), train=small))
    return run / "tokenizer" / "best.pt"


def forget(tmp_path: Path) -> None:
    """Empty the cache of the Hub's client."""
    shutil.rmtree(tmp_path / "home" / "hub")


# -- what a checkpoint holds ------------------------------------------------------------------


def test_a_checkpoint_names_the_weights_instead_of_holding_them(hub: FakeHub, tmp_path: Path):
    path = train(tmp_path / "run")
    for file in (path, path.with_name("last.pt")):
        checkpoint = ckpt.load(file, "tokenizer")
        assert not any(name.startswith("backbone") for name in checkpoint["model"])
        assert checkpoint["model"]
        config = checkpoint["config"]
        assert config["pretrained"] == NAME
        assert config["revision"] == hub.repositories[NAME].refs["main"]
        own = transformers.Dinov2Model.from_pretrained(tmp_path / "weights")
        assert config["sha256"] == weights_hash(own)
    tokenizer, _ = load_tokenizer(tmp_path / "run", "cpu")
    assert isinstance(tokenizer, FrozenEncoder)
    assert weights_hash(tokenizer.backbone) == config["sha256"]
    fresh = FrozenEncoder(settings()).eval()
    assert torch.equal(tokenizer.encode(noise()), fresh.encode(noise()))


def test_a_training_resumes_on_the_named_weights(hub: FakeHub, tmp_path: Path):
    whole = ckpt.load(train(tmp_path / "whole", 4), "tokenizer")
    train(tmp_path / "parts", 2)
    config = presets.apply(train_tokenizer.Config(), "tokenizer", ["dinov2", "debug"])
    longer = replace(config.train, steps=4, eval_every=1, save_every=1, warmup_steps=0)
    train_tokenizer.main(replace(config, run=tmp_path / "parts", model=settings(), train=longer))
    parts = ckpt.load(tmp_path / "parts" / "tokenizer" / "last.pt", "tokenizer")
    assert parts["step"] == 4 and parts["model"].keys() == whole["model"].keys()


def test_the_commit_counts_where_the_branch_has_moved(hub: FakeHub, tmp_path: Path):
    train(tmp_path / "run")
    before = load_tokenizer(tmp_path / "run", "cpu")[0].encode(noise())
    hub.repositories[NAME].commit(dinov2_files(tmp_path / "other", 1))
    forget(tmp_path)
    assert torch.equal(load_tokenizer(tmp_path / "run", "cpu")[0].encode(noise()), before)
    assert not torch.equal(FrozenEncoder(settings()).encode(noise()), before)


def test_named_weights_are_read_from_the_cache_without_the_hub(hub: FakeHub, tmp_path: Path):
    train(tmp_path / "run")
    hub.status = 503
    assert load_tokenizer(tmp_path / "run", "cpu")[0].encode(noise()).shape == (2, 4, 24)


# -- what goes wrong --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("gone", "its name is wrong, or it is private"), ("down", "a fault of its own (status 503)"),
     ("gated", "is gated; accept its license on"), ("offline", "HF_HUB_OFFLINE forbids")],
)  # fmt: skip
def test_weights_that_cannot_be_had_are_one_line(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, reason: str
):
    path = train(tmp_path / "run")
    forget(tmp_path)
    commit = hub.repositories[NAME].refs["main"]
    if fault == "gone":
        del hub.repositories[NAME]
    elif fault == "gated":
        hub.repositories[NAME].gated = True
        monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    elif fault == "offline":
        go_offline(monkeypatch)
    else:
        hub.status = 503
    with pytest.raises(ValueError) as refused:
        load_tokenizer(tmp_path / "run", "cpu")
    line = str(refused.value)
    assert line.startswith(f"{path} needs the weights of {NAME} at commit {commit}, which cannot")
    assert reason in line, line
    assert "\n" not in line and len(line) < 900 and "train again" not in line
    assert TOKEN not in line and READ_TOKEN not in line


def test_other_weights_at_the_commit_are_one_line(hub: FakeHub, tmp_path: Path):
    path = train(tmp_path / "run")
    forget(tmp_path)
    repository = hub.repositories[NAME]
    repository.commits[repository.refs["main"]] = dinov2_files(tmp_path / "other", 1)
    with pytest.raises(ValueError, match=rf"^{path} needs the weights of {NAME}@\w+ with SHA-256"):
        load_tokenizer(tmp_path / "run", "cpu")


def test_a_hash_may_be_asked_for(hub: FakeHub):
    right = FrozenEncoder(settings()).config.sha256
    assert FrozenEncoder(settings(sha256=right)).config.sha256 == right
    with pytest.raises(ValueError, match="with SHA-256 0000000000000000"):
        FrozenEncoder(settings(sha256="0" * 64))


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: FakeHub, tmp_path: Path):
    first = hub.repositories[NAME].refs["main"]
    hub.repositories[NAME].commit(dinov2_files(tmp_path / "other", 1), "wide")
    assert FrozenEncoder(settings()).config.revision == first
    assert FrozenEncoder(settings(revision="wide")).config.revision != first
    assert FrozenEncoder(settings(revision=first)).config.revision == first
    with pytest.raises(
        ValueError, match="no backbone 'maker/tiny-dinov2' could be read"
    ) as refused:
        FrozenEncoder(settings(revision="v9"))
    assert "\n" not in str(refused.value)


def test_a_folder_comes_before_a_repository_and_is_held(hub: FakeHub, tmp_path: Path):
    dinov2_files(tmp_path / "maker" / "tiny-dinov2", 1)
    model = FrozenEncoder(settings())
    assert not hub.requests and not model.config.revision and not model.config.sha256
    assert any(name.startswith("backbone") for name in model.state_dict())
    with pytest.raises(ValueError, match=r"--model.revision main is of a repository"):
        FrozenEncoder(settings(revision="main"))
    checked = FrozenEncoder(settings(sha256=weights_hash(model.backbone)))
    assert checked.state_dict().keys() == model.state_dict().keys()
    with pytest.raises(ValueError, match="with SHA-256 0000000000000000"):
        FrozenEncoder(settings(sha256="0" * 64))
    with pytest.raises(ValueError, match="random has neither a revision nor a hash"):
        FrozenEncoder(settings(pretrained="random", sha256="0" * 64))


def test_a_training_resumes_where_its_folder_is_gone(tmp_path: Path):
    dinov2_files(tmp_path / "weights", 0)
    name = str(tmp_path / "weights")
    before = ckpt.load(train(tmp_path / "run", pretrained=name), "tokenizer")
    shutil.rmtree(tmp_path / "weights")
    train(tmp_path / "run", steps=4, pretrained=name)
    after = ckpt.load(tmp_path / "run/tokenizer/last.pt", "tokenizer")
    assert after["step"] == 4 and after["config"] == before["config"]
    kept = [key for key in after["model"] if key.startswith("backbone.")]
    assert kept and all(torch.equal(after["model"][k], before["model"][k]) for k in kept)
    with pytest.raises(ValueError, match="was begun with channels = 16, but now it is 32"):
        train(tmp_path / "run", steps=4, pretrained=name, channels=32)
    for changes in ({"revision": "main"}, {"pretrained": name + "2"}):
        with pytest.raises(ValueError, match="no backbone"):
            train(tmp_path / "run", steps=4, **({"pretrained": name} | changes))


def test_a_file_that_lacks_weights_is_refused(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    dinov2_files(tmp_path, 0)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(iter(weights))
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="its file has no ") as refused:
        FrozenEncoder(settings(pretrained=str(tmp_path)))
    assert name in str(refused.value)


# -- checkpoints of before --------------------------------------------------------------------


def test_a_checkpoint_that_holds_its_weights_is_still_read(tmp_path: Path):
    """As it was written before weights were named: without revision and hash."""
    dinov2_files(tmp_path / "weights", 0)
    model = FrozenEncoder(settings(pretrained=str(tmp_path / "weights"))).eval()
    old = {k: v for k, v in describe(model.config).items() if k not in ("revision", "sha256")}
    old["pretrained"] = "facebook/dinov2-small"
    write_toy_shards(tmp_path / "shards", episodes=6)
    dataset = EpisodeDataset(tmp_path / "shards")
    data = DataSpec((32, 32), ACTIONS)
    fields = ckpt.describe(
        model.config, data, model.latents, ACTIONS, (dataset.folder, dataset.fingerprint)
    )
    path = tmp_path / "tokenizer" / "best.pt"
    path.parent.mkdir()
    weights = model.state_dict()
    fingerprint = ckpt.fingerprint(weights, old)
    ckpt.save(
        path,
        fields | {"config": old, "format": ckpt.FORMAT, "stage": "tokenizer", "model": weights,
                  "fingerprint": fingerprint},
    )  # fmt: skip
    again, checkpoint = load_tokenizer(tmp_path, "cpu")
    assert any(name.startswith("backbone") for name in checkpoint["model"])
    assert torch.equal(again.encode(noise()), model.encode(noise()))
    with pytest.raises(ValueError, match="an unknown color"):
        build_tokenizer(old | {"color": "red"}, data)


# -- the hooks --------------------------------------------------------------------------------


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.given, self.own = nn.Linear(2, 2), nn.Linear(2, 2)
        leave_out(self, "given")


def test_what_is_left_out_stays_out_at_any_depth():
    whole = nn.ModuleDict({"pair": Pair(), "given": nn.Linear(2, 2)})
    state = whole.state_dict()
    assert set(state) == {"pair.own.weight", "pair.own.bias", "given.weight", "given.bias"}
    before = whole["pair"].given.weight.clone()  # type: ignore[union-attr]
    whole.load_state_dict({name: torch.zeros_like(value) for name, value in state.items()})
    assert torch.equal(whole["pair"].given.weight, before)  # type: ignore[union-attr]
    assert not whole["given"].weight.any()  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match=r"pair\.own\.bias"):
        whole.load_state_dict({k: v for k, v in state.items() if k != "pair.own.bias"})


# -- published ---------------------------------------------------------------------------------


def test_a_published_run_names_the_repository_of_its_weights(hub: FakeHub, tmp_path: Path):
    tokenizer = ckpt.load(train(tmp_path / "run"), "tokenizer")
    dataset = EpisodeDataset(tmp_path / "run" / "shards")
    latents = LatentSpec.from_dict(tokenizer["latents"])
    data = DataSpec(dataset.image_size, dataset.actions, latents)
    config = small_configs("keypoints", dataset.image_size)[1]
    parent = (tmp_path / "run" / "tokenizer" / "best.pt", tokenizer["fingerprint"])
    dynamics = build_dynamics(config, data)
    save(tmp_path / "run" / "dynamics", "dynamics", dynamics, config, data, parent)
    publish.main(
        publish.Config(
            tmp_path / "run", "user/world", license="mit", data_license="mit", figures=False
        )
    )
    files = hub.files("user/world")
    card = files["README.md"].decode()
    assert f"| frozen_encoder of {NAME} |" in card
    assert f"base_model:\n- {NAME}" in card and "base_model_relation" not in card
    assert len(files["tokenizer/model.safetensors"]) < len(hub.files(NAME)["model.safetensors"])
    there = pull(HubAddress("user/world"))
    own, pulled = load_world(tmp_path / "run", "cpu"), load_world(there, "cpu")
    assert torch.equal(own.embed(noise()), pulled.embed(noise()))
    assert json.loads(tokenizer["config"]["architecture"])["model_type"] == "dinov2"


def test_frames_are_encoded_once_for_the_decoder_and_the_dynamics(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = tmp_path / "run"
    train(run)
    encoded = []
    encode = FrozenEncoder.encode

    def counted(self: FrozenEncoder, frames: torch.Tensor) -> torch.Tensor:
        encoded.append(len(frames))
        return encode(self, frames)

    monkeypatch.setattr(FrozenEncoder, "encode", counted)
    tokenizer, checkpoint = load_tokenizer(run, "cpu")
    dataset = EpisodeDataset(run / "shards")
    cpu = torch.device("cpu")
    rows = cache_latents(run / "latents", tokenizer, checkpoint["fingerprint"], dataset, cpu)
    assert not encoded and len(rows) == dataset.num_frames
    train(run, steps=4)  # goes on, from the latents that are there
    assert sum(encoded) < dataset.num_frames  # validation alone
