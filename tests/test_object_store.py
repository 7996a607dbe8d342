"""Runs in an object store, on a store of S3's kind on this machine.

One file because its tests share that store, which takes seconds to start.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.io.object_store import ObjectStore, StoreError, is_store
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from pipeline.store import arguments
from pipeline.store.arguments import with_fetched
from pipeline.store.mirror import Mirror, sent

pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")
ROOT = Path(__file__).parents[1]
BUCKET = "worlds"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto_server.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def address(endpoint: str, monkeypatch: Any, request: Any, tmp_path: Path) -> str:
    """A place of the test's own."""
    import fsspec

    settings = {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    if not fs.exists(BUCKET):
        fs.mkdir(BUCKET)
    fsspec.filesystem("s3").clear_instance_cache()
    monkeypatch.chdir(tmp_path)
    return f"s3://{BUCKET}/{re.sub(r'[^a-z0-9]+', '-', request.node.name)}"


def mirror(address: str, folder: Path, cache_bytes: int = 2**30, whole: bool = False) -> Mirror:
    made = Mirror(address, folder, cache_bytes)
    made.fetch(whole)
    return made


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_addresses_are_told_from_paths_and_from_the_hub():
    assert is_store("s3://bucket/run") and is_store("gs://b/r") and is_store("s3://")
    others = ("runs/pusht", "hf://user/name", "https://host/x", "s3:/x", "://x", "C:\\runs")
    assert not any(map(is_store, others))


@pytest.mark.parametrize(
    ("address", "told"),
    [("s3://", "names no run; write s3://BUCKET/RUN"), ("s3://worlds", "names no run"),
     ("s3://worlds/../x", "names no run"), ("s3://worlds//x", "names no run"),
     ("memory://a/b", "is no address of an object store"), ("file:///tmp/x", "is no address"),
     ("S3://worlds/x", "is no address"), ("simplecache::s3://w/x", "is no address")],
)  # fmt: skip
def test_addresses_that_name_no_run_are_refused(address: str, told: str):
    with pytest.raises(ValueError, match=told):
        with_fetched(["--run", address], "play")


def test_a_run_goes_there_and_back(address: str, tmp_path: Path):
    here, there = tmp_path / "a", tmp_path / "b"
    with sent(mirror(address, here), makes_shards=False):
        write(here / "run.json", "{}")
        write(here / "dynamics" / "last.pt", "weights")
        write(here / "dynamics" / "last.pt.1.partial", "half")
        write(here / "latents" / "rows.npy", "a cache")
    names = {"run.json", "dynamics/last.pt"}
    assert ObjectStore(address).stamps().keys() == names
    second = mirror(address, there)
    assert {str(p.relative_to(there)) for p in there.rglob("*") if p.is_file()} >= names
    assert (there / "dynamics" / "last.pt").read_text() == "weights"
    assert not (there / "latents").exists()
    write(there / "dynamics" / "last.pt", "more weights")
    (there / "run.json").unlink()
    second.send()
    assert ObjectStore(address).stamps().keys() == {"dynamics/last.pt"}
    mirror(address, here)
    assert (here / "dynamics" / "last.pt").read_text() == "more weights"
    assert (here / "run.json").exists()  # nothing is deleted here for lack of it there


def test_only_what_changed_is_sent(address: str, tmp_path: Path, monkeypatch: Any):
    run = mirror(address, tmp_path / "run")
    for name in ("a", "b"):
        write(tmp_path / "run" / name, name)
    run.send()
    put, names = ObjectStore.put, []

    def counted(self: ObjectStore, path: Path, name: str) -> str:
        names.append(name)
        return put(self, path, name)

    monkeypatch.setattr(ObjectStore, "put", counted)
    run.send()
    write(tmp_path / "run" / "b", "longer")
    run.send()
    assert names == ["b"]


def test_what_changed_here_after_a_kill_is_kept_and_both_are_refused(address: str, tmp_path: Path):
    here = tmp_path / "run"
    run = mirror(address, here)
    write(here / "last.pt", "one")
    run.send()
    write(here / "last.pt", "two, not sent")  # killed here
    again = mirror(address, here)
    assert (here / "last.pt").read_text() == "two, not sent"
    again.send()
    write(here / "last.pt", "three, not sent")
    elsewhere = mirror(address, tmp_path / "other")
    write(tmp_path / "other" / "last.pt", "other")
    elsewhere.send()
    with pytest.raises(ValueError, match=r"last.pt changed both in s3://.* and in .*run since"):
        mirror(address, here)
    assert (here / "last.pt").read_text() == "three, not sent"


@pytest.fixture
def recorded(address: str, tmp_path: Path) -> tuple[str, Path]:
    """A run whose eight shards were made here, and sent."""
    made = tmp_path / "made"
    with sent(mirror(address, made, whole=True), makes_shards=True):
        write_toy_shards(made / "shards", episodes=48)
    return address, made


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


def test_an_exchange_that_was_killed_before_it_was_noted_is_no_conflict(
    address: str, tmp_path: Path
):
    here = tmp_path / "run"
    run = mirror(address, here)
    write(here / "last.pt", "weights")
    run.send()
    (here / ".store" / "record.json").unlink()
    mirror(address, here)
    (here / ".store" / "record.json").unlink()
    write(here / "last.pt", "WEIGHTS")
    with pytest.raises(ValueError, match="last.pt changed both"):
        mirror(address, here)
    (here / "last.pt").unlink()  # a folder that somebody emptied is filled, not the store emptied
    mirror(address, here).send()
    assert (here / "last.pt").read_text() == "weights"


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


def test_a_store_that_cannot_be_reached_is_one_line(address: str, tmp_path: Path, monkeypatch: Any):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StoreError, match=r"cannot be listed \(.*check the network") as told:
        mirror(f"{address}/x", tmp_path / "run")
    assert "\n" not in str(told.value)
    with pytest.raises(StoreError, match=r"nosuch://b/run is of no store that is known"):
        ObjectStore("nosuch://b/run")
    with pytest.raises(StoreError, match=r"gs://b/run needs gcsfs: pip install gcsfs"):
        ObjectStore("gs://b/run")


