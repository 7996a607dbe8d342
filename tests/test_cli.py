"""Command lines: presets in order, then flags, and mistakes in one line."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import train_dynamics
import train_tokenizer
from pipeline import presets
from pipeline.cli import parse, run_cli, split_presets


@dataclass(frozen=True)
class Inner:
    steps: int = 1
    """Steps to take."""
    rate: float = 0.5


@dataclass(frozen=True)
class Config:
    run: Path = Path("runs/count")
    name: str = "plain"
    train: Inner = field(default_factory=Inner)


@pytest.fixture(autouse=True)
def small_recipes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two recipes of a stage `count`, next to those in recipes/, and no run folder."""
    monkeypatch.chdir(tmp_path)
    small = {
        "many": {"COUNT": {"name": "many", "train.steps": 10}},
        "double": {
            "COUNT": {"train.steps": 20, "train.rate": 0.25},
            "SIZES": {"tiny": {"count": {"train.steps": 2}}},
        },
    }
    for name, tables in small.items():
        module: Any = ModuleType(f"recipes.{name}")
        module.__dict__.update(tables)
        monkeypatch.setitem(sys.modules, f"recipes.{name}", module)
    names = [*presets.recipe_names(), *small]
    monkeypatch.setattr(presets, "recipe_names", lambda: names)


def test_presets_stack_in_order_and_flags_win():
    def values(*arguments: str) -> tuple[str, int, float]:
        config = parse(Config, "count", arguments).config
        return config.name, config.train.steps, config.train.rate

    assert parse(Config, "count", []).config == Config()
    assert values("--preset", "many") == ("many", 10, 0.5)
    assert values("--preset", "many", "double") == ("many", 20, 0.25)
    assert values("--preset", "double", "many") == ("many", 10, 0.25)
    assert values("--preset", "double", "tiny", "many") == ("many", 10, 0.25)
    assert values("--preset", "double", "many", "tiny") == ("many", 2, 0.25)
    assert values("--train.steps", "5", "--preset", "many") == ("many", 5, 0.5)
    assert values("--preset=double,tiny", "--name", "x") == ("x", 2, 0.25)


def test_presets_end_at_the_next_flag():
    assert split_presets(["check", "--preset", "a", "b", "--run", "c", "--preset=d"]) == (
        ["a", "b", "d"],
        ["check", "--run", "c"],
    )


def test_an_unknown_preset_gets_a_suggestion():
    with pytest.raises(ValueError, match="unknown preset 'duoble'; did you mean double"):
        parse(Config, "count", ["--preset", "duoble"])


def test_an_unknown_flag_gets_a_suggestion(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        parse(Config, "count", ["--train.stepz", "3"])
    assert stop.value.code == 2
    assert "--train.steps" in "".join(capsys.readouterr())


def test_help_explains_fields_and_presets(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        parse(Config, "count", ["--help"], "Stage 0: count.")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "Stage 0: count." in text and "Steps to take." in text
    assert "many, double" in text and "tiny" in text


def test_the_flags_of_a_method_are_those_of_the_one_that_the_presets_chose(
    capsys: pytest.CaptureFixture[str],
):
    flags = ["--model.num-keypoints", "7"]
    config = parse(train_tokenizer.Config, "tokenizer", ["--preset", "keypoints", *flags]).config
    assert config.model == presets.changed(
        presets.apply(train_tokenizer.Config(), "tokenizer", ["keypoints"]).model,
        {"num_keypoints": 7},
        "test",
    )
    with pytest.raises(SystemExit):
        parse(train_tokenizer.Config, "tokenizer", flags)
    assert "num-keypoints" in "".join(capsys.readouterr())


def test_a_script_without_presets_refuses_them(capsys: pytest.CaptureFixture[str]):
    assert parse(Config, None, ["--train.steps", "3"]).config.train.steps == 3
    with pytest.raises(SystemExit):
        parse(Config, None, ["--preset", "many"])
    assert "--preset" in "".join(capsys.readouterr())


def run_with(monkeypatch: pytest.MonkeyPatch, problem: BaseException, *flags: str) -> Any:
    """Run a script whose main raises `problem`; return its exit code."""

    def main(config: train_dynamics.Config) -> None:
        raise problem

    monkeypatch.setattr(sys, "argv", ["train.py", *flags])
    with pytest.raises(SystemExit) as stop:
        run_cli(main, train_dynamics.Config, "dynamics")
    return stop.value.code


@pytest.mark.parametrize(
    ("flags", "message"),
    [([], "command again to resume"), (["--restart"], "command without --restart to resume")],
)
def test_an_interruption_reports_how_to_resume(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
):
    assert run_with(monkeypatch, KeyboardInterrupt(), *flags) == 130
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("problem", [ValueError("too small"), FileNotFoundError("not there")])
def test_a_mistake_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], problem: Exception
):
    assert run_with(monkeypatch, problem) == 1
    assert capsys.readouterr().err == f"error: {problem}\n"


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(AssertionError, match="ours"):
        run_with(monkeypatch, AssertionError("ours"))
    monkeypatch.setenv("DREAMSTAGE_TRACEBACK", "1")
    with pytest.raises(ValueError, match="on demand"):
        run_with(monkeypatch, ValueError("on demand"))
