"""A line for each part of an evaluation that is finished, for whoever follows it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LOG = "log.jsonl"


class PartLog:
    """FOLDER/log.jsonl, begun anew."""

    def __init__(self, folder: Path, parts: Sequence[str]) -> None:
        """parts: the names of all that is to be measured."""
        self._path, self._done = folder / LOG, 0
        self._path.unlink(missing_ok=True)  # who follows it sees another file
        self._write({"step": 0, "parts": list(parts)})

    def done(self, part: str, result: dict[str, Any]) -> None:
        """result: as JSON holds it."""
        self._done += 1
        self._write({"step": self._done, "part": part, "result": result})

    def _write(self, record: dict[str, Any]) -> None:
        with open(self._path, "a") as file:
            file.write(json.dumps(record | {"time": time.time()}) + "\n")