def test_the_end_says_what_was_not_sent_and_where_it_is(
    address: str, tmp_path: Path, monkeypatch: Any, capsys: Any
):
    run = mirror(address, tmp_path / "run")

    def refuse(*_: Any) -> str:
        raise StoreError("the store is away")

    monkeypatch.setattr(ObjectStore, "put", refuse)
    with (
        pytest.raises(StoreError, match=r"is away; until then all is in .*run"),
        sent(run, makes_shards=False),
    ):
        write(tmp_path / "run" / "last.pt", "weights")
    with pytest.raises(ValueError, match="of the command"), sent(run, makes_shards=False):
        raise ValueError("of the command")
    assert "store: the store is away; until then all is in" in capsys.readouterr().err


def test_only_run_may_be_a_place_in_a_store(address: str, monkeypatch: Any):
    with pytest.raises(ValueError, match=r"--shards s3://.* is a place in an object store, which"):
        with_fetched(["--shards", address], "evaluate")
    given, found = with_fetched([f"--run={address}", "--steps", "3"], "play")
    assert given[1:] == ["--steps", "3"] and found is not None
    assert given[0] == f"--run=runs/store/s3/{address.removeprefix('s3://')}"
    assert with_fetched(["--run", "runs/mine"], "play") == (["--run", "runs/mine"], None)
    monkeypatch.setenv(arguments.CACHE, "lots")
    with pytest.raises(ValueError, match=r"DREAMSTAGE_SHARD_CACHE_GIB=lots in the environment"):
        with_fetched(["--run", address], "play")


