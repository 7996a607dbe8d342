"""The 206 human Push-T demonstrations (Chi et al., arXiv:2303.04137), from zarr or npz."""

from __future__ import annotations

import zipfile
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import ZipStore

from data.episodes import Episode
from data.pusht.simulator import (
    ACTIONS,
    STATE_NAMES,
    STEPS_PER_SECOND,
    SUCCESS_COVERAGE,
    PushT,
    reward,
)


@dataclass(frozen=True)
class DemoData:
    """All demonstrations, concatenated. N steps, E episodes."""

    states: np.ndarray  # (N, 5), as STATE_NAMES
    actions: np.ndarray  # (N, 2) targets; actions[t]: states[t] -> states[t + 1]
    contacts: np.ndarray  # (N,)
    episode_ends: np.ndarray  # (E,) exclusive

    def rows(self, episode: int) -> slice:
        return slice(
            int(self.episode_ends[episode - 1]) if episode else 0, int(self.episode_ends[episode])
        )


@lru_cache(maxsize=1)
def load_demos(path: Path) -> DemoData:
    """Read the zarr store (a folder or a zip) or the low-dimensional npz.

    ValueError names the file and the fault.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist; --demos takes a zarr folder, a zip or an npz")
    arrays = _from_npz(path) if path.suffix == ".npz" else _from_zarr(path)
    states, actions = np.asarray(arrays["state"]), np.asarray(arrays["action"])
    ends = np.asarray(arrays["episode_ends"], np.int64)
    count = len(states)
    if states.ndim != 2 or states.shape[1] != 5 or actions.shape != (count, 2):
        raise ValueError(
            f"{path} holds states {states.shape} and actions {actions.shape}, but (N, 5) and "
            f"(N, 2) with the same N are needed"
        )
    if len(ends) == 0 or (np.diff(ends, prepend=0) <= 0).any():
        raise ValueError(f"{path}: its episode ends do not rise; get the file again")
    if ends[-1] != count:
        raise ValueError(
            f"{path}: its last episode ends at step {ends[-1]}, but it holds {count} steps; "
            f"it is truncated, get it again"
        )
    for name, values in (("states", states), ("actions", actions)):
        if not np.isfinite(values).all():
            row = int(np.argwhere(~np.isfinite(values))[0][0])
            raise ValueError(f"{path} has NaN or infinity in its {name} at step {row}")
    images = arrays.get("img")
    if images is not None and images.shape != (count, 96, 96, 3):
        raise ValueError(f"{path} holds images {images.shape}, but ({count}, 96, 96, 3) are needed")
    contacts = np.asarray(arrays.get("n_contacts", np.zeros(count))).reshape(count)
    return DemoData(states, actions, contacts, ends)


def _from_npz(path: Path) -> dict[str, Any]:
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as problem:
        raise ValueError(f"{path} cannot be read ({problem}); get the file again") from None
    return _check_keys(arrays, path)


def _from_zarr(path: Path) -> dict[str, Any]:
    try:
        if path.is_dir():
            group = zarr.open_group(str(path), mode="r")
        else:
            # the public zip holds the store in a folder
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
            roots = [n.removesuffix(".zgroup") for n in names if n.endswith(".zgroup")]
            root = min(roots, key=len) if roots else ""
            store = ZipStore(path, mode="r")
            group = zarr.open_group(store, path=root.rstrip("/"), mode="r")
        arrays: dict[str, Any] = {}
        for group_name in ("data", "meta"):
            if group_name in group:
                folder: Any = group[group_name]
                arrays |= {name: folder[name] for name in folder.array_keys()}
    except zipfile.BadZipFile:
        raise ValueError(
            f"{path} is not a whole zip file (a truncated download?); get it again"
        ) from None
    except Exception as problem:  # zarr raises many kinds
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise ValueError(f"{path} cannot be read as a zarr store ({reason})") from None
    return _check_keys(arrays, path)


def _check_keys(arrays: dict[str, Any], path: Path) -> dict[str, Any]:
    for name, where in (
        ("state", "data/state"),
        ("action", "data/action"),
        ("episode_ends", "meta/episode_ends"),
    ):
        if name not in arrays:
            there = ", ".join(sorted(arrays)) or "nothing"
            raise ValueError(
                f"{path} has no {where} (it holds {there}); it is not the Push-T dataset, "
                f"or is truncated"
            )
    return arrays


@dataclass(frozen=True)
class Demonstrations:
    """The demonstrations, rendered from their states at `image_size`.

    A demonstration has no state after its last action, with which some succeed: the simulator
    executes that action, and its outcome is the last frame.

    Frames are rendered at 96 pixels too: the images of the store are resized in another way (see
    `PushT.render`), and dataset and simulator must look alike.
    """

    path: str
    image_size: int = 64
    episodes_per_shard: int = 26

    @property
    def num_sources(self) -> int:
        return len(load_demos(Path(self.path)).episode_ends)

    @property
    def num_shards(self) -> int:
        return -(-self.num_sources // self.episodes_per_shard)

    def description(self) -> dict[str, Any]:
        return {
            "source": "human demonstrations",
            "image_size": [self.image_size, self.image_size],
            "actions": ACTIONS.as_dict(),
            "state_names": list(STATE_NAMES),
            "success": SUCCESS_COVERAGE,
            "images": "rendered from the states",
            "last_frame": "the last action, executed in the simulator",
            "settings": asdict(self) | {"path": Path(self.path).name},
        }

    def make_shard(self, index: int) -> list[Episode]:
        first = index * self.episodes_per_shard
        simulator = PushT(self.image_size)
        last = min(first + self.episodes_per_shard, self.num_sources)
        return [self.episode(simulator, number) for number in range(first, last)]

    def episode(self, simulator: PushT, number: int) -> Episode:
        demos = load_demos(Path(self.path))
        rows = demos.rows(number)
        states, actions = demos.states[rows], demos.actions[rows].astype(np.float32)
        previous = states[-2] if len(states) > 1 else states[-1]
        simulator.reset(states[-1], (states[-1] - previous)[:2] * STEPS_PER_SECOND)
        simulator.step(actions[-1])
        contacts = np.append(demos.contacts[rows], simulator.contacts).astype(np.float32)
        states = np.concatenate([states, simulator.state[None]])
        frames, rewards = [], []
        for state in states:
            simulator.reset(state)
            rewards.append(float(reward(simulator.coverage())))
            frames.append(simulator.render())
        terminals = np.zeros(len(states), bool)
        terminals[-1] = rewards[-1] >= 1
        return Episode(
            frames=np.stack(frames),
            actions=np.concatenate([actions, actions[-1:]]),
            source=number,
            rewards=np.array(rewards, np.float32),
            terminals=terminals,
            states=states.astype(np.float32),
            contacts=contacts,
        )
