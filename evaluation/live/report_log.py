"""An evaluation while it measures: its parts, their figures, what they drew."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.live.stage_log import StageLog

FILM = re.compile(r"(?P<name>film-\d+)-(?P<frames>\d+)\.webp")
DEPTH = 3  # of the names within a result


@dataclass
class ReportLog(StageLog):
    """RUN/report, whose log has a line for each part that was measured."""

    unit: str = "part"
    title: str = "Evaluating"
    found: dict[str, float] = field(default_factory=dict)
    """Figures of the parts so far."""

    def start_over(self) -> None:
        super().start_over()
        self.found, self.latest_done, self.total = {}, "", 0

    def take(self, record: dict[str, Any], step: int) -> None:
        if isinstance(record.get("parts"), list):
            self.total = len(record["parts"])
        if isinstance(record.get("part"), str):
            self.latest_done = record["part"]
            self.found |= dict(_flat(record.get("result"), self.latest_done, DEPTH))

    def figures(self) -> dict[str, float]:
        return self.found

    def images(self) -> dict[str, list[int]]:
        """Plots and strips, which are drawn once each."""
        names = [path.stem for path in self._drawn("*.png")]
        return {name: [0] for name in [*names, *self.films()]}

    def films(self) -> dict[str, int]:
        matches = (FILM.fullmatch(path.name) for path in self._drawn("film-*.webp"))
        return {match["name"]: int(match["frames"]) for match in matches if match}

    def image(self, name: str, step: int) -> Path | None:
        frames = self.films().get(name)
        file = f"{name}-{frames}.webp" if frames else f"{name}.png"
        return self.folder / "plots" / file if step == 0 and name in self.images() else None

    def _drawn(self, pattern: str) -> list[Path]:
        return sorted((self.folder / "plots").glob(pattern))


def _flat(value: Any, name: str, depth: int) -> Iterator[tuple[str, float]]:
    """The numbers of a result, by their names joined with dots; lists are left out."""
    if isinstance(value, dict) and depth:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}", depth - 1)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)
