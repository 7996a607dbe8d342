import subprocess
import sys

import pytest

from data.files import lock


def test_a_folder_is_locked_by_one_process_at_a_time(tmp_path):
    held = lock(tmp_path)
    with pytest.raises(ValueError, match="in use by another process"):
        lock(tmp_path)
    held.close()
    lock(tmp_path).close()


def test_a_killed_process_releases_its_lock(tmp_path):
    hold = (
        "import sys, time; from pathlib import Path; from data.files import lock;"
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
