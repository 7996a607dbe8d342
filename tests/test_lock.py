import errno
import fcntl
import os
import subprocess
import sys
import threading

import pytest
from screen import Screen

from data.io import files
from data.io.files import lock


def test_a_folder_is_locked_by_one_process_at_a_time(tmp_path):
    held = lock(tmp_path)
    with pytest.raises(ValueError, match=r"in use by another process .* choose another --out"):
        lock(tmp_path, flag="--out")
    held.close()
    lock(tmp_path).close()


def test_a_killed_process_releases_its_lock(tmp_path):
    hold = (
        "import sys, time; from pathlib import Path; from data.io.files import lock;"
        "f = lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"number {process.pid}"):
            lock(tmp_path)
        process.kill()
    lock(tmp_path).close()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_used_after_one_warning(tmp_path, capsys, monkeypatch, code):
    def flock(file: object, how: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    files._warn_without_locks.cache_clear()
    lock(tmp_path).close()
    lock(tmp_path / "other", "makes something").close()
    printed = capsys.readouterr().err
    assert (
        printed.startswith("warning: this file system has no locks (") and printed.count("\n") == 1
    )


@pytest.mark.parametrize("code", [errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES])
def test_a_lock_that_another_holds_is_in_use(tmp_path, monkeypatch, code):
    def flock(file: object, how: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ValueError, match="in use by another process"):
        lock(tmp_path)


def test_a_lock_may_be_waited_for(tmp_path, monkeypatch):
    held = lock(tmp_path)
    screen, done = Screen(monkeypatch), threading.Event()

    def wait() -> None:
        lock(tmp_path, "makes the latents").close()
        done.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    screen.wait_for(f"waiting for process {os.getpid()}, which makes the latents")
    assert not done.is_set()
    held.close()
    thread.join()
    assert done.is_set()


def test_a_pipe_in_place_of_the_lock_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(ValueError, match="lock is a named pipe"):
        lock(tmp_path)
