"""What a training leaves in its run folder, read while it grows.

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
    _read: int = 0
    _file: tuple[int, int] = (0, 0)

    def update(self) -> None:
        """Read what was appended since; from the beginning where the training was started over."""
        path = self.folder / LOG
        try:
            with open(path, "rb") as file:
                stat = path.stat()
                if stat.st_size < self._read or (stat.st_dev, stat.st_ino) != self._file:
                    self.curves, self.times, self._read = {}, [], 0
                    self._file = (stat.st_dev, stat.st_ino)
                file.seek(self._read)
                new = file.read()
        except OSError:
            return
        whole = new[: new.rfind(b"\n") + 1]  # the last line may be half written
        self._read += len(whole)
        for line in whole.splitlines():
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            step, at = int(record.pop("step")), float(record.pop("time"))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return
        self.times.append((step, at))
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

    def images(self) -> dict[str, list[int]]:
        """Steps of the images that were kept, by name."""
        found: dict[str, list[int]] = {}
        for path in sorted((self.folder / "images").glob("*.png")):
            if match := IMAGE.fullmatch(path.name):
                found.setdefault(match["name"], []).append(int(match["step"]))
        return found

    def image(self, name: str, step: int) -> Path | None:
        """The file of an image; None for one that is not listed."""
        is_there = step in self.images().get(name, ())
        return self.folder / "images" / f"{name}-{step:06d}.png" if is_there else None

    @property
    def holder(self) -> str:
        """The process that trains it; empty where none does."""
        return str(lock_holder(self.folder) or "")


class RunLog:
    """All trainings of a run."""

    def __init__(self, run: Path, totals: dict[str, int]) -> None:
        """totals: steps in all, by stage."""
        self.run, self.totals = run, totals
        self._stages: dict[str, StageLog] = {}

    def stages(self) -> dict[str, StageLog]:
        """Those with a log, the one written last first."""
        logs = [*self.run.glob(f"*/{LOG}"), *self.run.glob(f"controller/*/{LOG}")]
        written: dict[str, float] = {}
        for log in logs:
            name = log.parent.relative_to(self.run).as_posix()
            try:
                written[name] = log.stat().st_mtime
            except OSError:
                continue
            if name not in self._stages:
                self._stages[name] = StageLog(log.parent, self.totals.get(name, 0))
        return {n: self._stages[n] for n in sorted(written, key=lambda n: -written[n])}


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
    speed, left, idle = stage.steps_per_second(), stage.seconds_left(), stage.latest("train/")
    return {
        "stage": name,
        "stages": others,
        "running": bool(stage.holder),
        "step": stage.step,
        "total": stage.total,
        "speed": None if speed is None else round(speed, 2),
        "left": None if left is None else duration(left),
        "idle": idle.get("device_idle"),
        "log": None if not stage.times else ago(stage.times[-1][1]),
        "checkpoints": {n: ago(at) for n, at in stage.checkpoints().items()},
        "validation": stage.latest("validation/"),
        "training": {n: v for n, v in idle.items() if n != "device_idle"},
        "images": stage.images(),
    }
