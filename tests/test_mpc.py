"""A planner as a policy: what it is shown, when it plans, what it carries out."""

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
from data.shards import EpisodeDataset
from data.toy import write_toy_shards
from evaluation.protocols.mpc import LastActionProbe, MpcPolicy, RecordVideo
from evaluation.protocols.policies import Observation
from models.controllers.planner import Planner, PlannerConfig
from models.dynamics.dynamics import State

SIZE = 100.0
SPEC = ActionSpec("continuous", ("x", "y"), (0.0, 0.0), (SIZE, SIZE), pointer=True)
GOALS = np.array([[80.0, 20.0], [10.0, 90.0], [50.0, 50.0]])


class Nothing:
    def select(self, index: Tensor) -> Nothing:
        return self


class Seen:
    """A point that goes half of the way to the action; a frame is two pixels: its x and its y."""

    actions = SPEC
    device = torch.device("cpu")
    context = 3

    def __init__(self) -> None:
        self.shown: list[tuple[int, int]] = []

    def vectors(self, latents: Tensor) -> Tensor:
        return latents

    def encode(self, frames: Tensor) -> Tensor:
        return frames[:, :1, 0].float() / 255 * 2 - 1

    def reset(self, frames: Tensor, actions: Tensor) -> State:
        self.shown.append((frames.shape[1], actions.shape[1]))
        return self._state(self.encode(frames[:, -1]))

    def rollout(self, state: State, actions: Tensor) -> State:
        return self.imagine(state, SPEC.normalize(actions))

    def imagine(self, state: State, actions: Tensor) -> State:
        place = state.latents[:, 0]
        for action in actions.unbind(1):
            place = place + 0.5 * (action - place)
        return self._state(place[:, None])

    def _state(self, latents: Tensor) -> State:
        rows = torch.ones(len(latents))
        return State(latents, 0 * rows, rows, Nothing())


def view(places: np.ndarray, active: np.ndarray | None = None) -> Observation:
    frames = np.zeros((len(places), 3, 1, 2), np.uint8)
    frames[:, :, 0] = (places / SIZE * 255).round()[:, None]
    everywhere = np.ones(len(places), bool)
    return Observation(frames, places, 0 * places, everywhere if active is None else active)


def play(policy: MpcPolicy | RecordVideo, steps: int) -> np.ndarray:
    places = np.full((3, 2), 30.0)
    policy.reset(view(places), view(GOALS))
    for _ in range(steps):
        places = places + 0.5 * (policy.act(view(places)) - places)
    return places


def policy(method: Literal["cem", "gradient"] = "cem", keep: int = 6) -> tuple[MpcPolicy, Seen]:
    world = Seen()
    config = PlannerConfig(
        method, num_samples=64, iterations=12, num_elites=8, horizon=2, action_block=3
    )
    return MpcPolicy(world, Planner(config, world), keep), world  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["cem", "gradient"])
def test_a_whole_plan_is_carried_out_and_the_next_made_from_what_is_seen(method) -> None:
    plans, world = policy(method)
    places = play(plans, 12)
    assert np.abs(places - GOALS).max() < 5
    assert world.shown == [(1, 0), (3, 2)]  # as many frames as it has in view
    assert len(plans.plan_seconds) == 2


def test_a_plan_that_is_kept_in_part_is_revised_in_the_time_that_is_left() -> None:
    plans, world = policy(keep=3)
    places = play(plans, 12)
    assert np.abs(places - GOALS).max() < 5
    assert len(world.shown) == 4
    assert isinstance(plans.planner, Planner)
    plans.planner.config = replace(plans.planner.config, num_samples=1, warm_start_iterations=1)
    plans.reset(view(places), view(GOALS))
    plans.act(view(places))
    whole = plans.plans
    for _ in range(3):
        plans.act(view(places))
    assert whole.shape == (3, 6, 2)  # one candidate: it is what was left of the way
    assert np.allclose(plans.plans, whole[:, 3:], atol=1e-3)
    assert plans.warm_start is None  # and then nothing is


def test_what_is_over_is_not_planned_for() -> None:
    plans = policy()[0]
    places, active = np.full((3, 2), 30.0), np.array([True, False, True])
    plans.reset(view(places), view(GOALS))
    action = plans.act(view(places, active))
    assert not action[1].any() and action[0].any() and action[2].any()


def test_the_hand_is_read_from_the_latents_of_training_episodes(tmp_path: Path) -> None:
    write_toy_shards(tmp_path / "shards", episodes=80)
    recordings = EpisodeDataset(tmp_path / "shards")

    class Pooled(Seen):
        actions = recordings.actions

        def encode(self, frames: Tensor) -> Tensor:
            ink = (frames.float() / 255 - 0.5).square()  # where each colour is, and how much
            line = torch.linspace(-1, 1, ink.shape[-1])
            across, down = (ink.mean(2) * line).mean(-1), (ink.mean(3) * line).mean(-1)
            return torch.cat([across, down, ink.mean((2, 3))], 1)[:, None]

    world = Pooled()
    hand = LastActionProbe(world, recordings, num_clips=1500)  # type: ignore[arg-type]
    clip = Clips(recordings, "test", clip_length=2)
    held = clip.batch(np.arange(0, len(clip), 3))
    known = world.encode(held.frames[:, 1])
    span = np.array(recordings.actions.high) - np.array(recordings.actions.low)
    wrong = (hand(known) - held.actions[:, 0]).abs().mean(0).numpy() / span
    blind = (held.actions[:, 0] - held.actions[:, 0].mean(0)).abs().mean(0).numpy() / span
    assert (wrong < 0.7 * blind).all()


def test_where_no_action_is_known_a_plan_begins_at_the_hand() -> None:
    plans, _ = policy()
    plans.last_action_probe = lambda latents: torch.full((len(latents), 2), 40.0)
    plans.reset(view(np.full((3, 2), 30.0)), view(GOALS))
    plans.act(view(np.full((3, 2), 30.0)))
    first, second = plans.plans[:, 0], plans.plans[:, 1]  # even steps along the first leg
    assert np.allclose(2 * first - second, 40, atol=1e-2)


def test_parts_of_legs_cannot_be_kept() -> None:
    with pytest.raises(ValueError, match="whole legs of 3, at most 6"):
        policy(keep=4)


def test_films_begin_with_the_goal_and_are_of_the_first_episodes() -> None:
    filmed = RecordVideo(policy()[0], num_episodes=2)
    play(filmed, 6)
    films, goals = filmed.videos(), view(GOALS).frames
    assert films.shape == (2, 7, 3, 1, 2) and goals is not None
    assert torch.equal(films[:, 0], torch.from_numpy(goals[:2]))
    play(filmed, 3)  # of a second batch nothing is kept
    assert filmed.videos().shape == films.shape
