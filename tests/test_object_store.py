"""Places in an object store: their addresses, their names, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from local_store import mirror, write

from data.io.object_store import ObjectStore, StoreError, is_store
from pipeline.store import arguments
from pipeline.store.arguments import with_fetched

pytest.importorskip("s3fs")


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
