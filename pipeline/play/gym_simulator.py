"""The gymnasium environment of a dataset, at any step of its episodes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from data.gym.env_spec import EnvSpec
from data.gym.pixel_env import PixelEnv, StepResult
from data.opencv import resize_area
from data.shards.episode_dataset import EpisodeDataset

if TYPE_CHECKING:
    from pipeline.play.player import Start


class GymSimulator:
    """An environment that is reset with an episode's seed, and led through its actions.

    Any environment can be brought to a step so, whose episodes depend on their seed alone.
    """

    def __init__(self, dataset: EpisodeDataset, spec: EnvSpec) -> None:
        self.dataset = dataset
        self.env = PixelEnv(replace(spec, vectorization_mode="none", max_episode_steps=0))
        where = f"the environment {spec.id} of now"
        dataset.actions.check_same(self.env.actions, str(dataset.folder), where)
        if all(note.get("seed") is None for note in dataset.notes):
            raise ValueError(
                f"the episodes of {dataset.folder} have no seeds of their own, as a vectorized "
                f"{spec.id} gives them none, so none can be repeated; remove --compare-simulator"
            )
        self._warned = False

    def reset(self, start: Start) -> None:
        """Repeat the episode up to the start, and compare the frame there."""
        seed = self.dataset.notes[start.episode].get("seed")
        if seed is None:
            raise ValueError(
                f"episode {start.episode} of {self.dataset.folder} has no seed, so it cannot be "
                f"repeated; choose another --episode, or remove --compare-simulator"
            )
        self._total = 0.0
        self._result: StepResult = self.env.reset(seed)
        for action in self.dataset.read(start.episode, "actions", 0, start.frame):
            self.step(action)
        differing = float((self._result.frame != start.frames[-1]).any(-1).mean())
        if differing and not self._warned:
            print(
                f"warning: {self.env.where} does not repeat its episode {start.episode} exactly "
                f"({differing:.1%} of the pixels differ at frame {start.frame}); what is shown "
                f"next to the world model is another course of events"
            )
            self._warned = True

    def step(self, action: np.ndarray) -> None:
        """Take an action; after the episode's end nothing moves."""
        if not self._result.done:
            self._result = self.env.step(action)
            self._total += self._result.reward

    def coverage(self) -> None:
        return None

    @property
    def ended(self) -> bool:
        return self._result.done

    def place(self) -> None:
        return None

    def status(self) -> str:
        ended = " (ended)" if self.ended else ""
        return f"return {self._total:g}{ended}"

    def render(self, size: int) -> np.ndarray:
        frame = self._result.frame
        return frame if len(frame) == size else resize_area(frame, size)
