"""Print the number of the first round of a run that is not recorded yet.

Reads   RUN/shards.
Writes  nothing.
Try     python -m pipeline.recording.next_round runs/CartPole-v1
"""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):  # a script, or a worker process of one
    from pipeline.startup import start

    start(__name__)

from dataclasses import dataclass
from pathlib import Path

from data.gym.rounds import is_recorded, read_rounds
from data.ranges import CheckedConfig


@dataclass(frozen=True)
class Config(CheckedConfig):
    run: Path
    """Run folder."""


def main(config: Config) -> None:
    print(next_round(config.run / "shards"))


def next_round(folder: Path) -> int:
    """Return the first round that lacks shards; that after the last one where none does."""
    known = read_rounds(folder)
    missing = (number for number in range(len(known)) if not is_recorded(folder, known, number))
    return next(missing, len(known))


if __name__ == "__main__":
    from pipeline.cli import run_cli

    run_cli(main, Config)
