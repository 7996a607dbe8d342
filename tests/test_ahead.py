"""Every kernel compiles for a GPU that is not here, within what it says it takes."""

import json
import os
import subprocess
import sys

import pytest

from kernels.ahead import THEMES

pytest.importorskip("triton")


@pytest.mark.parametrize("theme", THEMES)
def test_kernels_compile_for_sm_90_within_their_limits(theme, tmp_path):
    surroundings = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "kernels.ahead", "--json", theme],
        capture_output=True, text=True, env=surroundings | {"TRITON_CACHE_DIR": str(tmp_path)},
    )  # fmt: skip
    assert done.stdout, done.stderr
    taken = json.loads(done.stdout)
    assert taken, f"{theme} lists no kernels"
    assert [t["over"] for t in taken] == [[]] * len(taken), taken
