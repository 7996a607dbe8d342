"""What one process builds, several build too; none deletes what another made."""

import json
import multiprocessing
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from data.processes import rank_and_world_size
from data.shards.build_info import BUILD_FILE, shard_name
from data.shards.build_shards import build
from data.shards.episode_dataset import EpisodeDataset
from data.shards.episodes import Episode
from data.toy import ToyEpisodes

TOY = ToyEpisodes(episodes=12, length=8, size=16, episodes_per_shard=3)
OTHER = ToyEpisodes(episodes=18, length=8, size=16, seed=1, episodes_per_shard=3)


def as_rank(monkeypatch, rank: int, world_size: int = 2) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world_size))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_no_rank_deletes_what_another_made(tmp_path, monkeypatch, order):
    build(OTHER, tmp_path, "-")
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.h5")}
    for rank in order:
        as_rank(monkeypatch, rank)
        assert build(TOY, tmp_path, "-", restart=True) == 2
    dataset = EpisodeDataset(tmp_path)
    assert len(dataset) == 12 and len(dataset.headers) == 4
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.h5")}
    assert not set(before.items()) & set(after.items())


def test_every_rank_refuses_shards_of_other_settings(tmp_path, monkeypatch):
    build(OTHER, tmp_path, "-")
    for rank in (1, 0):
        as_rank(monkeypatch, rank)
        with pytest.raises(ValueError, match="--restart makes them anew"):
            build(TOY, tmp_path, "-")
    assert len(EpisodeDataset(tmp_path)) == 18


def test_shards_without_a_build_file_are_not_overwritten(tmp_path):
    build(OTHER, tmp_path, "-")
    (tmp_path / BUILD_FILE).unlink()
    with pytest.raises(ValueError, match="--restart makes them anew"):
        build(TOY, tmp_path, "-")
    assert build(OTHER, tmp_path, "-") == 0 and len(EpisodeDataset(tmp_path)) == 18


def test_another_number_of_shards_is_another_build(tmp_path):
    build(TOY, tmp_path, "-")
    info = json.loads((tmp_path / BUILD_FILE).read_text())
    (tmp_path / BUILD_FILE).write_text(json.dumps(info | {"shards": 2}))
    with pytest.raises(ValueError, match="is of 2 shards, but now there are 4; --restart"):
        build(TOY, tmp_path, "-")


def test_a_rank_without_a_world_size_is_one_process(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert rank_and_world_size() == (0, 1)
    assert build(TOY, tmp_path, "-") == 4


@pytest.mark.parametrize(
    "rank, world_size", [("2", "2"), ("-1", "2"), ("x", "2"), ("0", "0"), ("0", "")]
)
def test_ranks_that_do_not_fit_are_one_line(monkeypatch, rank, world_size):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world_size)
    with pytest.raises(ValueError, match=f"RANK={rank} and WORLD_SIZE={world_size} in the env"):
        rank_and_world_size()


def test_a_shard_that_vanishes_meanwhile_is_an_error(tmp_path, monkeypatch):
    @dataclass(frozen=True)
    class Meddler(ToyEpisodes):
        def make_shard(self, index: int) -> list[Episode]:
            (tmp_path / shard_name(index - 1)).unlink(missing_ok=True)
            return super().make_shard(index)

    with pytest.raises(ValueError, match=r"shard-00000.h5, .* were written, and are not there"):
        build(Meddler(12, 8, 16, episodes_per_shard=3), tmp_path, "-")


@dataclass(frozen=True)
class Killed(ToyEpisodes):
    """A source whose third shard needs more memory than there is."""

    def make_shard(self, index: int) -> list[Episode]:
        if index == 2:
            if os.environ.get("KILLED") != "by itself":
                raise MemoryError
            os.kill(os.getpid(), signal.SIGKILL)
        return super().make_shard(index)


KILLED = Killed(12, 8, 16, episodes_per_shard=3)


def test_memory_that_runs_out_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"^memory ran out; lower --num-workers, now \d, or make"):
        build(KILLED, tmp_path, "-", num_workers=1)
    assert build(ToyEpisodes(12, 8, 16, episodes_per_shard=3), tmp_path, "-") >= 2


def test_a_worker_that_is_killed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("KILLED", "by itself")
    with pytest.raises(ValueError, match=r"^one of the 2 worker processes was killed, .*; lower"):
        build(KILLED, tmp_path, "-", num_workers=2)
    assert not list(tmp_path.glob("*.skipped"))


def test_a_source_without_episodes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no episodes to write shards of"):
        build(ToyEpisodes(episodes=0), tmp_path, "-")


@dataclass(frozen=True)
class Deadly(ToyEpisodes):
    """Kills its process at one of its shards, as a machine that fails would."""

    deadly_shard: int = -1

    def make_shard(self, index: int) -> list[Episode]:
        if index == self.deadly_shard:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().make_shard(index)

    def description(self) -> dict:
        return ToyEpisodes(
            self.episodes, self.length, self.size, episodes_per_shard=self.episodes_per_shard
        ).description()


def array_task(rank: int, folder: Path, deadly_shard: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "8"}
    source = Deadly(episodes=24, length=8, size=16, episodes_per_shard=1, deadly_shard=deadly_shard)
    build(source, folder, "-")


def test_an_array_job_of_eight_makes_what_one_process_makes_whoever_is_killed(tmp_path):
    def run(deadly: dict[int, int]) -> list[int | None]:
        tasks = [
            multiprocessing.get_context("fork").Process(
                target=array_task, args=(rank, tmp_path / "array", deadly.get(rank, -1))
            )
            for rank in range(8)
        ]
        for task in tasks:
            task.start()
        for task in tasks:
            task.join()
        return [task.exitcode for task in tasks]

    killed = run({0: 8, 3: 11, 6: 6})  # at its second shard, its second, its first
    assert [code == -signal.SIGKILL for code in killed] == [rank in (0, 3, 6) for rank in range(8)]
    with pytest.raises(ValueError, match="of 24 shards; finish them with"):
        EpisodeDataset(tmp_path / "array")
    assert run({}) == [0] * 8
    whole = ToyEpisodes(episodes=24, length=8, size=16, episodes_per_shard=1)
    build(whole, tmp_path / "whole", "-")
    shards = {path.name: path.read_bytes() for path in (tmp_path / "whole").glob("*.h5")}
    assert shards == {p.name: p.read_bytes() for p in (tmp_path / "array").glob("*.h5")}
    assert not list((tmp_path / "array").glob("*.partial"))
