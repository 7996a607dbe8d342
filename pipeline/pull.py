"""Pull a published run from the Hugging Face Hub, to play, measure or train it further.

Reads   hf://USER/NAME, at a branch, a tag or a commit (hf://USER/NAME@REVISION); or a folder that
        pipeline.publish --out wrote.
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

from data.io.hub_address import is_address, parse_address
from data.ranges import CheckedConfig
from pipeline.hub.pull_run import pull, unpack


@dataclass(frozen=True)
class Config(CheckedConfig):
    address: str
    """hf://USER/NAME, hf://USER/NAME@REVISION, or a folder of published files."""
    out: Path | None = None
    """Folder of the run, if not runs/hub/USER--NAME@COMMIT, where --run hf://USER/NAME finds it;
    needed where the files are of a folder."""


def main(config: Config) -> None:
    folder = Path(config.address)
    if is_address(config.address) or not folder.is_dir():
        pull(parse_address(config.address, "the address"), config.out)
    elif config.out is None:
        raise ValueError(f"{folder} is a folder; name that of the run to make of it: --out RUN")
    else:
        unpack(folder, config.out)


if __name__ == "__main__":
    from pipeline.cli import run_cli

    run_cli(main, Config)
