"""Exchanges between a run's folder and a store: what is sent, fetched, kept and refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from local_store import mirror, write

import preprocess
import train_tokenizer
from data.io.object_store import ObjectStore, StoreError
from pipeline.cli import run_cli, run_commands
from pipeline.store.mirror import sent

ROOT = Path(__file__).parents[1]


pytest.importorskip("s3fs")


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


def test_a_world_is_trained_in_a_store_from_two_machines(
    address: str, tmp_path: Path, monkeypatch: Any
):
    def machine(name: str, *words: str) -> None:
        """From here on a command of this process is one of the machine of that name."""
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / name)
        monkeypatch.setattr(sys, "argv", [f"{words[0]}.py", *words[1:]])

    run = ["--run", address]
    small = ["--train.save-every", "1", "--train.eval-every", "2", "--train.steps"]
    machine("a", "preprocess", "pusht", *run, "--preset", "keypoints", "debug")
    run_commands(preprocess.COMMANDS, "")
    machine("b", "train_tokenizer", *run, *small, "2")
    run_cli(train_tokenizer.main, train_tokenizer.Config, "tokenizer")
    ended = subprocess.run(
        [sys.executable, str(ROOT / "train_tokenizer.py"), *run, *small, "4"],
        cwd=tmp_path / "a", capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "from step 2" in ended.stdout
    log = tmp_path / "a/runs/store/s3" / address.removeprefix("s3://") / "tokenizer/log.jsonl"
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps[-1] == 4
    assert "tokenizer/best.pt" in ObjectStore(address).stamps()


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
        end = time.monotonic() + 60
        while len(calls) < 4 and time.monotonic() < end:
            time.sleep(0.01)
    assert len(calls) >= 4
    told = capsys.readouterr().err
    assert told.count("No space left on device; trying again") == 1 and "Traceback" not in told
