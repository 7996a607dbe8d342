"""Measure dreamstage against its peers, interleaved in one process: a table, bench.json, bench.png.

Areas   the names in AREAS, each with its module; default: all.
Writes  OUT/bench.json, OUT/bench.png; with --tune on a GPU kernels/tuned.json.
Try     python -m bench roofline loading --quick
"""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):  # a script, or a worker process of one
    from pipeline.startup import start

    start(__name__)

import difflib
import importlib
import os
import sys
import time
import traceback
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch

from bench.operations.cases import OPERATIONS
from bench.races import plot, table
from bench.races.pairs import Incorrect, Options, Row, reason
from data.io.files import writable_folder
from data.ranges import CheckedConfig, Range
from evaluation.result_cache import write_json
from pipeline.cli import run_cli
from pipeline.device import DeviceOption, pick_device, set_device

AREAS = {
    "roofline": "bench.areas.roofline",
    "kernels": "bench.areas.kernel_speed",
    "loading": "bench.areas.load_speed",
    "training": "bench.areas.train_speed",
    "rssm": "bench.areas.rssm_speed",
    "language": "bench.areas.language_model_speed",
    "genie": "bench.areas.genie_speed",
    "iwm": "bench.areas.iwm_speed",
    "decode": "bench.areas.decode_speed",
    "play": "bench.areas.play_speed",
    "planning": "bench.areas.plan_speed",
    "controller": "bench.areas.controller_speed",
    "task": "bench.areas.task_speed",
    "int8": "bench.areas.int8_speed",
    "hooks": "bench.areas.hook_overhead",
    "service": "bench.areas.service_speed",
    "export": "bench.areas.export_speed",
}
"""The module of each area, which has `rows(options)`."""


@dataclass(frozen=True)
class Config(CheckedConfig):
    areas: tuple[str, ...]
    """What to measure: roofline kernels loading training rssm language genie iwm decode play
    planning controller task int8 hooks service export."""
    quick: bool = False
    """Use smaller sizes and compile less: minutes on two slow cores."""
    rounds: Annotated[int | None, Range(1, 10**6)] = None
    """Rounds of a race; default: 10."""
    run: Path | None = None
    """The run of the areas play, controller, task, int8, hooks, service and export; default:
    checkpoints/pusht-goals."""
    out: Path = Path("runs/bench")
    """Folder of bench.json and bench.png."""
    tune: bool = False
    """On a GPU: write the kernels' speedups over torch.compile to kernels/tuned.json, which
    --kernels auto reads."""
    only: tuple[str, ...] = ()
    """In the area kernels, only these operations: rms_norm, attention_blocks ..."""
    device: DeviceOption = "auto"
    """Where to measure: a CUDA GPU if there is one, else Apple's (mps), else the CPU."""
    threads: Annotated[int | None, Range(1, 1024)] = None
    """Threads of PyTorch; default: PyTorch's own choice."""


def main(config: Config) -> None:
    set_device(config.device)
    areas = config.areas or tuple(AREAS)
    check_known("area", areas, AREAS)
    check_known("operation", config.only, OPERATIONS)
    rounds = Options.rounds if config.rounds is None else config.rounds
    if config.tune and not torch.cuda.is_available():
        raise ValueError("--tune writes what a GPU measured, and there is no CUDA GPU here")
    for flag, given in (("--only", config.only), ("--tune", config.tune)):
        if given and "kernels" not in areas:
            raise ValueError(
                f"{flag} belongs to the area kernels, but the areas are {' '.join(areas)}"
            )
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    writable_folder(config.out, "--out")
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
        torch.compiler.reset()  # earlier compilations count towards its limits
        began = time.perf_counter()
        for row in safe_rows(area, options):
            rows.append(row)
            print(table.format_row(row), flush=True)
        result["seconds"][area] = round(time.perf_counter() - began, 1)
        result["load"]["after"] = table.load_average()
        result["rows"] = [asdict(row) | {"passed": row.passed} for row in rows]
        write_json(config.out / "bench.json", result)
        plot.draw(rows, config.out / "bench.png")
    each = ", ".join(f"{area} {seconds:.0f}" for area, seconds in result["seconds"].items())
    total = sum(result["seconds"].values())
    print(f"\nload {result['load']['after']} after; {total:.0f} s: {each}")
    missed = sum(row.passed is False for row in rows)
    print(f"bench: {len(rows)} rows, {missed} below their target; {config.out / 'bench.json'}")
    failed = [f"{row.area}, {row.name}" for row in rows if row.failed]
    if failed:
        raise ValueError(f"not measured, for the reason in its row: {'; '.join(failed)}")


def check_known(what: str, asked: Iterable[str], known: Collection[str]) -> None:
    """Raise ValueError for an unknown name, with the closest known one."""
    for name in asked:
        if name not in known:
            closest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {closest[0]}? " if closest else ""
            raise ValueError(f"unknown {what} {name!r}; {hint}there are: {', '.join(known)}")


def safe_rows(area: str, options: Options) -> Iterator[Row]:
    """Yield the rows of an area; an error becomes a row, so that other areas are still measured."""
    try:
        yield from importlib.import_module(AREAS[area]).rows(options)
    except Incorrect as problem:
        yield Row(area, "incorrect", "", "", note=f"incorrect: {problem}")
    except Exception as problem:
        if os.environ.get("DREAMSTAGE_TRACEBACK"):
            traceback.print_exc(file=sys.stderr)
        yield Row(area, "failed", "", "", note=reason(problem))


if __name__ == "__main__":
    run_cli(main, Config)
