"""Who acts while episodes are recorded: random policies, and a function of one's own.

Letters: n episodes, A numbers of an action.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from data.actions import ActionSpec
from data.gym.env_group import EnvGroup
from data.gym.pixel_env import StepResult
from data.io.messages import one_line

RANDOM, STICKY_RANDOM = "random", "sticky-random"


class RecordingPolicy(Protocol):
    """Gives the actions of n episodes that begin together."""

    def reset(self, results: Sequence[StepResult], seeds: Sequence[int]) -> None:
        """Start episodes at their first frames; the seeds decide all that is random."""
        ...

    def act(self, results: Sequence[StepResult], active: np.ndarray) -> np.ndarray:
        """Give actions (n, A) or (n,) of the environment's ActionSpec; those of episodes that are
        not `active`, (n,) bool, are not used."""
        ...


class PolicyChoice(Protocol):
    """A policy that a worker process opens for its environments.  It can be pickled."""

    @property
    def name(self) -> str:
        """What the shards call it."""
        ...

    def open(self, envs: EnvGroup) -> RecordingPolicy: ...


class RandomPolicy:
    """Draw uniform actions, and hold each for `hold` steps; an episode depends on its own seed."""

    def __init__(self, actions: ActionSpec, hold: int = 1) -> None:
        self.actions, self.hold = actions, hold

    def reset(self, results: Sequence[StepResult], seeds: Sequence[int]) -> None:
        self._rngs = [np.random.default_rng((seed, 1)) for seed in seeds]
        self._step = 0

    def act(self, results: Sequence[StepResult], active: np.ndarray) -> np.ndarray:
        if self._step % self.hold == 0:
            self._held = np.concatenate([self.actions.sample(1, rng) for rng in self._rngs])
        self._step += 1
        return self._held


@dataclass(frozen=True)
class RandomChoice:
    """A new uniform action each step, or one for `hold` steps."""

    hold: int = 1

    @property
    def name(self) -> str:
        return RANDOM if self.hold == 1 else f"{STICKY_RANDOM} {self.hold}"

    def open(self, envs: EnvGroup) -> RecordingPolicy:
        return RandomPolicy(envs.actions, self.hold)


@dataclass(frozen=True)
class CallableChoice:
    """module:callable, of the environment's own observation, giving an action of its own.

    A class is made anew for each episode, without arguments, so that it can remember.
    """

    path: str

    @property
    def name(self) -> str:
        return self.path

    def open(self, envs: EnvGroup) -> RecordingPolicy:
        return _CallablePolicy(self.path, load_callable(self.path), envs)


class _CallablePolicy:
    def __init__(self, path: str, function: Callable[..., Any], envs: EnvGroup) -> None:
        self.path, self.function, self.envs = path, function, envs

    def reset(self, results: Sequence[StepResult], seeds: Sequence[int]) -> None:
        is_class = isinstance(self.function, type)
        with self._in_one_line():
            self._functions = [self.function() if is_class else self.function for _ in results]

    def act(self, results: Sequence[StepResult], active: np.ndarray) -> np.ndarray:
        spec = self.envs.actions
        idle = spec.empty(1, 1)[0, 0].numpy()
        return np.stack(
            [
                self._call(function, result) if is_active else idle
                for function, result, is_active in zip(
                    self._functions, results, active, strict=True
                )
            ]
        )

    def _call(self, function: Callable[..., Any], result: StepResult) -> np.ndarray:
        with self._in_one_line():
            return self.envs.stored_action(function(result.observation))

    @contextmanager
    def _in_one_line(self) -> Iterator[None]:
        try:
            yield
        except (Exception, SystemExit) as problem:  # it may raise anything
            raise ValueError(
                f"--policy {self.path} failed ({type(problem).__name__}: {one_line(problem)})"
            ) from problem


def load_callable(path: str) -> Callable[..., Any]:
    """Import module:callable; ValueError says what is not there."""
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as problem:  # a module may raise anything
        raise ValueError(
            f"--policy {path} cannot be imported ({one_line(problem)}); give module:callable, with "
            f"the module in this folder or installed"
        ) from None
    if not callable(found):
        raise ValueError(f"--policy {path} is a {type(found).__name__}, not a function or a class")
    return found
