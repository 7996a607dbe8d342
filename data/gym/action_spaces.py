"""Action spaces of gymnasium as ours, and actions back.

Letters: A numbers of an action, F factors.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Any

import numpy as np
from gymnasium import spaces

from data.actions import ActionSpec, Factor
from data.arrays.array_actions import MAX_CODES

OFF = "off"  # the label of a button that is not pressed


def action_spec(space: spaces.Space, names: tuple[str, ...] = (), where: str = "") -> ActionSpec:
    """Describe an action space; names: of the actions of a Discrete one, where they are known.

    Discrete becomes codes, MultiDiscrete and MultiBinary codes of factors, a Box of finite limits
    continuous numbers.  ValueError for all others, with the reason.
    """
    if isinstance(space, spaces.Discrete):
        size = int(space.n)
        _check_size(size, space, where)
        known = len(names) == size and len(set(names)) == size
        start = int(space.start)
        own = names if known else tuple(str(start + code) for code in range(size))
        return ActionSpec("discrete", own)
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        sizes = _factor_sizes(space)
        _check_size(math.prod(sizes), space, where)
        return ActionSpec("discrete", (), factors=_factors(space, sizes))
    if isinstance(space, spaces.Box):
        return _continuous(space, where)
    raise ValueError(
        f"{where} has actions of {str(space)[:60]}; Discrete, MultiDiscrete, MultiBinary and Box "
        f"can be recorded: wrap it to have one of these"
    )


def env_action(space: spaces.Space, spec: ActionSpec, action: np.ndarray) -> Any:
    """Turn an action of `spec`, a code or (A,), into the environment's own."""
    if isinstance(space, spaces.Discrete):
        return int(action) + int(space.start)
    if isinstance(space, spaces.MultiDiscrete):
        choices = spec.unravel(np.asarray(action, np.int64)).reshape(space.nvec.shape)
        return (choices + space.start).astype(space.dtype)
    if isinstance(space, spaces.MultiBinary):
        return spec.unravel(np.asarray(action, np.int64)).reshape(space.shape).astype(space.dtype)
    assert isinstance(space, spaces.Box)
    clipped = np.clip(np.asarray(action, space.dtype).reshape(space.shape), space.low, space.high)
    return clipped


def stored_action(space: spaces.Space, spec: ActionSpec, action: Any) -> np.ndarray:
    """Turn an environment's own action into one of `spec`; ValueError where it is none."""
    if not space.contains(action):  # a number of another type is taken, where none gets lost
        given = np.asarray(action)
        kinds = "biuf" if isinstance(space, spaces.Box) else "biu"
        if given.dtype.kind in kinds and given.shape == space.shape:
            action = given.astype(space.dtype)
        if not space.contains(action):
            raise ValueError(f"{str(action)[:60]} is no action of {str(space)[:60]}")
    if isinstance(space, spaces.Discrete):
        return np.asarray(int(action) - int(space.start), np.int64)
    if isinstance(space, spaces.MultiDiscrete):
        return np.asarray(spec.ravel((action - space.start).reshape(-1).astype(np.int64)))
    if isinstance(space, spaces.MultiBinary):
        return np.asarray(spec.ravel(np.asarray(action, np.int64).reshape(-1)))
    return np.asarray(action, np.float32).reshape(-1)


def action_names(env: Any) -> tuple[str, ...]:
    """Return the names of an environment's actions, as ALE, MiniGrid and Crafter have them."""
    inner = env.unwrapped
    meanings = getattr(inner, "get_action_meanings", None)
    if callable(meanings):
        return tuple(str(name) for name in meanings())  # type: ignore[attr-defined]
    found = getattr(inner, "actions", None)
    if isinstance(found, type) and issubclass(found, Enum):
        return tuple(action.name for action in found)
    found = getattr(inner, "action_names", ())
    return tuple(map(str, found)) if isinstance(found, list | tuple) else ()


def _continuous(space: spaces.Box, where: str) -> ActionSpec:
    low, high = (np.asarray(limit, np.float64).reshape(-1) for limit in (space.low, space.high))
    if space.dtype is None or space.dtype.kind != "f":
        raise ValueError(
            f"{where} has actions of {str(space)[:60]}, whole numbers in a Box; use MultiDiscrete"
        )
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError(
            f"{where} has actions of {str(space)[:60]}, without finite limits; wrap it with "
            f"gymnasium.wrappers.RescaleAction"
        )
    names = tuple(f"action_{dim}" for dim in range(len(low)))
    return ActionSpec("continuous", names, tuple(low.tolist()), tuple(high.tolist()))


def _factor_sizes(space: spaces.MultiDiscrete | spaces.MultiBinary) -> list[int]:
    if isinstance(space, spaces.MultiDiscrete):
        return [int(size) for size in space.nvec.reshape(-1)]
    return [2] * math.prod(space.shape)


def _factors(
    space: spaces.MultiDiscrete | spaces.MultiBinary, sizes: list[int]
) -> tuple[Factor, ...]:
    if isinstance(space, spaces.MultiBinary):
        names = [f"button_{dim}" for dim in range(len(sizes))]
        return tuple(Factor(name, (OFF, name)) for name in names)
    starts = np.asarray(space.start).reshape(-1)
    return tuple(
        Factor(f"choice_{dim}", tuple(f"choice_{dim}={start + code}" for code in range(size)))
        for dim, (size, start) in enumerate(zip(sizes, starts, strict=True))
    )


def _check_size(size: int, space: spaces.Space, where: str) -> None:
    if size > MAX_CODES:
        raise ValueError(
            f"{where} has actions of {str(space)[:60]}, {size:,} together, and at most "
            f"{MAX_CODES:,} are possible; wrap it to have fewer"
        )
