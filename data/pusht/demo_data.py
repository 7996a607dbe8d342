"""Human Push-T demonstrations as stored, in zarr or npz (Chi et al., arXiv:2303.04137)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from data.io.messages import first_few, one_line
from data.io.sniff import describe_content
from data.pusht.simulator import WINDOW_SIZE
from data.pusht.zarr_store import ZarrStore

ARRAYS = {"state": "data/state", "action": "data/action", "episode_ends": "meta/episode_ends"}
OPTIONAL = {"n_contacts": "data/n_contacts"}
MARGIN = 128  # pixels around the world in which recordings may lie
MAX_ANGLE = 100  # radians, unwrapped; degrees pass it
MOVED = 2.0  # pixels in a step that the block does not move without a contact
MANY_MOVES = 3  # in a chunk; in a few the contact was too short to be counted


@dataclass(frozen=True)
class DemoData:
    """All demonstrations, concatenated. N steps, E episodes."""

    states: np.ndarray  # (N, 5), as STATE_NAMES
    actions: np.ndarray  # (N, 2) targets; actions[t]: states[t] -> states[t + 1]
    contacts: np.ndarray | None  # (N,); None where the file has none
    episode_ends: np.ndarray  # (E,) exclusive

    def rows(self, episode: int) -> slice:
        return slice(
            int(self.episode_ends[episode - 1]) if episode else 0, int(self.episode_ends[episode])
        )


@lru_cache(maxsize=1)
def load_demos(path: Path) -> DemoData:
    """Read the zarr store (a folder or a zip, or a folder that holds it) or the low-dimensional
    npz.

    ValueError names the file and the fault.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist; --demos takes a zarr folder, a zip or an npz")
    arrays = _from_npz(path) if path.suffix.lower() == ".npz" else _from_zarr(path)
    for name, values in arrays.items():
        if values.dtype.kind not in "iuf":
            raise ValueError(f"{path}: its {name} holds {values.dtype}, but numbers are needed")
    states, actions, ends = arrays["state"], arrays["action"], arrays["episode_ends"]
    count = len(states) if states.ndim else 0
    if states.shape != (count, 5) or actions.shape != (count, 2):
        raise ValueError(
            f"{path} holds states {states.shape} and actions {actions.shape}, but (N, 5) and "
            f"(N, 2) with the same N are needed"
        )
    if ends.ndim != 1 or len(ends) == 0 or (np.diff(ends.astype(float), prepend=0) <= 0).any():
        raise ValueError(f"{path}: its episode ends do not rise; get the file again")
    if ends[-1] != count:
        raise ValueError(
            f"{path}: its last episode ends at step {ends[-1]}, but it holds {count} steps; "
            f"it is truncated, get it again"
        )
    _check_in_world(states, actions, path)
    contacts = arrays.get("n_contacts")
    if contacts is not None and contacts.size != count:
        raise ValueError(f"{path} holds {count} states, but n_contacts of {contacts.shape}")
    contacts = None if contacts is None else contacts.reshape(count)
    return DemoData(states, actions, contacts, ends.astype(np.int64))


def _check_in_world(states: np.ndarray, actions: np.ndarray, path: Path) -> None:
    """Refuse numbers that are no poses of the world, before physics and drawing see them."""
    low, high = -MARGIN, WINDOW_SIZE + MARGIN
    for name, values, limits in (
        ("positions", states[:, :4], (low, high)),
        ("angles", states[:, 4:], (-MAX_ANGLE, MAX_ANGLE)),
        ("actions", actions, (low, high)),
    ):
        if not np.isfinite(values).all():
            row = int(np.argwhere(~np.isfinite(values))[0][0])
            raise ValueError(f"{path} has NaN or infinity in its {name} at step {row}")
        outside = (values < limits[0]) | (values > limits[1])
        if outside.any():
            row, column = np.argwhere(outside)[0]
            unit = "radians" if name == "angles" else f"pixels of the {WINDOW_SIZE} x {WINDOW_SIZE}"
            raise ValueError(
                f"{path} has {values[row, column]:.6g} in its {name} at step {row}, but {unit} "
                f"from {limits[0]:g} to {limits[1]:g} are needed; correct or remove such episodes"
            )
    if np.abs(states[:, :4]).max() <= 2:
        raise ValueError(
            f"{path} has positions up to {np.abs(states[:, :4]).max():.3g}, which look like "
            f"fractions; pixels of the {WINDOW_SIZE} x {WINDOW_SIZE} world are needed, multiply "
            f"them"
        )


def _from_npz(path: Path) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    try:
        with np.load(path) as file:
            names = file.files
            arrays = {name: file[name] for name in (*ARRAYS, *OPTIONAL) if name in names}
    except Exception as problem:  # a damaged header, method or size raises many kinds
        kind = describe_content(path)
        why = one_line(problem) if "zip archive" in kind else f"it is {kind}"
        raise ValueError(f"{path} cannot be read ({why}); get it again") from None
    _check_keys(names, path)
    return arrays


def _from_zarr(path: Path) -> dict[str, np.ndarray]:
    store = ZarrStore(path, tuple(ARRAYS.values()))
    _check_keys([name.rpartition("/")[2] for name in store.arrays()], path)
    for name in ARRAYS.values():
        missing, line = store.missing_rows(name)
        if missing:
            raise ValueError(f"{path} is not whole: {line}; get it again")
    arrays = {name: store.read(where) for name, where in ARRAYS.items()}
    for name, where in OPTIONAL.items():
        if where not in store.arrays():
            continue
        missing, line = store.missing_rows(where)
        counts = store.read(where)
        if 0 < sum(len(counts[rows]) for rows in missing) < len(counts):
            # a store may leave out chunks of zeros; where the block moves, zero is wrong
            moved = np.linalg.norm(np.diff(arrays["state"][:, 2:4], axis=0, prepend=np.nan), axis=1)
            if any((moved[rows] > MOVED).sum() >= MANY_MOVES for rows in missing):
                raise ValueError(f"{path} is not whole: {line}; get it again")
        arrays[name] = counts
    return arrays


def _check_keys(names: Iterable[str], path: Path) -> None:
    for name, where in ARRAYS.items():
        if name not in names:
            there = first_few(sorted(names)) or "no arrays"
            raise ValueError(
                f"{path} has no {where} (it holds {there}); it is not the Push-T dataset, "
                f"or is truncated"
            )
