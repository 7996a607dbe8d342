"""Pull a published run from the Hugging Face Hub, to play, measure or train it further.

Reads   hf://USER/NAME, at a branch, a tag or a commit (hf://USER/NAME@REVISION).
Writes  runs/hub/USER--NAME@COMMIT, or --out: a run folder; interrupted, it resumes.
Try     python -m pipeline.pull hf://USER/NAME
Next    python play.py --run hf://USER/NAME
"""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):  # a script, or a worker process of one
    from pipeline.startup import start

    start(__name__)

from dataclasses import dataclass
from pathlib import Path

from data.io.hub_address import parse_address
from data.ranges import CheckedConfig
from pipeline.hub.pull_run import pull


@dataclass(frozen=True)
class Config(CheckedConfig):
    address: str
    """hf://USER/NAME, or hf://USER/NAME@REVISION."""
    out: Path | None = None
    """Folder of the run, if not runs/hub/USER--NAME@COMMIT, where --run hf://USER/NAME finds it."""


def main(config: Config) -> None:
    pull(parse_address(config.address, "the address"), config.out)


if __name__ == "__main__":
    from pipeline.cli import run_cli

    run_cli(main, Config)
