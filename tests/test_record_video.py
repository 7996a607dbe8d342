"""Videos of episodes, from the start to what the last step led to, and the films made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from evaluation.protocols import task
from evaluation.protocols.policies import Observation
from evaluation.protocols.record_video import RecordVideo
from evaluation.protocols.rollout import Starts, play_episodes
from evaluation.report.drawing import HOLD, film_episodes


class Still:
    needs_pixels = True

    def reset(self, obs: Observation, goal: Observation | None) -> None: ...

    def act(self, obs: Observation) -> np.ndarray:
        return np.zeros((len(obs.states), 2))


class Counters:
    """Simulators whose frames are as bright as the steps they have taken; each covers its goal
    after as many steps as are given, or never."""

    def __init__(self, until_success: list[int]) -> None:
        self.num_envs, self.until_success = len(until_success), np.array(until_success)
        self._shown = np.zeros((self.num_envs, 3, 16, 16), np.uint8)

    def reset(self, *args: Any) -> None:
        self.steps = np.zeros(self.num_envs, int)

    def step(self, actions: np.ndarray, active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.steps += active
        covered = (self.until_success > 0) & (self.steps >= self.until_success)
        return np.zeros((self.num_envs, 5)), covered.astype(float)

    def frames(self, active: np.ndarray) -> np.ndarray:
        bright = 60 * self.steps[:, None, None, None].astype(np.uint8)
        self._shown[active] = np.broadcast_to(bright, self._shown.shape)[active]
        return self._shown.copy()


def recorded(until_success: list[int], episodes: int, steps: int) -> tuple[Tensor, np.ndarray]:
    """Play, and return the videos of the first three episodes, and the steps until success."""
    recorder, envs = RecordVideo(3), Counters(until_success)
    played = task.run_task(Still(), envs, list(range(episodes)), steps, watchers=(recorder,))  # type: ignore[arg-type]
    return recorder.videos(), task.steps_until_success(played)


def test_a_video_begins_with_the_start_and_ends_with_the_last_frame():
    videos, steps = recorded([2, 0, 1, 4], episodes=8, steps=4)  # the last four are not recorded
    assert videos.shape == (3, 5, 3, 16, 16) and steps.tolist() == [2, 0, 1, 4] * 2
    shown = (videos[:, :, 0, 0, 0] // 60).tolist()
    assert shown == [[0, 1, 2, 2, 2], [0, 1, 2, 3, 4], [0, 1, 1, 1, 1]]


def test_a_video_towards_a_goal_begins_with_the_goal():
    class White:
        states = np.zeros((2, 5))

        def frames(self, episodes: np.ndarray) -> np.ndarray:
            return np.full((len(episodes), 3, 16, 16), 255, np.uint8)

    recorder, starts = RecordVideo(1), Starts(np.zeros((2, 5)), np.zeros((2, 2)))
    never = lambda episodes, played: np.zeros(len(episodes), bool)  # noqa: E731
    envs: Any = Counters([0, 0])
    play_episodes(Still(), envs, starts, 2, never, White(), watchers=(recorder,))
    assert recorder.videos()[0, :, 0, 0, 0].tolist() == [255, 0, 60, 120]


def test_the_last_frame_of_a_batch_in_which_all_succeed_is_recorded_too():
    videos, _ = recorded([2, 1, 1], episodes=3, steps=4)
    assert (videos[:, :, 0, 0, 0] // 60).tolist() == [[0, 1, 2], [0, 1, 1], [0, 1, 1]]


def test_a_film_has_failures_first_and_turns_green_at_success(tmp_path: Path):
    import av

    videos, steps = recorded([2, 0, 1, 3], episodes=4, steps=4)
    film_episodes(videos, steps, tmp_path / "film.mp4")
    with av.open(str(tmp_path / "film.mp4")) as container:
        images = [f.to_ndarray(format="rgb24").astype(int) for f in container.decode(video=0)]
    assert len(images) == 5 + HOLD and images[0].shape == (40, 240, 3)
    inside = [images[-1][20, 20 + 40 * column].mean() for column in range(3)]
    assert np.allclose(inside, [240, 120, 60], atol=15)  # the failure, then the slowest

    def is_green(step: int, column: int) -> bool:
        red, green, _ = images[step][1, 20 + 40 * column]
        return bool(green > red + 40)

    assert [is_green(step, 1) for step in (0, 1, 2, 3)] == [False, False, True, True]
    assert [is_green(step, 2) for step in (0, 1)] == [False, True] and not is_green(4, 0)


def test_a_film_of_successes_alone_ends_with_the_slowest(tmp_path: Path):
    import av

    videos, steps = recorded([2, 1, 1], episodes=3, steps=4)
    film_episodes(videos, steps, tmp_path / "film.mp4")
    with av.open(str(tmp_path / "film.mp4")) as container:
        images = [f.to_ndarray(format="rgb24").astype(int) for f in container.decode(video=0)]
    assert len(images) == 3 + HOLD
    assert np.allclose(images[-1][20, 20].mean(), 120, atol=15)  # at success, not before it
