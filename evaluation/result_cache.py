"""Parts of an evaluation: each is saved when done, so an interrupted evaluation goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from pipeline.checkpoint import write_whole

DIGITS = 6


class Parts:
    """Results in FOLDER/NAME.json, each with what it was made from.

    A part made from the same fingerprints and settings is not done again, unless `restart`.
    """

    def __init__(self, folder: Path, restart: bool = False):
        self.folder = folder
        self.restart = restart

    def do(
        self, name: str, made_from: dict[str, Any], make: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Give a part's result, from the file or by making it."""
        saved = None if self.restart else self.saved(name, made_from)
        if saved is not None:
            tqdm.write(f"{name}: done before ({self.folder / name}.json); --restart does it again")
            return saved
        started = time.monotonic()
        result = plain(make())
        seconds = round(time.monotonic() - started, 2)
        whole = {"made_from": plain(made_from), "seconds": seconds, "result": result}
        write_json(self.folder / f"{name}.json", whole)
        tqdm.write(f"{name}: {seconds:.1f} s")
        return result

    def saved(self, name: str, made_from: dict[str, Any]) -> dict[str, Any] | None:
        """Give the saved result of a part, if there is one made from the same."""
        whole = self._read(name)
        return whole["result"] if whole and whole["made_from"] == plain(made_from) else None

    def total(self, names: list[str]) -> float:
        """Seconds that the saved parts of these names took."""
        found = (self._read(name) for name in names)
        return round(sum(whole["seconds"] for whole in found if whole), 1)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            return json.loads((self.folder / f"{name}.json").read_text())
        except (OSError, ValueError):
            return None


def plain(value: Any) -> Any:
    """Give what JSON can hold: numbers rounded, tuples as lists, what is not finite as null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray | torch.Tensor):
        return [plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return round(float(value), DIGITS) if np.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, Path):
        return str(value)
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a file of JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(plain(value), indent=1, allow_nan=False) + "\n").encode())
