"""A world model as a gymnasium environment, for any reinforcement learner.

Letters: N environments, (H, W) of a frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from data.actions import ActionSpec, as_tensor
from models.dynamics.dynamics import State

if TYPE_CHECKING:
    from models.world import World

ObsType = Literal["frames", "latents"]


class Starts(Protocol):
    """First frames of episodes: clips of at least one frame (data/clips.py)."""

    def __len__(self) -> int: ...
    def batch(self, indices: np.ndarray) -> Any: ...


@dataclass
class Cohort:
    """Environments that were reset together and share one state of the world.

    A world's memory has a length, so states of different ages cannot share a batch.
    """

    rows: np.ndarray  # (M,) which environments
    state: State  # M rows


class WorldEnv(VectorEnv):
    """N episodes of model rollouts, in batches of those that were reset together.

    An episode starts from a clip of real frames; the model predicts the rest.  It terminates where
    the continue probability is below 0.5, and is truncated after `horizon` steps; the step after
    that resets it and ignores its action (gymnasium's NEXT_STEP).

    obs_type: frames, (H, W, 3) uint8, or the dynamics model's latents, which need no decoding.
    `reset(options={"clips": [...]})` starts from given clips; `info["clip"]` holds their indices.
    """

    metadata = {  # noqa: RUF012 (gymnasium's own shape)
        "autoreset_mode": AutoresetMode.NEXT_STEP,
        "render_modes": ["rgb_array"],
        "render_fps": 10,
    }

    def __init__(
        self,
        world: World,
        starts: Starts,
        num_envs: int = 1,
        horizon: int = 100,
        obs_type: ObsType = "frames",
        render_mode: str | None = None,
    ) -> None:
        if num_envs < 1 or horizon < 1:
            raise ValueError(
                f"num_envs and horizon must be at least 1, not {num_envs} and {horizon}"
            )
        self.world, self.starts = world, starts
        self.num_envs, self.horizon = num_envs, horizon
        self.obs_type: ObsType = obs_type
        self.render_mode = render_mode
        self.single_observation_space = observation_space(world, obs_type)
        self.single_action_space = action_space(world.actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._cohorts: list[Cohort] = []
        self._done = np.ones(num_envs, bool)
        self._steps = np.zeros(num_envs, np.int64)

    @torch.inference_mode()
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start all episodes over: (N, ...) observations."""
        super().reset(seed=seed)
        self._cohorts = []
        clips = np.asarray((options or {}).get("clips", self._sample_starts(self.num_envs)))
        if clips.shape != (self.num_envs,):
            raise ValueError(
                f"options['clips'] has shape {clips.shape}, but there are {self.num_envs} "
                f"environments; give one clip each"
            )
        self._start_episodes(np.arange(self.num_envs), clips)
        return self._observations(), {"clip": clips, "_clip": np.ones(self.num_envs, bool)}

    @torch.inference_mode()
    def step(
        self, actions: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """(N, A) or (N,) -> observations, rewards, terminations, truncations, infos."""
        assert self._cohorts, "call reset first"
        actions = np.asarray(actions, self.single_action_space.dtype)
        resetting = self._done.copy()
        self._drop_done(resetting)
        rewards = np.zeros(self.num_envs)
        terminations = np.zeros(self.num_envs, bool)
        for cohort in self._cohorts:
            action = as_tensor(actions[cohort.rows]).to(self.world.device)
            with self._seeded():
                cohort.state = self.world.step(cohort.state, action)
            rewards[cohort.rows] = cohort.state.reward.float().cpu().numpy()
            terminations[cohort.rows] = cohort.state.continues.float().cpu().numpy() < 0.5
        self._steps[~resetting] += 1
        info: dict[str, Any] = {}
        if resetting.any():
            clips = np.zeros(self.num_envs, np.int64)
            clips[resetting] = self._sample_starts(int(resetting.sum()))
            self._start_episodes(np.flatnonzero(resetting), clips[resetting])
            info = {"clip": clips, "_clip": resetting}
        truncations = ~terminations & (self._steps >= self.horizon)
        self._done = terminations | truncations
        return self._observations(), rewards, terminations, truncations, info

    @torch.inference_mode()
    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return N frames, (H, W, 3) uint8 each."""
        if self.render_mode is None:
            return None
        return tuple(self._gather(self._decode))

    def single(self) -> SingleWorldEnv:
        """Make a single environment, a plain `gymnasium.Env`."""
        return SingleWorldEnv(
            self.world, self.starts, self.horizon, self.obs_type, render_mode=self.render_mode
        )

    def _sample_starts(self, count: int) -> np.ndarray:
        return self.np_random.integers(0, len(self.starts), count)

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        """Seed what the world samples by this environment's seed."""
        device = self.world.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(int(self.np_random.integers(2**62)))
            yield

    def _start_episodes(self, rows: np.ndarray, clips: np.ndarray) -> None:
        clip = self.starts.batch(clips)
        frames = clip.frames[:, : self.world.context].to(self.world.device)
        actions = clip.actions[:, : frames.shape[1] - 1].to(self.world.device)
        self._cohorts.append(Cohort(rows, self.world.reset(frames, actions)))
        self._steps[rows] = 0
        self._done[rows] = False

    def _drop_done(self, done: np.ndarray) -> None:
        """Remove the environments that ended from their cohorts."""
        kept = []
        for cohort in self._cohorts:
            alive = ~done[cohort.rows]
            if alive.all():
                kept.append(cohort)
            elif alive.any():
                index = torch.from_numpy(np.flatnonzero(alive)).to(self.world.device)
                kept.append(Cohort(cohort.rows[alive], cohort.state.select(index)))
        self._cohorts = kept

    def _observations(self) -> np.ndarray:
        if self.obs_type == "frames":
            return self._gather(self._decode)
        dtype = self.single_observation_space.dtype
        return self._gather(lambda state: _to_numpy(state.latents).astype(dtype))

    def _decode(self, state: State) -> np.ndarray:
        return self.world.decode(state).permute(0, 2, 3, 1).cpu().numpy()

    def _gather(self, fn: Any) -> np.ndarray:
        """Call `fn` on every cohort's state and put the rows in order."""
        order = np.concatenate([cohort.rows for cohort in self._cohorts])
        values = np.concatenate([fn(cohort.state) for cohort in self._cohorts])
        ordered = np.empty_like(values)
        ordered[order] = values
        return ordered


class SingleWorldEnv(gymnasium.Env):
    """One episode of a model rollout, without autoreset."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self,
        world: World,
        starts: Starts,
        horizon: int = 100,
        obs_type: ObsType = "frames",
        render_mode: str | None = None,
    ) -> None:
        self._env = WorldEnv(world, starts, 1, horizon, obs_type, render_mode)
        self.observation_space = self._env.single_observation_space
        self.action_space = self._env.single_action_space
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """options: `clip`, the index of a clip to start from."""
        super().reset(seed=seed)
        many = {"clips": [options["clip"]]} if options and "clip" in options else None
        observations, info = self._env.reset(seed=seed, options=many)
        return observations[0], {"clip": int(info["clip"][0])}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert not self._env._done[0], "the episode has ended; call reset"
        observations, reward, terminated, truncated, _ = self._env.step(np.asarray(action)[None])
        return observations[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        images = self._env.render()
        return None if images is None else images[0]


def observation_space(world: World, obs_type: ObsType) -> spaces.Box:
    """The gymnasium space of an observation: frames (H, W, 3), or latents."""
    height, width = world.image_size
    if obs_type == "frames":
        return spaces.Box(0, 255, (height, width, 3), np.uint8)
    latents = world.state_spec
    if latents.kind == "discrete":
        return spaces.Box(0, latents.codebook_size - 1, (latents.tokens_per_frame,), np.int64)
    return spaces.Box(-np.inf, np.inf, (latents.tokens_per_frame, latents.dim), np.float32)


def action_space(spec: ActionSpec) -> spaces.Box | spaces.Discrete:
    """The gymnasium space of a step's action, in the environment's units."""
    if spec.kind == "discrete":
        return spaces.Discrete(spec.size)
    return spaces.Box(np.array(spec.low, np.float32), np.array(spec.high, np.float32))


def _to_numpy(latents: Tensor) -> np.ndarray:
    # numpy has no bfloat16, the dtype of some latents
    return (latents.float() if latents.is_floating_point() else latents).cpu().numpy()
