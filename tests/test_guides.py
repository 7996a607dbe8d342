"""Tutorials and how-to pages: their blocks run, one after another, at the size debug.

Of a page, ```bash blocks run as commands and ```python blocks as one program, or are written to a
file where they have a title. A size in --preset becomes debug. `<!-- after: PAGE -->` names the
page whose runs it goes on with. Blocks without a language, and indented ones, are only parsed
(test_readme.py).
"""

from __future__ import annotations

import importlib
import re
import shlex
import sys
import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import evaluate
import preprocess
from evaluation.measures import probe
from pipeline import cli, presets
from pipeline.play import buttons
from recipes import genie

ROOT = Path(__file__).parents[1]
ELSEWHERE = {  # pages whose blocks have tests of their own
    "how-to/add-a-method.md": "test_template.py",
    "how-to/layers.md": "test_layer_pages.py",
    "how-to/pretrained-encoders.md": "test_layer_pages.py",
    "how-to/your-recordings.md": "test_episode_writer.py",
    "tutorial/serve.md": "test_readme.py",
}
BLOCK = re.compile(r"^```(bash|python)(?: title=\"([^\"]+)\")?\n(.*?)^```", re.M | re.S)


def text_of(page: str) -> str:
    return (ROOT / "docs" / page).read_text()


def guides() -> list[str]:
    folders = ("tutorial", "how-to")
    pages = sorted(p for folder in folders for p in (ROOT / "docs" / folder).glob("*.md"))
    names = [str(page.relative_to(ROOT / "docs")) for page in pages]
    return [n for n in names if n not in ELSEWHERE and BLOCK.search(text_of(n))]


FEW_STEPS = shlex.split("--train.steps 8 --train.eval-every 8 --train.save-every 8")
SMALLER = {  # than debug; the whole of an evaluation is in test_evaluate.py and test_readme.py
    "train_tokenizer.py": FEW_STEPS,
    "train_dynamics.py": FEW_STEPS,
    "evaluate.py": shlex.split(
        "--goal-pairs 1 --oracle-pairs 1 --task-episodes 1 --search-episodes 1"
        " --task-max-steps 2 --planner.iterations 1"
    ),
}
FEW_SEARCHES = shlex.split("--task-planner.iterations 2 --task-planner.warm-start-iterations 1")
POLICIES = ["--policies", "random", "planner", "policy_prior"]  # of runs of Push-T


def at_debug(words: list[str]) -> list[str]:
    """The command at the size debug: `--preset keypoints cpu` -> `--preset keypoints debug`.
    play.py takes 5 steps of more."""
    if "play.py" in words and "--steps" in words:
        place = words.index("--steps") + 1
        words = [*words[:place], str(min(5, int(words[place]))), *words[place + 1 :]]
    if "--preset" not in words:
        return words
    start = words.index("--preset") + 1
    end = next((i for i in range(start, len(words)) if words[i].startswith("-")), len(words))
    recipes = [name for name in words[start:end] if name in presets.recipe_names()]
    return [*words[:start], *(w for name in recipes for w in (name, "debug")), *words[end:]]


def made_smaller(words: list[str]) -> list[str]:
    """The command with the flags of SMALLER, a Push-T run's evaluation of three policies, and a
    search for the task of two iterations."""
    policies = POLICIES if words[1] == "evaluate.py" and "runs/first" in words else []
    search = FEW_SEARCHES if "task" in words else []
    return [*words, *SMALLER.get(words[1], []), *policies, *search]


def run_command(words: list[str]) -> None:
    """Run a command of a page in this process, as its script would."""
    assert words[0] == "python", words
    if words[1] == "-m":
        module = importlib.import_module(words[2])
        if not hasattr(module, "Config"):
            module = importlib.import_module(f"{words[2]}.__main__")
        module.main(cli.parse(module.Config, None, words[3:]).config)
    elif words[1] == "preprocess.py":
        command = preprocess.COMMANDS[words[2]]
        parsed = cli.parse(
            command.config, command.stage, words[3:], "", command.default_presets, words[2]
        )
        cli._run(command.main, parsed, command.stage)
    else:
        module = importlib.import_module(words[1].removesuffix(".py"))
        stage = module.__name__.removeprefix("train_")
        cli._run(module.main, cli.parse(module.Config, stage, words[2:]), stage)


class Guides:
    """Pages that were run in one folder, each once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: set[str] = set()
        (folder / "checkpoints").symlink_to(ROOT / "checkpoints")

    def run(self, page: str) -> None:
        if page in self.done:
            return
        text = text_of(page)
        for before in re.findall(r"<!-- after: (\S+) -->", text):
            self.run(before)
        module = types.ModuleType("guide")  # dataclasses look for the module that they are in
        sys.modules["guide"] = module
        for language, title, block in BLOCK.findall(text):
            if language == "bash":
                for line in block.replace("\\\n", " ").splitlines():
                    if words := shlex.split(line, comments=True):
                        run_command(made_smaller(at_debug(words)))
            elif title:
                (self.folder / title).write_text(block)
            else:
                exec(compile(block, page, "exec"), vars(module))
        self.done.add(page)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Guides:
    return Guides(tmp_path_factory.mktemp("guides"))


@pytest.fixture
def run_in(shared: Guides, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guides]:
    monkeypatch.chdir(shared.folder)
    monkeypatch.setattr(evaluate, "available_cpus", lambda: 1)  # simulators without processes
    monkeypatch.setattr(buttons, "NUM_STARTS", 4)
    monkeypatch.setitem(genie.SIZES["debug"]["dynamics"], "model.latent_action_steps", 4)
    monkeypatch.setattr(probe, "_mlp", partial(probe._mlp, steps=20))
    monkeypatch.syspath_prepend(shared.folder)  # files that a page writes are imported
    yield shared


@pytest.mark.parametrize("page", guides())
def test_the_blocks_of_the_page_run(page: str, run_in: Guides):
    run_in.run(page)


def test_pages_with_tests_of_their_own_are_there():
    for page, test in ELSEWHERE.items():
        assert BLOCK.search(text_of(page)) and (ROOT / "tests" / test).exists(), page


def test_a_size_becomes_debug():
    words = shlex.split("python preprocess.py pusht --preset keypoints cpu30 --run runs/a")
    assert shlex.join(at_debug(words)).endswith("--preset keypoints debug --run runs/a")
    assert at_debug(["--preset", "dreamer", "loop"])[1:] == ["dreamer", "debug", "loop", "debug"]
    assert at_debug(["python", "play.py"]) == ["python", "play.py"]
    assert at_debug(["play.py", "--steps", "25", "--out", "a"])[2:] == ["5", "--out", "a"]
