"""Worker processes end with their parent, however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from alive import all_end, is_alive

from data.processes import map_in_processes

ROOT = Path(__file__).parent.parent
PARENT = """
import os, sys, time
from data.processes import map_in_processes

def work(seconds):
    os.write(1, f"{os.getpid()}\\n".encode())  # at once: both workers write to one pipe
    time.sleep(seconds)

if __name__ == "__main__":
    for _ in map_in_processes(work, [(60,), (60,)], 2, "-"):
        pass
"""


@pytest.mark.skipif(not Path("/proc").exists(), reason="only Linux lists processes as files")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_parent(tmp_path, number):
    (tmp_path / "parent.py").write_text(PARENT)
    with subprocess.Popen(
        [sys.executable, "parent.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as parent:
        assert parent.stdout is not None
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        assert all(is_alive(worker) for worker in workers)
        parent.send_signal(number)  # to the parent alone
        parent.wait()
    assert all_end(workers, 30)


def fail(number: int) -> int:
    if number == 1:
        raise ValueError("shard 1 is empty")
    time.sleep(600 if number else 0)
    return number


def test_an_error_ends_the_other_workers_at_once():
    started = time.monotonic()
    with pytest.raises(ValueError, match="shard 1 is empty"):
        list(map_in_processes(fail, [(0,), (1,), (2,)], 2, "-"))
    assert time.monotonic() - started < 600
