"""Pieces of work for test_side_by_side.py, in a module that another process imports at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from pipeline.side_by_side import Work


@contextmanager
def open_pieces(folder: Path) -> Iterator[Work]:
    yield lambda name: work(folder, name)


def work(folder: Path, name: str) -> None:
    """Leave the process's number in FOLDER/NAME."""
    print(f"{name} is done")
    if name == "refused":
        raise ValueError("--runs 0 is too few; give 1")
    if name == "broken":
        raise ZeroDivisionError("a fault of ours")
    if name == "killed":
        os._exit(9)
    (folder / name).write_text(f"{os.getpid()} {torch.get_num_threads()}")
