"""How cost grows with the data, with the model, and with what is planned.

Reads   --run, a trained world (planning), and one whose tokenizer is trained (validation).
Writes  OUT/growth.json, OUT/growth.png, OUT/growth.md, and what it grows: shards, some 2 GB, and
        predictors.
Try     python -m bench.growth --parts data --episodes 12 --times 1 4
        python -m bench.growth --parts validation --run runs/demo

All but what is linear by nature should be flat: the figure has a dotted line for what is linear.
"""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):  # a script, or a worker process of one
    from pipeline.startup import start

    start(__name__)

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from bench.areas.play_speed import DEFAULT_RUN
from bench.curves import data_growth, model_growth
from bench.curves.growth_table import Measured, as_markdown, draw
from bench.races.table import load_average, machine_info
from data.io.files import atomic_write, writable_folder
from data.ranges import CheckedConfig, NonEmpty, Range
from evaluation.result_cache import write_json
from pipeline.cli import run_cli
from pipeline.device import pick_device

Part = Literal["data", "model", "planning", "validation"]


@dataclass(frozen=True)
class Config(CheckedConfig):
    parts: Annotated[tuple[Part, ...], NonEmpty()] = ("data", "model", "planning")
    """What grows; validation trains predictors of several sizes in copies of --run."""
    run: Path = DEFAULT_RUN
    """A trained world to plan in; for validation a run with shards and a tokenizer."""
    episodes: Annotated[int, Range(3, 10**6)] = 480
    """Scripted episodes of Push-T that are simulated; the demo has 480."""
    times: Annotated[tuple[int, ...], Range(1, 10**4), NonEmpty()] = (1, 4, 16, 64)
    """How many times these recordings the shards hold."""
    num_workers: Annotated[int, Range(1, 512)] = os.cpu_count() or 1
    """Processes that build shards, beside one."""
    steps: Annotated[int, Range(1, 10**7)] = 900
    """Training steps of each predictor of the validation."""
    out: Path = Path("runs/growth")
    """Folder of what is written."""


def measure(config: Config) -> Iterator[Measured]:
    if "data" in config.parts:
        yield from data_growth.measure(
            config.out, config.episodes, config.times, config.num_workers
        )
    if "model" in config.parts:
        yield from model_growth.training()
    if "planning" in config.parts:
        yield from model_growth.planning(config.run)
    if "validation" in config.parts:
        yield from model_growth.validation(config.run, config.out, config.steps)


def main(config: Config) -> None:
    writable_folder(config.out, "--out")
    before, rows = load_average(), []
    for row in measure(config):
        print(f"{row.part} {row.size:g}: {row.what} {row.value:.4g}", flush=True)
        rows.append(row)
        found = {"machine": machine_info(pick_device()), "rows": [asdict(row) for row in rows]}
        found["load"] = {"before": before, "after": load_average()}
        write_json(config.out / "growth.json", found)
    atomic_write(config.out / "growth.md", f"{as_markdown(rows)}\n".encode())
    draw(rows, config.out / "growth.png")
    print(f"growth: {config.out / 'growth.md'}, growth.png, growth.json")


if __name__ == "__main__":
    run_cli(main, Config)
