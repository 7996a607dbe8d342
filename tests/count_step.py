"""Count the files and lines that one training step of dynamics imports, and name them.

    python tests/count_step.py [--preset keypoints]

Trains one step on the toy dataset, and lists the project's modules that were imported by then.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]
MOST_FILES, MOST_LINES = 45, 6700


def imported() -> dict[str, int]:
    """Lines of each of the project's files that are imported, by its path; a package's page that
    holds nothing but a docstring is none."""
    found = {}
    for module in list(sys.modules.values()):
        if _ours(module):
            file = Path(module.__file__ or "")
            lines = len(file.read_text().splitlines())
            if file.name != "__init__.py" or lines > 1:
                found[str(file.relative_to(ROOT))] = lines
    return found


class Done(Exception):
    """A step has been taken."""


def take_a_step(recipe: str) -> dict[str, int]:
    """Train one step of the recipe's dynamics; give what it imported by then."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        prepare(run, recipe)
        # what made the shards and the tokenizer is not the step's
        for name in [n for n, m in sys.modules.items() if _ours(m)]:
            del sys.modules[name]
        import train_dynamics
        from pipeline import presets
        from pipeline.training.trainer import Trainer

        step = Trainer.step

        def one_step(self: Trainer, *args: Any) -> None:
            step(self, *args)
            raise Done

        Trainer.step = one_step  # type: ignore[method-assign]
        config = presets.apply(train_dynamics.Config(), "dynamics", [recipe, "debug"])
        # nor what reads a command line: a script imports it only where it is run as one
        for name in [
            n for n in sys.modules if n.split(".")[0] == "recipes" or n == presets.__name__
        ]:
            del sys.modules[name]
        try:
            train_dynamics.main(replace(config, run=run))
        except Done:
            return imported()
    raise AssertionError("no step was taken")


def prepare(run: Path, recipe: str) -> None:
    import train_tokenizer
    from data.toy import write_toy_shards
    from pipeline import presets

    write_toy_shards(run / "shards", episodes=18, length=40, size=64)
    config = presets.apply(train_tokenizer.Config(), "tokenizer", [recipe, "debug"])
    train_tokenizer.main(replace(config, run=run, train=replace(config.train, steps=1)))


def _ours(module: ModuleType) -> bool:
    file = Path(getattr(module, "__file__", None) or "/")
    return file.is_relative_to(ROOT) and ".venv" not in file.parts and file != Path(__file__)


if __name__ == "__main__":
    recipe = sys.argv[sys.argv.index("--preset") + 1] if "--preset" in sys.argv else "pusht"
    files = take_a_step(recipe)
    for path, lines in sorted(files.items(), key=lambda item: -item[1]):
        print(f"{lines:5} {path}")
    total = sum(files.values())
    print(f"{len(files)} files (at most {MOST_FILES}), {total} lines (at most {MOST_LINES})")
    raise SystemExit(len(files) > MOST_FILES or total > MOST_LINES)
