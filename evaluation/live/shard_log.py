"""Shards while they are made: how many there are, since when, and frames of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data.io.files import LOCK_FILE
from data.shards.build_info import SKIPPED, read_build_info, shard_index
from evaluation.live.stage_log import StageLog


@dataclass
class ShardLog(StageLog):
    """RUN/shards."""

    unit: str = "shard"
    title: str = "Preparing"

    def update(self) -> None:
        """Look at what is there; the speed is that of the build that goes on, or was the last."""
        try:
            about = read_build_info(self.folder)
        except ValueError:  # half of it is written
            about = None
        self.total = about["shards"] if about else 0
        begun = _written(self.folder / LOCK_FILE)
        made = sorted(filter(None, map(_written, self._shards().values())))
        earlier = sum(at < begun for at in made)
        self.times = [(earlier, begun)] if begun else []
        self.times += [(earlier + n, at) for n, at in enumerate(made[earlier:], 1)]

    def images(self) -> dict[str, list[int]]:
        made = self._shards()
        return {n: [s for s in steps if s in made] for n, steps in super().images().items()}

    def _shards(self) -> dict[int, Path]:
        """Those that were made, or skipped, by their number."""
        files = [*self.folder.glob("shard-*.h5"), *self.folder.glob(f"shard-*{SKIPPED}")]
        return {i: path for path in files if (i := shard_index(path)) is not None}


def _written(path: Path) -> float:
    """When a file was written, in seconds of the epoch; 0 where it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
