"""A language model behind a World: published and pulled, with weights of the hub that it names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_hub import TOKEN, Repository, fake_hub
from hub_client import turn_client
from test_language_model_weights import NAME, files_of
from untrained_run import save, small_configs

from data.io.hub_address import HubAddress
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from models.dynamics.language_model import LanguageModelConfig, LanguageModelDynamics
from models.layers.transformer import TransformerConfig
from models.planning.planner import Planner, PlannerConfig
from models.registry import DataSpec, build_dynamics, build_tokenizer
from models.world import World
from pipeline import publish
from pipeline.hub.pull_run import pull
from pipeline.inference.load_world import load_world

pytest.importorskip("transformers")
pytest.importorskip("peft")


def untrained(run: Path, pretrained: str) -> Path:
    """A run of keypoints, and adapters of a language model that do something."""
    torch.manual_seed(0)
    write_toy_shards(run / "shards", episodes=6)
    dataset = EpisodeDataset(run / "shards")
    data = DataSpec(dataset.image_size, dataset.actions)
    config = small_configs("keypoints", dataset.image_size)[0]
    tokenizer = build_tokenizer(config, data)
    root = (dataset.folder, dataset.fingerprint)
    data = replace(data, latents=tokenizer.latents)
    parent = save(run / "tokenizer", "tokenizer", tokenizer, config, data, root)
    small = TransformerConfig(context_frames=2)
    asked = LanguageModelConfig(
        pretrained=pretrained, tuning="lora", frameskip=2, clip_length=7, transformer=small
    )
    dynamics = build_dynamics(asked, data)
    for name, weight in dynamics.named_parameters():
        if ".lora_B" in name or "delta_head" in name:
            torch.nn.init.normal_(weight, std=0.3)
    save(run / "dynamics", "dynamics", dynamics, dynamics.config, data, parent)
    return run


def rollout(world: World) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (2, 3, 3, 32, 32), dtype=torch.uint8, generator=random)
    actions = world.actions.denormalize(torch.rand(2, 8, 2, generator=random) * 2 - 1)
    state = world.reset(frames, actions[:, :2])
    return world.rollout(state, actions[:, 2:]).latents


def test_a_published_run_is_pulled_with_the_weights_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_hub() as hub:
        turn_client(monkeypatch, tmp_path / "home", hub, TOKEN)
        monkeypatch.chdir(tmp_path)
        hub.repositories[NAME] = Repository(private=False)
        hub.repositories[NAME].commit(files_of(tmp_path / "weights"))
        run = untrained(tmp_path / "run", NAME)
        publish.main(
            publish.Config(run, "user/world", license="mit", data_license="mit", figures=False)
        )
        files = hub.files("user/world")
        assert f"base_model:\n- {NAME}" in files["README.md"].decode()
        own, pulled = load_world(run, "cpu"), load_world(pull(HubAddress("user/world")), "cpu")
        assert isinstance(pulled.dynamics, LanguageModelDynamics)
        assert any(".lora_" in name for name in pulled.dynamics.state_dict())
        assert not any(name.endswith("base_layer.weight") for name in pulled.dynamics.state_dict())
        assert torch.equal(rollout(own), rollout(pulled))


def test_a_planner_searches_in_its_world(tmp_path: Path) -> None:
    files_of(tmp_path / "weights")
    world = load_world(untrained(tmp_path / "run", str(tmp_path / "weights")), "cpu")
    frames = torch.randint(0, 256, (2, 3, 3, 32, 32), dtype=torch.uint8)
    state = world.reset(frames, world.actions.empty(2, 2))
    small = PlannerConfig(num_samples=6, iterations=2, num_elites=2)
    before = state.latents.clone()
    plan = Planner(small, world).plan(state, world.encode(frames[:, 0]), None)
    assert plan.actions.shape[0] == 2 and plan.actions.isfinite().all()
    assert torch.equal(state.latents, before)
