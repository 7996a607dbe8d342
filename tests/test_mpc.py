"""A planner as a policy: what it observes, when it plans, what it executes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from data.actions import ActionSpec
from data.clips import Clips
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from evaluation.protocols.mpc import LastActionProbe, MpcPolicy
from evaluation.protocols.policies import Observation
from models.dynamics.dynamics import State
from models.planning.planner import Planner, PlannerConfig

SIZE = 100.0
SPEC = ActionSpec("continuous", ("x", "y"), (0.0, 0.0), (SIZE, SIZE), pointer=True)
GOALS = np.array([[80.0, 20.0], [10.0, 90.0], [50.0, 50.0]])


class NoMemory:
    def select(self, index: Tensor) -> NoMemory:
        return self


class PointWorld:
    """A point that moves half of the distance to the action; a frame is two pixels: its x and y."""

    actions = SPEC
    device = torch.device("cpu")
    context = 3

    def __init__(self) -> None:
        self.observed: list[tuple[int, int]] = []

    def vectors(self, latents: Tensor) -> Tensor:
        return latents

    def embed(self, frames: Tensor) -> Tensor:
        return frames[:, :1, 0].float() / 255 * 2 - 1

    def reset(self, frames: Tensor, actions: Tensor) -> State:
        self.observed.append((frames.shape[1], actions.shape[1]))
        return self._state(self.embed(frames[:, -1]))

    def rollout(self, state: State, actions: Tensor) -> State:
        return self.imagine(state, SPEC.normalize(actions))

    def imagine(self, state: State, actions: Tensor) -> State:
        position = state.latents[:, 0]
        for action in actions.unbind(1):
            position = position + 0.5 * (action - position)
        return self._state(position[:, None])

    def _state(self, latents: Tensor) -> State:
        rows = torch.ones(len(latents))
        return State(latents, 0 * rows, rows, NoMemory())


def observation(positions: np.ndarray, active: np.ndarray | None = None) -> Observation:
    frames = np.zeros((len(positions), 3, 1, 2), np.uint8)
    frames[:, :, 0] = (positions / SIZE * 255).round()[:, None]
    all_active = np.ones(len(positions), bool)
    return Observation(frames, positions, 0 * positions, all_active if active is None else active)


def play(policy: MpcPolicy, steps: int) -> np.ndarray:
    positions = np.full((3, 2), 30.0)
    policy.reset(observation(positions), observation(GOALS))
    for _ in range(steps):
        positions = positions + 0.5 * (policy.act(observation(positions)) - positions)
    return positions


def policy(
    method: Literal["cem", "gradient"] = "cem", receding_horizon: int = 6
) -> tuple[MpcPolicy, PointWorld]:
    world = PointWorld()
    config = PlannerConfig(
        method, num_samples=64, iterations=12, num_elites=8, horizon=2, action_block=3
    )
    return MpcPolicy(world, Planner(config, world), receding_horizon), world  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["cem", "gradient"])
def test_a_whole_plan_is_executed_and_the_next_starts_from_the_last_frames(method) -> None:
    mpc, world = policy(method)
    positions = play(mpc, 12)
    assert np.abs(positions - GOALS).max() < 5
    assert world.observed == [(1, 0), (3, 2)]  # as many frames as its context
    assert len(mpc.executor.plan_seconds) == 2


def test_a_plan_that_is_executed_in_part_is_replanned_with_the_rest_as_its_warm_start() -> None:
    mpc, world = policy(receding_horizon=3)
    positions = play(mpc, 12)
    assert np.abs(positions - GOALS).max() < 5
    assert len(world.observed) == 4
    assert isinstance(mpc.executor.planner, Planner)
    mpc.executor.planner.config = replace(
        mpc.executor.planner.config, num_samples=1, warm_start_iterations=1
    )
    mpc.reset(observation(positions), observation(GOALS))
    mpc.act(observation(positions))
    whole = mpc.executor.plans
    assert whole is not None
    for _ in range(3):
        mpc.act(observation(positions))
    assert whole.shape == (3, 6, 2)  # one candidate: the rest of the plan
    rest = mpc.executor.plans
    assert rest is not None and np.allclose(rest, whole[:, 3:], atol=1e-3)
    assert mpc.executor.warm_start is None  # and of that nothing is left


def test_ended_episodes_are_not_planned_for() -> None:
    mpc = policy()[0]
    positions, active = np.full((3, 2), 30.0), np.array([True, False, True])
    mpc.reset(observation(positions), observation(GOALS))
    action = mpc.act(observation(positions, active))
    assert not action[1].any() and action[0].any() and action[2].any()


def test_the_last_action_is_predicted_from_latents_of_training_episodes(tmp_path: Path) -> None:
    write_toy_shards(tmp_path / "shards", episodes=80)
    dataset = EpisodeDataset(tmp_path / "shards")

    class Pooled(PointWorld):
        actions = dataset.actions

        def embed(self, frames: Tensor) -> Tensor:
            ink = (frames.float() / 255 - 0.5).square()  # where each color is, and how much
            line = torch.linspace(-1, 1, ink.shape[-1])
            across, down = (ink.mean(2) * line).mean(-1), (ink.mean(3) * line).mean(-1)
            return torch.cat([across, down, ink.mean((2, 3))], 1)[:, None]

    world = Pooled()
    probe = LastActionProbe(world, dataset, num_clips=1500)  # type: ignore[arg-type]
    clips = Clips(dataset, "test", clip_length=2)
    held_out = clips.batch(np.arange(0, len(clips), 3))
    latents = world.embed(held_out.frames[:, 1])
    span = np.array(dataset.actions.high) - np.array(dataset.actions.low)
    truth = held_out.actions[:, 0]
    error = (probe(latents) - truth).abs().mean(0).numpy() / span
    baseline = (truth - truth.mean(0)).abs().mean(0).numpy() / span
    assert (error < 0.7 * baseline).all()


def test_without_a_last_action_a_plan_starts_at_the_predicted_one() -> None:
    mpc, _ = policy()
    mpc.last_action_probe = lambda latents: torch.full((len(latents), 2), 40.0)
    mpc.reset(observation(np.full((3, 2), 30.0)), observation(GOALS))
    mpc.act(observation(np.full((3, 2), 30.0)))
    plans = mpc.executor.plans
    assert plans is not None
    first, second = plans[:, 0], plans[:, 1]  # equal steps within the first block
    assert np.allclose(2 * first - second, 40, atol=1e-2)


def test_a_receding_horizon_is_whole_action_blocks() -> None:
    with pytest.raises(ValueError, match="a multiple of the action block, 3, up to 6"):
        policy(receding_horizon=4)
