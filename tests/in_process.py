"""Scripts called in the tests' own process: another one takes seconds to import what is there."""

from __future__ import annotations

import importlib
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

from pipeline.cli import run_cli, run_commands

ROOT = Path(__file__).parent.parent


def call_script(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Call a script of the project, such as `preprocess.py`, as a shell would in the project's
    folder; what is not reported as a user's mistake is raised."""
    module = importlib.import_module(script.removesuffix(".py"))
    out, err, code = StringIO(), StringIO(), 0
    with (
        chdir(ROOT), patch.object(sys, "argv", [script, *arguments]),
        redirect_stdout(out), redirect_stderr(err),
    ):  # fmt: skip
        try:
            if hasattr(module, "COMMANDS"):
                run_commands(module.COMMANDS, module.__doc__ or "")
            else:
                run_cli(module.main, module.Config, module.__name__.removeprefix("train_"))
        except SystemExit as end:
            code = int(end.code or 0)
    return subprocess.CompletedProcess([script, *arguments], code, out.getvalue(), err.getvalue())
