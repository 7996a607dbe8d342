"""Worlds of codes as a page, and what becomes of every recipe: exported, or refused in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chromium import CHROMIUM, launched, until, visits
from static_host import Host
from test_web_export import ROLLOUT, RUNTIME, runtime  # noqa: F401
from untrained_run import write_run

from data.actions import as_tensor
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from pipeline.export import web
from pipeline.export.page_starts import page_starts
from pipeline.inference.load_world import load_world

STEPS = 6


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("codes")
    write_toy_shards(run / "shards", episodes=12)
    write_run(run, EpisodeDataset(run / "shards"))
    return run


@pytest.fixture(scope="module")
def config(
    tmp_path_factory: pytest.TempPathFactory,
    run: Path,
    runtime: Path,  # noqa: F811
) -> web.Config:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="requirements-web.txt is not installed")
    out = tmp_path_factory.mktemp("site") / "page"
    config = web.Config(run, out, num_starts=3, goal_offset=8, dtype="fp32", runtime=runtime)
    web.main(config)
    return config


@pytest.mark.slow
def test_codes_are_those_of_pytorch_and_a_page_is_told_so(config: web.Config):
    about = json.loads((config.out / "world.json").read_text())
    assert about["codes"] and not about["policy"]
    assert about["parity"]["latents"] <= 1e-3 and about["parity"]["encode"] <= 1e-3
    assert about["parity"]["frame_levels"] <= 1
    assert [field["name"] for field in about["state"]] == ["codes", "keys", "values", "unchanged"]


@torch.no_grad()
def test_a_packed_step_is_the_step(run: Path):
    world = load_world(run, "cpu", precision="fp32")
    dataset = EpisodeDataset(run / "shards")
    (start,) = page_starts(world, dataset, 1, 8, 0)
    state, packed = start.state, world.dynamics.pack(start.state)
    for action in start.actions[:STEPS]:
        given = world.actions.normalize(action[None])
        latents, reward, packed = world.dynamics.step_packed(packed, given)
        state = world.step(state, action[None])
        assert torch.equal(latents, state.latents)
        assert torch.allclose(reward, state.reward, atol=1e-5)
        again = world.dynamics.pack(state)
        assert all(torch.allclose(packed[n], again[n], atol=1e-5) for n in again)


def test_a_state_without_all_its_context_and_codes_one_by_one_cannot_be_packed(run: Path):
    world = load_world(run, "cpu", precision="fp32")
    frames = torch.from_numpy(EpisodeDataset(run / "shards").read(0, "frames"))
    frames = frames.permute(0, 3, 1, 2)[None, :1]
    with pytest.raises(ValueError, match="3 real frames"):
        world.dynamics.pack(world.reset(frames, world.actions.empty(1, 0)))
    world.dynamics.config = replace(world.dynamics.config, decoding="autoregressive")  # type: ignore[attr-defined, type-var]
    with pytest.raises(ValueError, match="predicts its codes one by one.*--browser plays it"):
        web.check_world(world, run)


@pytest.fixture(scope="module")
def page(config: web.Config) -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    if not RUNTIME.exists():
        pytest.skip("npm install --no-save onnxruntime-web was not run here")
    host = Host(config.out)
    with launched() as browser, visits(browser) as visit:
        page = visit(host.url)
        until(page, lambda: page.evaluate("measured.frames") > 3)
        yield page
    host.stop()


@torch.no_grad()
def test_its_frames_in_the_page_are_pytorchs(config: web.Config, page: Any):
    world = load_world(config.run, "cpu", precision="fp32")
    dataset = EpisodeDataset(config.run / "shards")
    starts = page_starts(world, dataset, 3, 8, config.seed)
    page.click("#pause")
    for number, start in enumerate(starts):
        actions = as_tensor(dataset.actions.sample(STEPS, np.random.default_rng(number)))
        given = world.actions.normalize(actions).tolist()
        seen = page.evaluate(ROLLOUT, [number, given])
        state = start.state
        for action, (frame, _) in zip(actions, seen, strict=True):
            state = world.step(state, action[None])
            drawn = world.decode(state).flatten().numpy().astype(int)
            assert np.abs(np.array(frame) - drawn).max() <= 1


def test_what_needs_a_planner_is_off_and_a_goal_is_not(page: Any):
    for button in ("planner", "search", "race", "keypoints"):
        assert page.locator(f"#{button}").is_disabled()
    page.evaluate("call('begin', 0, 1)")
    page.click("[data-key='g']")
    until(page, lambda: "This image is the goal" in page.inner_text("#said"))
    page.locator("#world").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("game.target[0]") > 0
