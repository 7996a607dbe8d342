import hashlib
import threading
from pathlib import Path

import pytest

from pipeline.training.distributed import wait_for_threads

TASKS = Path("/proc/self/task")


@pytest.mark.skipif(not TASKS.exists(), reason="only Linux lists what a thread does")
def test_threads_of_that_name_are_waited_for_while_they_run():
    started, done, end = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        (TASKS / str(threading.get_native_id()) / "comm").write_text("pt_test (1) loop")
        started.set()
        hashlib.sha256(bytes(200_000_000))  # without the interpreter, as gloo's do
        done.set()
        end.wait()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    started.wait()
    wait_for_threads("pt_test")
    assert done.is_set() and thread.is_alive()
    end.set()
    thread.join()
