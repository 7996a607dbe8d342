"""Open an environment by its id, with every failure in one line.

Packages that the core does not need are imported here, and only where an id asks for them.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # no display is needed
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import gymnasium

from data.gym.env_spec import EnvSpec
from data.io.messages import one_line

# What ids of a package look like, the module that registers them when it is imported, and what
# installs the package.
PACKAGES = (
    (re.compile(r"ALE/|\w+NoFrameskip-v4$"), "ale_py", "pip install -r requirements-atari.txt"),
    (re.compile(r"MiniGrid-|BabyAI-"), "minigrid", "pip install minigrid"),
    (re.compile(r"Crafter(No)?Reward-v1$"), "data.gym.crafter_env", "pip install crafter"),
)


def make_env(spec: EnvSpec, pixels: str) -> gymnasium.Env:
    """Open one environment; pixels: where its pixels are from (data/gym/pixels.py)."""
    register(spec.id)
    with _in_one_line(spec.id):
        render_mode = {"render_mode": "rgb_array"} if pixels == "render" else {}
        env = gymnasium.make(spec.id, **render_mode, **spec.kwargs)
    if pixels == "render":
        _check_renders(env, spec.id)
    return env


def make_vector_env(spec: EnvSpec, pixels: str, num_envs: int) -> gymnasium.vector.VectorEnv:
    """Open `num_envs` environments that gymnasium steps together."""
    register(spec.id)
    with _in_one_line(spec.id):
        render_mode = {"render_mode": "rgb_array"} if pixels == "render" else {}
        envs = gymnasium.make_vec(
            spec.id,
            num_envs=num_envs,
            vectorization_mode=spec.vectorization_mode,
            **render_mode,
            **spec.kwargs,
        )
    if pixels == "render":
        _check_renders(envs, spec.id)
    return envs


def register(env_id: str) -> None:
    """Import the package that registers an id; ValueError says what installs it."""
    for pattern, module, install in PACKAGES:
        if pattern.match(env_id):
            try:
                _quiet(importlib.import_module(module))
            except ImportError as problem:
                raise ValueError(
                    f"--env {env_id} needs the package {problem.name or module}, which is not "
                    f"installed: {install}"
                ) from None


def _quiet(package: Any) -> None:
    """Keep ALE from greeting at every environment."""
    if hasattr(package, "ALEInterface"):
        package.ALEInterface.setLoggerMode(package.LoggerMode.Error)


@contextmanager
def stepping(env_id: str) -> Iterator[None]:
    """Report what an environment raises while it is used in one line."""
    with _in_one_line(env_id, "failed while it was used"):
        yield


@contextmanager
def _in_one_line(env_id: str, what: str = "cannot be opened") -> Iterator[None]:
    try:
        yield
    except ValueError:
        raise
    except ModuleNotFoundError as problem:
        raise ValueError(
            f"--env {env_id} {what} ({problem}); install that module, or correct the part before "
            f"the colon"
        ) from None
    except gymnasium.error.DependencyNotInstalled as problem:
        raise ValueError(f"--env {env_id} {what}: {one_line(problem)}") from None
    except gymnasium.error.UnregisteredEnv as problem:
        raise ValueError(
            f"--env {env_id} {what}: {one_line(problem)}; an id of another package is given as "
            f"module:ID"
        ) from None
    except Exception as problem:  # an environment may raise anything
        raise ValueError(
            f"--env {env_id} {what} ({type(problem).__name__}: {one_line(problem)}); see "
            f"--env-kwargs"
        ) from problem


def _check_renders(env: Any, env_id: str) -> None:
    if env.render_mode != "rgb_array":
        raise ValueError(
            f"--env {env_id} does not draw rgb_array images, and observes none; choose another"
        )
