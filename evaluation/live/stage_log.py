"""What a stage leaves in its run folder, read while it grows: here a training.

Nothing is loaded but text: a page about a training must not cost it anything.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.io.lock_holder import lock_holder

LOG = "log.jsonl"
RECENT = 20  # lines of the log that a speed is taken from
CHECKPOINTS = ("best.pt", "last.pt")
IMAGE = re.compile(r"(?P<name>.+)-(?P<step>\d+)\.png")


@dataclass
class StageLog:
    """One folder of a training: RUN/dynamics, RUN/controller/bc and so on."""

    folder: Path
    total: int = 0
    """Steps in all; 0 where it is not known."""
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Steps and values by their names in the log, such as validation/psnr."""
    times: list[tuple[int, float]] = field(default_factory=list)
    """Step and time of each line, in seconds of the epoch."""
    unit: str = "step"
    """What progress is counted in."""
    title: str = "Training"
    latest_done: str = ""
    """What was finished last, where that has a name."""
    _read: int = 0
    _file: tuple[int, int] = (0, 0)

    def update(self) -> None:
        """Read what was appended since; from the beginning where the training was started over."""
        path = self.folder / LOG
        try:
            with open(path, "rb") as file:
                stat = path.stat()
                if stat.st_size < self._read or (stat.st_dev, stat.st_ino) != self._file:
                    self.start_over()
                    self._file = (stat.st_dev, stat.st_ino)
                file.seek(self._read)
                new = file.read()
        except OSError:
            return
        whole = new[: new.rfind(b"\n") + 1]  # the last line may be half written
        self._read += len(whole)
        for line in whole.splitlines():
            self._take(line)

    def start_over(self) -> None:
        """Forget what was read."""
        self.curves, self.times, self._read = {}, [], 0

    def _take(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            step, at = int(record.pop("step")), float(record.pop("time"))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return
        self.times.append((step, at))
        self.take(record, step)

    def take(self, record: dict[str, Any], step: int) -> None:
        """Keep what a line holds besides its step and its time."""
        for name, value in record.items():
            if isinstance(value, int | float):
                self.curves.setdefault(name, []).append((step, float(value)))

    @property
    def step(self) -> int:
        return self.times[-1][0] if self.times else 0

    def steps_per_second(self) -> float | None:
        """Over the last lines of the log."""
        recent = self.times[-RECENT:]
        if len(recent) < 2 or recent[-1][1] <= recent[0][1]:
            return None
        return (recent[-1][0] - recent[0][0]) / (recent[-1][1] - recent[0][1])

    def seconds_left(self) -> float | None:
        speed = self.steps_per_second()
        if not self.total or not speed or self.step >= self.total:
            return None
        return (self.total - self.step) / speed

    def latest(self, prefix: str) -> dict[str, float]:
        """The last value of each name that begins like this, without the beginning."""
        found = {n: c[-1][1] for n, c in self.curves.items() if n.startswith(prefix)}
        return {name.removeprefix(prefix): value for name, value in found.items()}

    def checkpoints(self) -> dict[str, float]:
        """When each was written, in seconds of the epoch."""
        paths = {name: self.folder / name for name in CHECKPOINTS}
        return {name: path.stat().st_mtime for name, path in paths.items() if path.exists()}

    def figures(self) -> dict[str, float]:
        """The last figures, by what they are called."""
        validation, training = self.latest("validation/"), self.latest("train/")
        training.pop("device_idle", None)
        return {f"validation {name}": value for name, value in validation.items()} | training

    def images(self) -> dict[str, list[int]]:
        """Steps of the images that were kept, by name."""
        found: dict[str, list[int]] = {}
        for path in sorted((self.folder / "images").glob("*.png")):
            if match := IMAGE.fullmatch(path.name):
                found.setdefault(match["name"], []).append(int(match["step"]))
        return found

    def films(self) -> dict[str, int]:
        """Names of films, and their frames: images that lie below each other in one."""
        return {}

    def image(self, name: str, step: int) -> Path | None:
        """The file of an image; None for one that is not listed."""
        is_there = step in self.images().get(name, ())
        return self.folder / "images" / f"{name}-{step:06d}.png" if is_there else None

    @property
    def holder(self) -> str:
        """The process that trains it; empty where none does."""
        return str(lock_holder(self.folder) or "")


def ago(at: float, now: float | None = None) -> str:
    """How long ago, in words."""
    return f"{duration((time.time() if now is None else now) - at)} ago"


def duration(seconds: float) -> str:
    """Seconds as the largest two units."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def as_json(stage: StageLog, name: str, others: list[str]) -> dict[str, Any]:
    """What the page is told of a stage, without its charts."""
    speed, left = stage.steps_per_second(), stage.seconds_left()
    return {
        "stage": name,
        "stages": others,
        "title": f"{stage.title} {name}".strip(),
        "unit": stage.unit,
        "running": bool(stage.holder),
        "step": stage.step,
        "total": stage.total,
        "speed": None if speed is None else round(speed, 4),
        "left": None if left is None else duration(left),
        "idle": stage.latest("train/").get("device_idle"),
        "log": None if not stage.times else ago(stage.times[-1][1]),
        "latest": stage.latest_done,
        "checkpoints": {n: ago(at) for n, at in stage.checkpoints().items()},
        "validation": stage.latest("validation/"),
        "figures": stage.figures(),
        "images": stage.images(),
        "films": stage.films(),
    }
