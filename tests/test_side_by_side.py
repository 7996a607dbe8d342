"""Pieces of a stage in several processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from side_by_side_pieces import open_pieces, work

import train_controller
from pipeline.cli import parse
from pipeline.side_by_side import Pieces, SideBySide

PATIENCE = 120.0  # seconds


def wait_for(path: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < end, f"nobody wrote {path}"
        time.sleep(0.02)


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def test_each_piece_is_taken_once_from_either_end():
    pieces = Pieces(multiprocessing.get_context("spawn"))
    assert pieces.take() is None
    pieces.fill(5)
    assert [pieces.take(), pieces.take(True), pieces.take(), pieces.take(True)] == [0, 4, 1, 3]
    assert [pieces.take(True), pieces.take(), pieces.take(True)] == [2, None, None]


def test_two_processes_share_pieces_and_threads(two_threads: None, tmp_path: Path):
    def first(name: str) -> None:
        work(tmp_path, name)
        if name == "a":  # until the other has had its share
            wait_for(tmp_path / "e")

    with SideBySide(open_pieces, tmp_path, 2, 8) as beside:
        assert beside.count == 2
        done = dict(beside.share([["a"], ["b"], ["c"], ["d", "e"]], first))
        assert torch.get_num_threads() == 2
    assert set(done) == set("abcde")
    processes = {name: (tmp_path / name).read_text() for name in done}
    assert processes["a"] == f"{os.getpid()} 1"
    assert processes["d"] == processes["e"] != processes["a"]
    assert processes["e"].endswith(" 1")
    assert (done["a"], done["d"], done["e"]) == ("", "d is done", "e is done")


@pytest.mark.parametrize("requested, most, threads", [(1, 8, 2), (2, 1, 2), (2, 8, 1), (2, 0, 2)])
def test_one_process_does_all_pieces_in_their_order(
    requested: int, most: int, threads: int, tmp_path: Path
):
    torch.set_num_threads(threads)
    try:
        with SideBySide(open_pieces, tmp_path, requested, most) as beside:
            assert beside.count == 1
            groups = [["a"], ["b", "c"], ["d"]]
            found = beside.share(groups, lambda name: work(tmp_path, name))
            assert [name for name, _ in found] == list("abcd")
        assert (tmp_path / "a").read_text() == f"{os.getpid()} {threads}"
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(
    "piece, error, message",
    [
        ("refused", ValueError, "--runs 0 is too few; give 1"),
        ("broken", ZeroDivisionError, "a fault of ours"),
        ("killed", OSError, "ended early; run the command again"),
    ],
)
def test_what_ends_another_process_ends_this_one(
    piece: str, error: type[Exception], message: str, two_threads: None, tmp_path: Path
):
    def first(name: str) -> None:
        wait_for(tmp_path / "before")

    with pytest.raises(error, match=message), SideBySide(open_pieces, tmp_path, 2, 8) as beside:
        list(beside.share([["mine"], ["before", piece]], first))
    assert (tmp_path / "before").exists()


def test_an_error_here_ends_the_other(two_threads: None, tmp_path: Path):
    with pytest.raises(KeyError), SideBySide(open_pieces, tmp_path, 2, 8) as beside:
        (other, _) = beside._others[0]
        raise KeyError
    assert not other.is_alive()


def test_a_process_of_several_under_torchrun_stays_alone(
    two_threads: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with SideBySide(open_pieces, tmp_path, 2, 8) as beside:
        assert beside.count == 1


def test_a_config_from_a_command_line_reaches_another_process():
    flags = ["--preset", "keypoints", "cpu", "--model.horizon", "7"]
    config = parse(train_controller.Config, "controller", flags).config
    sent = pickle.loads(pickle.dumps(config))
    assert type(sent) is train_controller.Config
    assert vars(sent) == vars(config) and vars(sent.model)["horizon"] == 7
