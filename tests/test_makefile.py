"""What make gives its commands."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_stages_of_make_find_the_bytecode_of_those_before_them():
    """Without any, each process compiles PyTorch's sources, where the environment asks for none."""
    command = ["make", "--silent", "--eval=shown:; @env", "shown"]
    environment = dict.fromkeys(["PYTHONDONTWRITEBYTECODE"], "1") | {"PATH": os.environ["PATH"]}
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    shown = answer.stdout.splitlines()
    assert f"PYTHONPYCACHEPREFIX={ROOT / '.venv' / 'bytecode'}" in shown
    assert not any(line.startswith("PYTHONDONTWRITEBYTECODE") for line in shown)
    del environment["PYTHONDONTWRITEBYTECODE"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert "PATH=" in answer.stdout and "PYTHONPYCACHEPREFIX" not in answer.stdout
