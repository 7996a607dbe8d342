"""Results of an evaluation, saved one by one, so that an interrupted evaluation resumes."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data.io.files import atomic_write, parse_json, read_text

DIGITS = 6


class ResultCache:
    """Results in FOLDER/NAME.json, each with its cache key: fingerprints and settings.

    A result with an equal key is not computed again, unless `restart`.
    """

    def __init__(self, folder: Path, restart: bool = False):
        self.folder = folder
        self.restart = restart

    def get_or_compute(
        self, name: str, cache_key: dict[str, Any], compute: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Give a result, from its file or by computing and saving it."""
        saved = None if self.restart else self.load(name, cache_key)
        if saved is not None:
            tqdm.write(f"{name}: cached ({self.folder / name}.json); --restart recomputes it")
            return saved
        start = time.monotonic()
        result = to_json(compute())
        seconds = round(time.monotonic() - start, 2)
        entry = {"cache_key": to_json(cache_key), "seconds": seconds, "result": result}
        entry["digest"] = _digest(entry)
        write_json(self.folder / f"{name}.json", entry)
        tqdm.write(f"{name}: {seconds:.1f} s")
        return result

    def load(self, name: str, cache_key: dict[str, Any]) -> dict[str, Any] | None:
        """Give a saved result; None if there is none with this key."""
        entry = self._read(name)
        return entry["result"] if entry and entry["cache_key"] == to_json(cache_key) else None

    def total_seconds(self, names: list[str]) -> float:
        """Sum the seconds that the saved results of these names took."""
        entries = (self._read(name) for name in names)
        return round(sum(entry["seconds"] for entry in entries if entry), 1)

    def _read(self, name: str) -> dict[str, Any] | None:
        """Read an entry; None where there is none, or one that was not written so."""
        try:
            entry = parse_json(read_text(self.folder / f"{name}.json"))
        except (OSError, ValueError):
            return None
        whole = isinstance(entry, dict) and entry.get("digest") == _digest(entry)
        return entry if whole else None


def _digest(entry: dict[str, Any]) -> str:
    """Give 16 hex digits that change with any value but the digest itself."""
    values = {key: value for key, value in entry.items() if key != "digest"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def to_json(value: Any) -> Any:
    """Convert to what JSON holds: rounded numbers, lists; what is not finite becomes null."""
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
    """Write a JSON file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, (json.dumps(to_json(value), indent=1, allow_nan=False) + "\n").encode())
