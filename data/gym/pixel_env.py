"""One environment as frames: skip, max-pool and no-ops, and the actions of our own spaces.

Letters: S side of a frame, D numbers of a state, A numbers of an action.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from data.actions import ActionSpec
from data.gym.action_spaces import action_names, action_spec, env_action, stored_action
from data.gym.env_spec import EnvSpec
from data.gym.open_env import make_env, register, stepping
from data.gym.pixels import PixelSource, find_pixel_source, to_frame

NOOP = "NOOP"


@dataclass(frozen=True)
class StepResult:
    """What an environment gives at a reset, or after a step."""

    frame: np.ndarray  # (S, S, 3) uint8
    state: np.ndarray | None  # (D,) float32, the numbers that it observes
    observation: Any  # its own, as it gave it
    reward: float = 0.0
    terminated: bool = False
    """A true end."""
    truncated: bool = False
    """The end of a time limit."""
    lives: int | None = None
    """None where the environment has none."""

    @property
    def done(self) -> bool:
        return self.terminated or self.truncated


class PixelEnv:
    """An environment that gives frames; it is not reset by itself.

    >>> env = PixelEnv(EnvSpec("CartPole-v1")); env.reset(seed=0).frame; env.step(1).reward
    """

    def __init__(self, spec: EnvSpec) -> None:
        """ValueError where the environment cannot be opened or recorded, in one line."""
        self.spec, self.where = spec, spec.id
        register(spec.id)
        self.pixel_source = self._find_pixel_source()
        self.env = make_env(spec, self.pixel_source.source)
        self.actions: ActionSpec = action_spec(
            self.env.action_space, action_names(self.env), self.where
        )
        if spec.noop_max and "".join(self.actions.names[:1]).upper() != NOOP:
            raise ValueError(
                f"--noop-max {spec.noop_max} needs an action {NOOP}, and {self.where} has "
                f"{', '.join(self.actions.names[:3])}; leave it out"
            )
        own = self.env.spec.max_episode_steps if self.env.spec else None
        limits = (-(-(own or 0) // spec.frame_skip), spec.max_episode_steps)
        self.max_episode_steps = min((n for n in limits if n), default=0)
        """Steps after which an episode is truncated; 0 where that is not known."""
        self._steps = 0

    def reset(self, seed: int) -> StepResult:
        """Start an episode; the seed decides all that is random in it."""
        with stepping(self.where):
            observation, info = self.env.reset(seed=seed)
            if self.spec.noop_max:
                count = int(np.random.default_rng(seed).integers(self.spec.noop_max + 1))
                for _ in range(count):
                    observation, _, terminated, truncated, info = self.env.step(0)
                    if terminated or truncated:  # it begins anew, without no-ops
                        observation, info = self.env.reset(seed=seed)
                        break
            pixels = self._pixels(observation)
        self._steps = 0
        return self._result([pixels], observation, info)

    def step(self, action: np.ndarray) -> StepResult:
        """Take one action of `actions`, a code or (A,)."""
        spec = self.spec
        own = env_action(self.env.action_space, self.actions, action)
        reward = 0.0
        recent: list[np.ndarray] = []
        first_drawn = spec.frame_skip - (2 if spec.max_pool else 1)
        if spec.max_pool and self.pixel_source.source != "render":
            first_drawn = 0  # observed all the same, and the end may come early
        observation, info, terminated, truncated = None, {}, False, False
        with stepping(self.where):
            for substep in range(spec.frame_skip):
                observation, gained, terminated, truncated, info = self.env.step(own)
                reward += float(gained)
                ended = terminated or truncated
                if substep >= first_drawn or ended:
                    recent = [*recent[-1:], self._pixels(observation)]
                if ended:
                    break
        self._steps += 1
        out_of_time = 0 < spec.max_episode_steps <= self._steps
        ends = bool(terminated), bool(truncated) or (out_of_time and not terminated)
        return self._result(recent, observation, info, reward, *ends)

    def stored_action(self, action: Any) -> np.ndarray:
        """Turn an action of the environment's own into one of `actions`."""
        return stored_action(self.env.action_space, self.actions, action)

    def close(self) -> None:
        self.env.close()

    def _find_pixel_source(self) -> PixelSource:
        """Look at what it observes; an environment that is to be drawn is opened for it."""
        probe = make_env(self.spec, "observation")
        try:
            return find_pixel_source(probe.observation_space, self.spec.pixels, self.where)
        finally:
            probe.close()

    def _pixels(self, observation: Any) -> np.ndarray:
        return np.array(
            self.pixel_source.pixels(observation, self.env.render)
        )  # it may draw over it

    def _result(
        self,
        recent: list[np.ndarray],
        observation: Any,
        info: dict[str, Any],
        reward: float = 0.0,
        terminated: bool = False,
        truncated: bool = False,
    ) -> StepResult:
        """recent: pixels of the last one or two substeps."""
        pools = self.spec.max_pool and len(recent) == 2
        image = np.maximum(*recent) if pools else recent[-1]
        frame = to_frame(image, self.spec.image_size, self.spec.grayscale, self.where)
        lives = info.get("lives")
        return StepResult(
            frame,
            self.pixel_source.state(observation),
            observation,
            reward,
            terminated,
            truncated,
            None if lives is None else int(lives),
        )
