"""What make gives its commands."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def environment_of_a_stage(**given: str) -> dict[str, str]:
    """The environment that a command of the Makefile has, where make has this one."""
    answer = subprocess.run(
        ["make", "--silent", "--eval=shown:; @env", "shown"],
        cwd=ROOT, capture_output=True, text=True, check=True,
        env={"PATH": os.environ["PATH"], **given},
    )  # fmt: skip
    return dict(line.split("=", 1) for line in answer.stdout.splitlines())


def test_stages_of_make_find_the_bytecode_of_those_before_them():
    """Without any, each process compiles PyTorch's sources, where the environment asks for none."""
    for given in ({}, {"PYTHONPYCACHEPREFIX": ""}):  # an empty one puts it beside the sources
        found = environment_of_a_stage(PYTHONDONTWRITEBYTECODE="1", **given)
        assert found["PYTHONPYCACHEPREFIX"] == str(ROOT / ".venv" / "bytecode")
        assert "PYTHONDONTWRITEBYTECODE" not in found


def test_the_users_own_place_of_bytecode_is_kept():
    own = {"PYTHONPYCACHEPREFIX": "/of/my/own"}
    for given in (own, own | {"PYTHONDONTWRITEBYTECODE": "1"}):
        assert environment_of_a_stage(**given)["PYTHONPYCACHEPREFIX"] == "/of/my/own"
    assert "PYTHONPYCACHEPREFIX" not in environment_of_a_stage()
