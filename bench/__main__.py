"""Measure dreamstage against its peers, interleaved in one process: a table, bench.json, bench.png.

Areas   ceilings kernels loading training decode play planning controller; all if none is named.
Writes  OUT/bench.json, OUT/bench.png; with --keep on a GPU kernels/tuned.json.
Try     python -m bench ceilings loading --quick
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench import plot, table
from bench.cases import OPERATIONS
from bench.pairs import Incorrect, Options, Row, reason
from evaluation.result_cache import write_json
from pipeline.cli import run_cli
from pipeline.device import pick_device

AREAS = (
    "ceilings", "kernels", "loading", "training", "decode", "play", "planning", "controller",
    "int8",
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    areas: tuple[str, ...]
    """What to measure: ceilings kernels loading training decode play planning controller
    int8."""
    quick: bool = False
    """Smaller sizes, and less is compiled: minutes on two slow cores, for a look."""
    rounds: int | None = None
    """Rounds of a race, 10 if not said."""
    run_cli: Path | None = None
    """A run to play and to decide in, instead of checkpoints/pusht-goals."""
    out: Path = Path("runs/bench")
    """Folder of bench.json and bench.png."""
    tune: bool = False
    """On a GPU: write how kernels fare against torch.compile to kernels/tuned.json, by which
    --kernels auto chooses."""
    only: tuple[str, ...] = ()
    """Of the area kernels only these operations: rms_norm, attention_blocks ..."""
    threads: int | None = None
    """Threads of PyTorch, if not its own choice."""


def main(config: Config) -> None:
    areas = config.areas or AREAS
    check_known("area", areas, AREAS)
    check_known("operation", config.only, OPERATIONS)
    rounds = Options.rounds if config.rounds is None else config.rounds
    if rounds < 1:
        raise ValueError(f"--rounds {rounds} measures nothing; it starts at 1")
    if config.tune and not torch.cuda.is_available():
        raise ValueError("--keep writes what a GPU measured, and there is no CUDA GPU here")
    for flag, given in (("--only", config.only), ("--keep", config.tune)):
        if given and "kernels" not in areas:
            raise ValueError(
                f"{flag} is about the area kernels, and only {' '.join(areas)} is asked for"
            )
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    config.out.mkdir(parents=True, exist_ok=True)
    if not os.access(config.out, os.W_OK):
        raise ValueError(f"{config.out} cannot be written to; give another folder by --out")
    device = pick_device()
    options = Options(
        rounds, config.quick, device, config.run, torch.get_num_threads(), config.tune, config.only
    )
    before, machine = table.load_average(), table.machine_info(device)
    print(table.heading(machine, before))
    rows: list[Row] = []
    result: dict[str, Any] = {
        "machine": machine,
        "load": {"before": before, "after": None},
        "options": {
            "areas": list(areas),
            "rounds": rounds,
            "quick": config.quick,
            "only": list(config.only),
            "run": str(config.run) if config.run else None,
        },
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "seconds": {},
    }
    for area in areas:
        torch.compiler.reset()  # what was compiled before counts towards its limits
        began = time.perf_counter()
        for row in safe_rows(area, options):
            rows.append(row)
            print(table.format_row(row), flush=True)
        result["seconds"][area] = round(time.perf_counter() - began, 1)
        result["load"]["after"] = table.load_average()
        result["rows"] = [asdict(row) | {"met": row.passed} for row in rows]
        write_json(config.out / "bench.json", result)
        plot.sample(rows, config.out / "bench.png")
    each = ", ".join(f"{area} {seconds:.0f}" for area, seconds in result["seconds"].items())
    total = sum(result["seconds"].values())
    print(f"\nload {result['load']['after']} after; {total:.0f} s: {each}")
    missed = sum(row.passed is False for row in rows)
    print(f"bench: {len(rows)} rows, {missed} below their bar; {config.out / 'bench.json'}")
    failed = [f"{row.area}, {row.name}" for row in rows if row.failed]
    if failed:
        raise ValueError(f"not measured, for the reason in its row: {'; '.join(failed)}")


def check_known(what: str, asked: tuple[str, ...], known: tuple[str, ...]) -> None:
    """ValueError for a name that there is not, with the nearest that there is."""
    for name in asked:
        if name not in known:
            closest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {closest[0]}? " if closest else ""
            raise ValueError(f"unknown {what} {name!r}; {hint}there are: {', '.join(known)}")


def safe_rows(area: str, options: Options) -> Iterator[Row]:
    """Rows of an area; what breaks in it becomes a row, so that the others are still measured."""
    try:
        yield from importlib.import_module(f"bench.{area}_speed").rows(options)
    except Incorrect as problem:
        yield Row(area, "not shown", "", "", note=f"wrong: {problem}")
    except Exception as problem:
        if os.environ.get("DREAMSTAGE_TRACEBACK"):
            traceback.print_exc(file=sys.stderr)
        yield Row(area, "broken off", "", "", note=reason(problem))


if __name__ == "__main__":
    run_cli(main, Config, {})
