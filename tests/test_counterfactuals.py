"""What other actions would have led to: in the environment, and in worlds whose worth is known."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import preprocess
from data.gym.branching import BranchingEnv, _copy
from data.gym.env_spec import EnvSpec, env_spec_of
from data.gym.pixel_env import PixelEnv
from data.shards.episode_dataset import EpisodeDataset
from evaluation.environment_jobs import counterfactual_jobs
from evaluation.evaluate_config import Config
from evaluation.measures.counterfactuals import NotRepeatable, choose_starts, counterfactuals
from evaluation.report import environment_tables
from evaluation.report.metrics_schema import empty_metrics
from pipeline.recording.gym_config import GymConfig

SPEC = EnvSpec("CartPole-v1", image_size=16)
COUNTING = "counting_env:Counting-v0"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> EpisodeDataset:
    run = tmp_path_factory.mktemp("counting")
    preprocess.gym(GymConfig(run, env=COUNTING, episodes=40, resolution=16, num_workers=1))
    return EpisodeDataset(run / "shards")


class Copies(PixelEnv):
    """An environment that can be copied, as ALE's games can."""

    def __init__(self, spec: EnvSpec) -> None:
        super().__init__(spec)
        inner: Any = self.env.unwrapped
        inner.clone_state = lambda: (np.array(inner.state), inner.steps_beyond_terminated)
        inner.restore_state = lambda copy: vars(inner).update(
            state=copy[0], steps_beyond_terminated=copy[1]
        )


@pytest.mark.parametrize("copies", [False, True])
def test_a_branch_is_what_the_environment_does_after_the_episodes_actions(
    copies: bool, monkeypatch: pytest.MonkeyPatch
):
    if copies:
        monkeypatch.setattr("data.gym.branching.PixelEnv", Copies)
    actions = np.array([0, 1, 0, 1, 1, 0, 1, 0])
    others = [np.zeros(12, np.int64), np.ones(12, np.int64), np.ones(12, np.int64)]
    env = BranchingEnv(SPEC)
    assert env.copies == copies
    for step, other, branch in zip(
        (2, 2, 6), others, env.branches(7, actions, (2, 2, 6), others), strict=True
    ):
        plain = PixelEnv(SPEC)
        result = plain.reset(7)
        for action in actions[:step]:
            result = plain.step(action)
        assert np.array_equal(branch.start, result.frame)
        for frame, is_alive, action in zip(branch.frames, branch.alive, other, strict=True):
            assert is_alive != result.done
            if not result.done:
                result = plain.step(np.asarray(action))
            assert np.array_equal(frame, result.frame)
        assert not branch.alive[-1]  # always to one side: the pole falls


@dataclass
class Pixels:
    """Where a batch of episodes is: the color of all pixels, (B, 3)."""

    color: Tensor


class Counts:
    """A world that knows how the environment goes on; blind: it does not read the actions."""

    context, device = 2, torch.device("cpu")

    def __init__(self, blind: bool = False, gain: float = 1.0) -> None:
        self.blind, self.gain = blind, gain

    def reset(self, frames: Tensor, actions: Tensor) -> Pixels:
        return Pixels(frames[:, -1, :, 0, 0].long())

    def step(self, state: Pixels, action: Tensor) -> Pixels:
        seen = torch.ones_like(action) if self.blind else action + 1
        count, _, episode = state.color.unbind(1)
        return Pixels(torch.stack([count + 1, (self.gain * seen).long(), episode], dim=1))

    def decode(self, state: Pixels) -> Tensor:
        return state.color[:, :, None, None].expand(-1, -1, 16, 16).to(torch.uint8)

    def reconstruct(self, frames: Tensor) -> Tensor:
        return frames


def measure(dataset: EpisodeDataset, world: Any, count: int = 8) -> dict[str, Any]:
    spec = env_spec_of(dataset.description)
    assert spec is not None
    starts = choose_starts(dataset, "test", world.context, 2, count, seed=0)
    return counterfactuals(world, dataset, BranchingEnv(spec), starts, (1, 2))


def test_a_world_that_reads_actions_explains_all_and_a_blind_one_nothing(dataset: EpisodeDataset):
    exact = measure(dataset, Counts())
    assert exact["explained"] == pytest.approx([1, 1], abs=1e-5)
    assert min(exact["delta_psnr"]) > 20 and max(exact["between_psnr"]) < 60
    assert exact["n"] == 8 and exact["sources"] > 1 and not exact["copies"]
    blind = measure(dataset, Counts(blind=True))
    assert blind["explained"] == pytest.approx([0, 0], abs=1e-5)
    assert blind["delta_psnr"] == pytest.approx([0, 0], abs=1e-4)
    assert exact["between_psnr"] == blind["between_psnr"]  # of the environment alone
    wrong = measure(dataset, Counts(gain=3))  # twice too far beyond: 1 - 2 ** 2
    assert wrong["explained"] == pytest.approx([-3, -3], abs=1e-4)
    json.dumps(exact, allow_nan=False)


def test_an_environment_that_repeats_no_episode_is_left_out_of_the_report_with_a_line(
    dataset: EpisodeDataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    reset = PixelEnv.reset
    monkeypatch.setattr(PixelEnv, "reset", lambda self, seed: reset(self, seed + 1))
    with pytest.raises(NotRepeatable, match="does not repeat episode .* from its seed"):
        measure(dataset, Counts())
    world: Any = Counts()
    world.has_decoder = True
    session: Any = SimpleNamespace(
        env_spec=env_spec_of(dataset.description), dataset=dataset, world=world,
        cache_key=lambda *stages, **facts: facts,
    )  # fmt: skip
    (job,) = counterfactual_jobs(session, Config(horizons=(1, 2), num_clips=4))
    metrics = empty_metrics()
    job.merge(metrics, job.measure())
    printed = capsys.readouterr()
    assert "evaluate: counterfactuals are left out: the environment does not" in printed.out
    assert metrics["counterfactuals"]["n"] is None
    (_, line) = environment_tables.counterfactuals(metrics["counterfactuals"])
    assert "does not repeat episode" in line


def test_episodes_that_are_too_short_are_named(dataset: EpisodeDataset, tmp_path: Path):
    with pytest.raises(ValueError, match="has a seed and 903 frames; lower --horizons"):
        choose_starts(dataset, "test", 3, 900, 4, seed=0)


def test_a_copy_holds_the_random_numbers_too():
    """Sticky actions draw some in a branch, and the steps after it must not be others."""

    class Sticky:
        def clone_state(self, include_rng: bool = False) -> str:
            return "with them" if include_rng else "without"

    class Plain:
        def clone_state(self) -> str:
            return "a state"

    assert _copy(Sticky()) == "with them" and _copy(Plain()) == "a state"
