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


class ResultCache:
    """Results in FOLDER/NAME.json, each with what it was made from.

    A part made from the same fingerprints and settings is not done again, unless `restart`.
    """

    def __init__(self, folder: Path, restart: bool = False):
        self.folder = folder
        self.restart = restart

    def get_or_compute(
        self, name: str, cache_key: dict[str, Any], compute: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Give a part's result, from the file or by making it."""
        saved = None if self.restart else self.load(name, cache_key)
        if saved is not None:
            tqdm.write(f"{name}: done before ({self.folder / name}.json); --restart does it again")
            return saved
        start = time.monotonic()
        result = to_json(compute())
        seconds = round(time.monotonic() - start, 2)
        entry = {"made_from": to_json(cache_key), "seconds": seconds, "result": result}
        write_json(self.folder / f"{name}.json", entry)
        tqdm.write(f"{name}: {seconds:.1f} s")
        return result

    def load(self, name: str, cache_key: dict[str, Any]) -> dict[str, Any] | None:
        """Give the saved result of a part, if there is one made from the same."""
        entry = self._read(name)
        return entry["result"] if entry and entry["made_from"] == to_json(cache_key) else None

    def total_seconds(self, names: list[str]) -> float:
        """Seconds that the saved parts of these names took."""
        entries = (self._read(name) for name in names)
        return round(sum(whole["seconds"] for whole in entries if whole), 1)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            return json.loads((self.folder / f"{name}.json").read_text())
        except (OSError, ValueError):
            return None


def to_json(value: Any) -> Any:
    """Give what JSON can hold: numbers rounded, tuples as lists, what is not finite as null."""
    if isinstance(value, dict):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray | torch.Tensor):
        return [to_json(v) for v in value]
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
    write_whole(path, (json.dumps(to_json(value), indent=1, allow_nan=False) + "\n").encode())
