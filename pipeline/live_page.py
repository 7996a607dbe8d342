"""A page that follows a stage while it works, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from data.io.files import writable_folder
from data.shards.build_info import NoShards, rebuild_command
from pipeline.presets import BUILD_STAGES, FIRST_STAGES

ROOT = Path(__file__).parents[1]


@contextmanager
def followed(config: Any, stage: str) -> Iterator[None]:
    """Serve the page of --live until the stage ends; ValueError where it cannot be served."""
    if int(os.environ.get("RANK", "0")):  # of several processes the first one does
        yield
        return
    if stage in FIRST_STAGES:
        writable_folder(config.run)
    elif not config.run.is_dir():  # as the stage itself says it
        raise NoShards(config.run / "shards", rebuild_command(config.run / "shards"))
    words = [str(config.run.resolve()), "--port", str(config.live), "--parent", str(os.getpid())]
    if getattr(config, "out", None):
        words += ["--report", str(config.out.resolve())]
    totals = [f"{name}={steps}" for name, steps in steps_of(config, stage).items()]
    with subprocess.Popen(
        [sys.executable, "-m", "evaluation.live", *words, "--steps", *totals],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is the training's
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        if not line:
            problem = process.stderr.read().strip().rpartition("\n")[2].removeprefix("error: ")
            raise ValueError(problem.replace("--host 127.0.0.1 ", "").replace("--port", "--live"))
        print(line.strip(), flush=True)
        try:
            yield
        finally:
            process.terminate()


def steps_of(config: Any, stage: str) -> dict[str, int]:
    """Steps in all of each training of a stage, by its folder in the run; other stages write
    theirs."""
    found: dict[str, int] = {}
    if stage in FIRST_STAGES or stage not in BUILD_STAGES:
        return found
    for field in fields(config):
        steps = getattr(getattr(config, field.name), "steps", None)
        if isinstance(steps, int):
            name = field.name.removesuffix("train").rstrip("_")
            found[f"{stage}/{name}" if name else stage] = steps
    return found
