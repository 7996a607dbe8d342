"""Batches from worker processes are those of this one; what happens to a worker is one line."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from alive import all_end
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from data.batch import Batch
from pipeline.batches import worker_batches as module
from pipeline.batches.step_dataset import load_batches

ROOT = Path(__file__).parent.parent
FLAG = "--train.num-workers"


class Numbers:
    """The batch of step s is 4 times s; what a step does besides is given."""

    def __init__(self, at: int = -1, action: str = "") -> None:
        self.at, self.action = at, action

    def __getitem__(self, step: int) -> Batch:
        if step == self.at and self.action == "refuse":
            raise ValueError("shard-00001.h5 is damaged")
        if step == self.at and self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if step == self.at and self.action == "local":
            return Unsendable(torch.full((4,), step))
        return Batch(actions=torch.full((4,), step))


class Unsendable(Batch):
    """What cannot be handed over, like a tensor without room in shared memory."""

    def __reduce__(self) -> Any:
        raise RuntimeError("unable to allocate shared memory(shm)")


def steps(numbers: Any, num_workers: int) -> list[list[int]]:
    batches = load_batches(numbers, range(3, 9), num_workers, FLAG)
    return [batch.require("actions")[0].tolist() for batch in batches]


def test_workers_change_no_batch():
    alone = steps(Numbers(), 0)
    assert alone == [[step] * 4 for step in range(3, 9)] and steps(Numbers(), 1) == alone


def test_a_damaged_shard_is_one_line_from_a_worker_too():
    with pytest.raises(ValueError, match=r"^shard-00001.h5 is damaged$"):
        steps(Numbers(5, "refuse"), 1)


def test_a_killed_worker_is_one_line_in_the_loop(monkeypatch):
    # PyTorch looks after workers every 5 s
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))
    before = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(ValueError, match=r"^one of the 1 processes .* killed.*; lower --train.num"):
        steps(Numbers(4, "kill"), 1)
    assert signal.getsignal(signal.SIGCHLD) == before


def test_a_batch_that_cannot_be_handed_over_is_not_waited_for():
    with pytest.raises(ValueError, match="one of the 1 processes"):
        steps(Numbers(4, "local"), 1)


def test_too_little_shared_memory_is_named_before_the_workers_start(monkeypatch):
    small = shutil.disk_usage("/")._replace(free=100)
    monkeypatch.setattr(module, "SHARED_MEMORY", Path("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: small)
    with pytest.raises(ValueError, match=r"--train.num-workers 2 needs 0.0 MiB of shared memory"):
        steps(Numbers(), 2)
    assert len(steps(Numbers(), 0)) == 6


PARENT = """
import os, time
from data.batch import Batch
from pipeline.batches.step_dataset import load_batches

class Numbers:
    def __getitem__(self, step):
        return Batch()

if __name__ == "__mp_main__":  # a worker, at its imports
    print(os.getpid(), flush=True)
    time.sleep(1)
if __name__ == "__main__":
    for _ in load_batches(Numbers(), range(10**9), 1, "-"):
        pass
"""


@pytest.mark.skipif(not Path("/proc").exists(), reason="only Linux lists processes as files")
def test_a_worker_ends_with_a_parent_that_is_killed_while_it_starts(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    with subprocess.Popen(
        [sys.executable, "parent.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
    assert all_end([worker], 60)
