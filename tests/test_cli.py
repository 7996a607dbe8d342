import sys
from dataclasses import dataclass, replace

import pytest

from pipeline.cli import parse, run_cli


@dataclass(frozen=True)
class Config:
    steps: int = 1
    """Steps to take."""
    name: str = "plain"


PRESETS = {
    "many": lambda c: replace(c, steps=c.steps + 10, name="many"),
    "double": lambda c: replace(c, steps=c.steps * 2),
}


def test_presets_stack_in_order_and_flags_win():
    assert parse(Config, PRESETS, []) == Config()
    assert parse(Config, PRESETS, ["--preset", "many", "double"]).steps == 22
    assert parse(Config, PRESETS, ["--preset", "double", "many"]).steps == 12
    assert parse(Config, PRESETS, ["--steps", "5", "--preset", "many"]) == Config(5, "many")
    assert parse(Config, PRESETS, ["--preset=many", "--name", "x"]) == Config(11, "x")


def test_an_unknown_preset_gets_a_suggestion():
    with pytest.raises(ValueError, match="unknown preset 'duoble'; did you mean double"):
        parse(Config, PRESETS, ["--preset", "duoble"])


def test_an_unknown_flag_gets_a_suggestion(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(Config, PRESETS, ["--stepz", "3"])
    assert stop.value.code == 2
    assert "--steps" in "".join(capsys.readouterr())


def test_help_explains_fields_and_presets(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(Config, PRESETS, ["--help"], "Stage 0: count.")
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert "Stage 0: count." in said and "Steps to take." in said and "many, double" in said


@dataclass(frozen=True)
class Restarting:
    restart: bool = False


@pytest.mark.parametrize(
    "flags, said", [([], "command again to go on"), (["--restart"], "command without --restart")]
)
def test_what_was_stopped_says_how_it_goes_on(monkeypatch, capsys, flags, said):
    def stopped(config: Restarting) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["train.py", *flags])
    with pytest.raises(SystemExit) as stop:
        run_cli(stopped, Restarting, {})
    assert stop.value.code == 130 and said in capsys.readouterr().err
