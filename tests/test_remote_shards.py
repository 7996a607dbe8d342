"""Shards in a store, fetched as they are read within a bound."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_store import mirror, write

from data.io.object_store import ObjectStore, StoreError
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from pipeline.store.mirror import sent

pytest.importorskip("s3fs")
ROOT = Path(__file__).parents[1]


@pytest.fixture
def recorded(address: str, tmp_path: Path) -> tuple[str, Path]:
    """A run whose eight shards were made here, and sent."""
    made = tmp_path / "made"
    with sent(mirror(address, made, whole=True), makes_shards=True):
        write_toy_shards(made / "shards", episodes=48)
    return address, made


@pytest.mark.slow
def test_readers_in_several_processes_share_a_small_cache(
    recorded: tuple[str, Path], tmp_path: Path, capfd: Any
):
    address, made = recorded
    whole = EpisodeDataset(made / "shards")
    other = tmp_path / "other"
    mirror(address, other, cache_bytes=int(1.5 * max(header.size for header in whole.headers)))
    code = (
        "import sys, numpy as np\nfrom data.shards.episode_dataset import EpisodeDataset\n"
        f"d = EpisodeDataset({str(other / 'shards')!r})\n"
        "rng = np.random.default_rng(int(sys.argv[1]))\n"
        "print(sum(int(d.read(int(e), 'frames').sum()) for e in rng.permutation(len(d))))"
    )
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(seed)], cwd=ROOT, text=True, stdout=subprocess.PIPE
        )
        for seed in range(2)
    ]
    expected = sum(int(whole.read(e, "frames").sum()) for e in range(len(whole)))
    assert [int(reader.communicate()[0]) for reader in readers] == [expected] * 2
    assert "waiting" not in capfd.readouterr().err


def test_shards_are_fetched_as_they_are_read_within_a_bound(
    recorded: tuple[str, Path], tmp_path: Path
):
    address, made = recorded
    whole = EpisodeDataset(made / "shards")
    size = max(header.size for header in whole.headers)
    other = tmp_path / "other"
    mirror(address, other, cache_bytes=int(2.5 * size))
    assert not list((other / "shards").glob("shard-*.h5"))
    lazy = EpisodeDataset(other / "shards")
    assert lazy.fingerprint == whole.fingerprint and len(lazy) == len(whole)
    assert not list((other / "shards").glob("shard-*.h5"))  # headers are enough
    rng = np.random.default_rng(0)
    for episode in rng.permutation(len(whole)):
        assert np.array_equal(lazy.read(episode, "frames"), whole.read(episode, "frames"))
        held = [path.stat().st_size for path in (other / "shards").glob("shard-*.h5")]
        assert 0 < sum(held) <= 2.5 * size
    again = pickle.loads(pickle.dumps(lazy))
    assert np.array_equal(again.read_rows("actions", 0, 50), whole.read_rows("actions", 0, 50))
    mirror(address, other).send()  # what is not here is not deleted there
    assert sum(n.endswith(".h5") for n in ObjectStore(address).stamps()) == len(whole.headers)


def test_copies_of_shards_that_were_made_anew_are_dropped(
    recorded: tuple[str, Path], tmp_path: Path
):
    address, made = recorded
    other = tmp_path / "other"
    mirror(address, other)
    EpisodeDataset(other / "shards").read_rows("frames", 0, 20)
    assert list((other / "shards").glob("shard-*.h5"))
    with sent(mirror(address, made, whole=True), makes_shards=True):
        write_toy_shards(made / "shards", episodes=48, seed=5)
    mirror(address, other)
    fresh, lazy = EpisodeDataset(made / "shards"), EpisodeDataset(other / "shards")
    assert lazy.fingerprint == fresh.fingerprint
    assert np.array_equal(lazy.read_rows("frames", 0, 20), fresh.read_rows("frames", 0, 20))


def test_more_recordings_are_made_where_all_shards_are(recorded: tuple[str, Path], tmp_path: Path):
    address, _ = recorded
    other = tmp_path / "other"
    with sent(mirror(address, other, whole=True), makes_shards=True):
        assert len(list((other / "shards").glob("shard-*.h5"))) == 8
        (other / "shards" / "shard-00007.h5").unlink()  # a build with fewer of them
    mirror(address, tmp_path / "third")
    assert len(EpisodeDataset(tmp_path / "third" / "shards").headers) == 7
    assert sum(n.endswith(".h5") for n in ObjectStore(address).stamps()) == 7


def test_a_lost_shard_and_a_damaged_note_are_one_line(recorded: tuple[str, Path], tmp_path: Path):
    address, _ = recorded
    other = tmp_path / "other"
    mirror(address, other)
    ObjectStore(address).remove("shards/shard-00003.h5")
    lazy = EpisodeDataset(other / "shards")
    with pytest.raises(StoreError, match=r"cannot be read \(shard-00003.h5\)"):
        lazy.read_rows("frames", 0, lazy.num_frames)
    write(other / "shards" / "headers.json", "[{}]")
    with pytest.raises(ValueError, match=r"headers.json cannot be read .*; delete it, and give"):
        EpisodeDataset(other / "shards")
    write(other / "shards" / "store.json", "{")
    with pytest.raises(ValueError, match=r"store.json is damaged .*; delete it, and give --run"):
        EpisodeDataset(other / "shards")


def test_shards_that_are_made_anew_while_they_are_read_are_an_error(
    recorded: tuple[str, Path], tmp_path: Path
):
    address, made = recorded
    mirror(address, tmp_path / "other")
    lazy = EpisodeDataset(tmp_path / "other" / "shards")
    lazy.read_rows("frames", 0, 10)
    with sent(mirror(address, made, whole=True), makes_shards=True):
        write_toy_shards(made / "shards", episodes=48, seed=5)
    with pytest.raises(StoreError, match=r"shard-\d+.h5 in s3://.* was made anew since this comm"):
        lazy.read_rows("frames", 0, lazy.num_frames)
    assert not list((tmp_path / "other" / "shards").glob("*.partial"))


def test_shards_that_were_not_sent_before_a_kill_are_not_replaced(
    recorded: tuple[str, Path], tmp_path: Path
):
    address, made = recorded
    run = mirror(address, made, whole=True)
    run.begin_shards()
    for path in (made / "shards").glob("*.h5"):
        path.unlink()
    write_toy_shards(made / "shards", episodes=12, seed=5)  # two of eight, and then it is killed
    mirror(address, made, whole=True)
    assert len(list((made / "shards").glob("*.h5"))) == 2
    mirror(address, made)  # nor by a later stage
    assert len(list((made / "shards").glob("*.h5"))) == 2
    with sent(mirror(address, made, whole=True), makes_shards=True):
        write_toy_shards(made / "shards", episodes=18, seed=5)
    mirror(address, tmp_path / "other")
    assert len(EpisodeDataset(tmp_path / "other" / "shards")) == 18


def test_shards_that_are_sent_without_their_headers_are_said_to_be(
    address: str, tmp_path: Path, capfd: Any
):
    made = tmp_path / "made"
    with pytest.raises(ValueError, match="the source ends"):  # noqa: SIM117
        with sent(mirror(address, made, whole=True), makes_shards=True):
            shards = write_toy_shards(made / "shards", episodes=18)
            header = shards / "shard-00001.h5"
            header.write_bytes(header.read_bytes()[:3000])
            raise ValueError("the source ends")
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("store: ")]
    assert len(said) == 1 and "has no shards/headers.json until all shards are made" in said[0]
    assert "shard-00001.h5 is damaged" in said[0] and "preprocess.py" in said[0]
    there = ObjectStore(address).stamps()
    assert "shards/shard-00002.h5" in there and "shards/headers.json" not in there
    (made / "shards" / "shard-00001.h5").unlink()
    with sent(mirror(address, made, whole=True), makes_shards=True):
        write_toy_shards(made / "shards", episodes=18)
    assert "shards/headers.json" in ObjectStore(address).stamps()
    assert "headers.json" not in capfd.readouterr().err
