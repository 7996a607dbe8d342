"""The shape of the tree: which way imports point, how much one step loads, how long a file is."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# What each folder may import of the project, beside itself.
MAY = {
    "kernels": set(),
    "data": set(),
    "models": {"kernels", "data"},
    "recipes": set(),
    "pipeline": {"kernels", "data", "models", "recipes"},
    "evaluation": {"kernels", "data", "models", "pipeline"},
    "bench": {"kernels", "data", "models", "pipeline", "evaluation"},
}
LONGEST = 400


def python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported_by(file: Path) -> set[str]:
    """Names of modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("folder", MAY)
def test_imports_point_one_way(folder):
    scripts = {file.stem for file in ROOT.glob("*.py")}
    ours = set(MAY) | scripts | {"tests"}
    for file in python_files(folder):
        for name in imported_by(file):
            top = name.partition(".")[0]
            allowed = top not in ours or top in MAY[folder] | {folder}
            assert allowed, f"{file.relative_to(ROOT)} imports {name}"


def test_no_module_imports_itself_through_others():
    """Imports at the top of files have no cycle; those inside functions may close one."""
    graph: dict[str, set[str]] = {}
    for folder in MAY:
        for file in python_files(folder):
            tree = ast.parse(file.read_text())
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            module = module.removesuffix(".__init__")
            names: set[str] = set()
            for node in tree.body:
                if isinstance(node, ast.ImportFrom) and node.module:
                    inside = {f"{node.module}.{alias.name}" for alias in node.names}
                    names |= inside | ({node.module} - {module})
            graph[module] = names
    done: set[str] = set()

    def walk(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above, module))
        if module not in done:
            for name in graph.get(module, set()) & graph.keys():
                walk(name, (*above, module))
            done.add(module)

    for module in graph:
        walk(module, ())


def test_no_long_file_without_a_reason_at_its_head():
    tracked = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    for name in tracked or [str(p.relative_to(ROOT)) for f in MAY for p in python_files(f)]:
        file = ROOT / name
        if file.exists() and len(file.read_text().splitlines()) > LONGEST:
            head = ast.get_docstring(ast.parse(file.read_text())) or ""
            assert "One file because" in head, f"{name} is longer than {LONGEST} lines"


def test_a_step_of_dynamics_loads_few_files():
    done = subprocess.run(
        [sys.executable, "tests/count_step.py"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-500:]
    assert "train_dynamics.py" in done.stdout and "models/dynamics/llama.py" in done.stdout
    assert "models/dynamics/predictor.py" not in done.stdout  # another method
