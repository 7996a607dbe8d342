"""List the runs of a folder: how far each is, how good, how large, and what continues it.

Reads   FOLDER and the run folders in it; of checkpoints what they say of themselves.
Writes  nothing.
Try     python -m pipeline.runs runs
"""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):  # a script, or a worker process of one
    from pipeline.startup import start

    start(__name__)

import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data.io.messages import command
from data.ranges import CheckedConfig
from pipeline.run_state import StageState, current, find_runs, stage_states


@dataclass(frozen=True)
class Config(CheckedConfig):
    folder: Path
    """Folder of runs, or one run."""
    stages: bool = False
    """A line for every stage of each run."""


def main(config: Config) -> None:
    if not config.folder.is_dir():
        found = "is a file" if config.folder.exists() else "is not there"
        raise ValueError(f"{config.folder} {found}; name a folder of runs")
    runs = list(find_runs(config.folder))
    if not runs:
        begin = command("preprocess.py", "pusht", "--run", config.folder / "pusht")
        raise ValueError(f"{config.folder} holds no run; {begin} begins one")
    lines = [["run", "stage", "step", "best", "size", "changed", "state"]]
    after: list[str] = [""]
    counted: Counter[str] = Counter()
    for run in runs:
        states = stage_states(run)
        now = current(states)
        counted[now.progress] += 1
        size, changed = size_and_time(run)
        for state in states if config.stages else [now]:
            is_now = state is now
            about = (_size(size), _when(changed)) if is_now else ("", "")
            lines.append([str(run) if is_now else "", *_row(state, states), *about, _state(state)])
            after.append(state.next_command if is_now else "")
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line, further in zip(lines, after, strict=True):
        print("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())
        if further:
            print(f"    {further}")
    told = ", ".join(f"{count} {name}" for name, count in counted.items())
    print(f"runs: {len(runs)} in {config.folder}: {told}")


def size_and_time(run: Path) -> tuple[int, float]:
    """Give the bytes of a run, and when its newest file was written; what vanishes meanwhile is
    left out."""
    total, newest = 0, 0.0
    for folder, _, names in os.walk(run):
        for name in names:
            try:
                about = os.lstat(os.path.join(folder, name))
            except OSError:
                continue
            total, newest = total + about.st_size, max(newest, about.st_mtime)
    return total, newest


def _row(state: StageState, states: list[StageState]) -> list[str]:
    """Stage, step and best; of a stage that has none of its own, the best of the world."""
    step = "-" if state.step is None else f"{state.step}"
    step += f" of {state.steps}" if state.step is not None and state.steps else ""
    worlds = [s for name in ("dynamics", "tokenizer") for s in states if s.stage == name]
    known = [s for s in (state, *worlds) if s.best is not None]
    best = f"{known[0].metric} {known[0].best:.4g}".strip() if known else "-"
    return [state.stage, step, best]


def _state(state: StageState) -> str:
    return f"{state.progress}: {state.reason}" if state.reason else state.progress


def _size(num_bytes: int) -> str:
    value, unit = float(num_bytes), "B"
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.3g} {unit}"


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else "-"


if __name__ == "__main__":
    from pipeline.cli import run_cli

    run_cli(main, Config)