def test_a_world_is_trained_in_a_store_from_two_machines(address: str, tmp_path: Path):
    def stage(machine: str, *words: str) -> str:
        folder = tmp_path / machine
        folder.mkdir(exist_ok=True)
        ended = subprocess.run(
            [sys.executable, *words], cwd=folder, capture_output=True, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr[-2000:]
        return ended.stdout

    def script(name: str) -> list[str]:
        return [str(ROOT / name), *(["pusht"] if name == "preprocess.py" else [])]

    run = ["--run", address]
    small = ["--train.steps", "2", "--train.save-every", "1", "--train.eval-every", "2"]
    stage("a", *script("preprocess.py"), *run, "--preset", "keypoints", "debug")
    stage("b", *script("train_tokenizer.py"), *run, *small)
    told = stage("a", *script("train_tokenizer.py"), *run, *small[:1], "4", *small[2:])
    assert "from step 2" in told
    log = tmp_path / "a/runs/store/s3" / address.removeprefix("s3://") / "tokenizer/log.jsonl"
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps[-1] == 4
    assert "tokenizer/best.pt" in ObjectStore(address).stamps()


# -- what an attack found -------------------------------------------------------------------------


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


def test_two_machines_on_one_run_overwrite_nothing(address: str, tmp_path: Path):
    first, second = mirror(address, tmp_path / "a"), mirror(address, tmp_path / "b")
    write(tmp_path / "a" / "last.pt", "of a")
    first.send()
    write(tmp_path / "b" / "last.pt", "of b")
    write(tmp_path / "b" / "mine.txt", "of b")
    with pytest.raises(StoreError, match="last.pt changed both in .* another machine is at the sa"):
        second.send()
    assert ObjectStore(address).read("last.pt") == b"of a"
    assert ObjectStore(address).read("mine.txt") == b"of b"  # all else is sent
    assert (tmp_path / "b" / "last.pt").read_text() == "of b"


def test_a_folder_is_of_one_run_of_one_store(address: str, tmp_path: Path, monkeypatch: Any):
    run = mirror(address, tmp_path / "run")
    write(tmp_path / "run" / "last.pt", "weights")
    run.send()
    with pytest.raises(ValueError, match=r"run is of s3://.*, not of s3://.*-other at http"):
        mirror(f"{address}-other", tmp_path / "run")


def test_a_store_that_was_emptied_is_filled_again(address: str, tmp_path: Path):
    run = mirror(address, tmp_path / "run")
    write(tmp_path / "run" / "last.pt", "weights")
    run.send()
    ObjectStore(address).remove("last.pt")
    mirror(address, tmp_path / "run").send()
    assert ObjectStore(address).read("last.pt") == b"weights"


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


@pytest.mark.parametrize("name", ["../../escaped.txt", "a//b.txt", "tokenizer"])
def test_names_that_no_file_can_have_are_named(address: str, tmp_path: Path, name: str):
    import fsspec

    fs = fsspec.filesystem("s3")
    bucket, prefix = address.removeprefix("s3://").split("/", 1)
    for key in (f"{prefix}/{name}", f"{prefix}/tokenizer/best.pt"):
        fs.call_s3("put_object", Bucket=bucket, Key=key, Body=b"x")
    with pytest.raises(StoreError, match=r"holds '.*', which no file here can be; delete it"):
        mirror(address, tmp_path / "deep" / "run")
    assert not list(tmp_path.rglob("escaped.txt"))


def test_a_file_with_an_odd_name_stops_no_other(address: str, tmp_path: Path, capsys: Any):
    run = mirror(address, tmp_path / "run")
    for name in ("a\nb", "last.pt"):
        write(tmp_path / "run" / name, "weights")
    run.send()
    assert ObjectStore(address).stamps().keys() == {"last.pt"}
    assert "is not sent, for its name; rename it" in capsys.readouterr().err


def test_a_bucket_that_is_missing_is_refused_before_anything_is_made(address: str):
    with pytest.raises(StoreError, match=r"s3://no-such-bucket/run cannot be written to"):
        with_fetched(["--run", "s3://no-such-bucket/run"], "tokenizer")


def test_a_place_of_several_runs_is_refused(address: str, tmp_path: Path):
    for name in ("one", "two"):
        run = mirror(f"{address}/{name}", tmp_path / name)
        write(tmp_path / name / "run.json", "{}")
        run.send()
    with pytest.raises(ValueError, match=r"holds 2 runs \(one, two\); name one of them"):
        mirror(address, tmp_path / "all")


def test_the_thread_that_sends_lives_on_after_any_error(
    address: str, tmp_path: Path, monkeypatch: Any, capsys: Any
):
    run, calls = mirror(address, tmp_path / "run"), []

    def send(progress: bool = False) -> None:
        calls.append(progress)
        if len(calls) < 3:
            raise ValueError("record.json was not written: No space left on device")

    monkeypatch.setattr(run, "send", send)
    monkeypatch.setattr("pipeline.store.mirror.EVERY", 0.01)
    with sent(run, makes_shards=False):
        while len(calls) < 4:
            time.sleep(0.01)
    told = capsys.readouterr().err
    assert told.count("No space left on device; trying again") == 1 and "Traceback" not in told


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
        for seed in range(3)
    ]
    expected = sum(int(whole.read(e, "frames").sum()) for e in range(len(whole)))
    assert [int(reader.communicate()[0]) for reader in readers] == [expected] * 3
    assert "waiting" not in capfd.readouterr().err
