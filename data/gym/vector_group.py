"""Environments that gymnasium vectorizes, each of which resets itself after its episode.

Letters: N environments, n of them in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import iterate

from data.actions import ActionSpec
from data.gym.action_spaces import action_spec, env_action, stored_action
from data.gym.env_spec import EnvSpec
from data.gym.open_env import make_vector_env, stepping
from data.gym.pixel_env import StepResult
from data.gym.pixels import find_pixel_source, to_frame


class VectorGroup:
    """A gymnasium VectorEnv of any autoreset mode.

    The modes differ in what follows an end: NEXT_STEP ignores the next action and gives the first
    frame of another episode; SAME_STEP gives it at once, and the last frame in `final_obs`;
    DISABLED waits.  Here an environment whose episode has ended gives nothing until all are reset.
    """

    def __init__(
        self, envs: VectorEnv, spec: EnvSpec, names: tuple[str, ...] = (), seeds_each: bool = True
    ) -> None:
        """names: of the actions.  seeds_each: `envs.reset` takes a list of seeds."""
        self.envs, self.spec, self.where = envs, spec, spec.id
        self.num_envs, self.seeds_each = envs.num_envs, seeds_each
        self.mode = envs.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        self.pixel_source = find_pixel_source(
            envs.single_observation_space, spec.pixels, self.where
        )
        self.state_dim = self.pixel_source.state_dim
        if self.pixel_source.source == "render" and self.mode == AutoresetMode.SAME_STEP:
            raise ValueError(
                f"--env {self.where} is reset within the step of an end, so its last frame is "
                f"never drawn; leave out --vectorization-mode {spec.vectorization_mode}"
            )
        self.actions: ActionSpec = action_spec(envs.single_action_space, names, self.where)
        own = envs.spec.max_episode_steps if envs.spec else None
        limits = (own or 0, spec.max_episode_steps)
        self.max_episode_steps = min((n for n in limits if n), default=0)
        self._ended, self._steps = np.ones(self.num_envs, bool), 0

    def reset(self, seeds: Sequence[int]) -> list[StepResult]:
        with stepping(self.where):
            if self.seeds_each:  # those that are not used have a seed all the same
                spare = [seeds[-1]] * (self.num_envs - len(seeds))
                seed: Any = [*seeds, *spare]
                observations, infos = self.envs.reset(seed=seed)
            else:
                observations, infos = self.envs.reset(seed=seeds[0])
            images = self._draw()
        self._ended = np.arange(self.num_envs) >= len(seeds)
        self._steps = 0
        results = [
            self._result(i, row, images, infos)
            for i, row in enumerate(iterate(self.envs.observation_space, observations))
        ]
        return results[: len(seeds)]

    def step(self, actions: np.ndarray, active: np.ndarray) -> list[StepResult | None]:
        space, count = self.envs.single_action_space, len(actions)
        self._ended[:count] |= ~active
        padded = [actions[min(i, count - 1)] for i in range(self.num_envs)]
        own = np.stack([env_action(space, self.actions, action) for action in padded])
        with stepping(self.where):
            observations, rewards, terminated, truncated, infos = self.envs.step(own)
            images = self._draw()
            done = np.asarray(terminated) | np.asarray(truncated)
            if self.mode == AutoresetMode.DISABLED and done.any():
                self.envs.reset(options={"reset_mask": done})
        self._steps += 1
        out_of_time = 0 < self.spec.max_episode_steps <= self._steps
        results: list[StepResult | None] = []
        for i, row in enumerate(iterate(self.envs.observation_space, observations)):
            if self._ended[i]:
                results.append(None)
                continue
            own_infos = infos
            if done[i] and self.mode == AutoresetMode.SAME_STEP:
                row, own_infos = infos["final_obs"][i], infos.get("final_info", {})
            cut = bool(truncated[i]) or (out_of_time and not terminated[i])
            ends = float(rewards[i]), bool(terminated[i]), cut
            results.append(self._result(i, row, images, own_infos, *ends))
            self._ended[i] = done[i] or out_of_time
        return results[:count]

    def stored_action(self, action: Any) -> np.ndarray:
        return stored_action(self.envs.single_action_space, self.actions, action)

    def close(self) -> None:
        self.envs.close()

    def _draw(self) -> Any:
        return self.envs.render() if self.pixel_source.source == "render" else None

    def _result(
        self,
        i: int,
        observation: Any,
        images: Any,
        infos: dict[str, Any],
        reward: float = 0.0,
        terminated: bool = False,
        truncated: bool = False,
    ) -> StepResult:
        pixels = self.pixel_source.pixels(observation, lambda: images[i])
        frame = to_frame(pixels, self.spec.image_size, self.spec.grayscale, self.where)
        lives = infos["lives"][i] if "lives" in infos else None
        return StepResult(
            frame.copy(),
            self.pixel_source.state(observation),
            observation,
            reward,
            terminated,
            truncated,
            None if lives is None else int(lives),
        )


def open_vector_group(spec: EnvSpec, num_envs: int) -> VectorGroup:
    """Open environments as gymnasium.make_vec does."""
    for name, value in (("frame-skip", spec.frame_skip != 1), ("max-pool", spec.max_pool),
                        ("noop-max", spec.noop_max)):  # fmt: skip
        if value:
            raise ValueError(
                f"--{name} is for environments that are stepped one by one; leave it out, or leave "
                f"out --vectorization-mode {spec.vectorization_mode}"
            )
    probe = make_vector_env(spec, "observation", 1)
    try:
        found = find_pixel_source(probe.single_observation_space, spec.pixels, spec.id)
    finally:
        probe.close()
    envs = make_vector_env(spec, found.source, num_envs)
    return VectorGroup(envs, spec, seeds_each=spec.vectorization_mode != "vector_entry_point")
