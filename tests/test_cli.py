"""Command lines: presets in order, then flags, and mistakes in one line."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import preprocess
import train_dynamics
import train_tokenizer
from data.io.files import lock
from data.io.messages import command
from data.shards.build_info import NoShards
from pipeline import presets, startup
from pipeline.cli import Command, parse, run_cli, run_commands, split_presets


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


# -- values, folders and hints -------------------------------------------------------------------


def run_flags(monkeypatch: pytest.MonkeyPatch, *flags: str) -> Any:
    return run_with(monkeypatch, AssertionError("it ran"), *flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train.learning-rate", "nan"],
         "--train.learning-rate nan is not a number; it must be above 0 and at most 10"),
        (["--train.seed", "-1"],
         "--train.seed -1 is out of range; it must be between 0 and 4294967295"),
        (["--train.steps", "1e3"], "--train.steps 1e3 is not a whole number"),
        (["--train.beta2", "high"], "--train.beta2 high is not a number"),
        (["--model.transformer.dim", "1000000000"],
         "--model.transformer.dim 1000000000 is out of range; it must be between 1 and 16384"),
    ],
)  # fmt: skip
def test_a_refused_value_is_one_line_that_names_its_flag(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
):
    assert run_flags(monkeypatch, *flags) == 1
    assert capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.parametrize("flags", [["--run", "~/x"], ["--run=~/x"]])
def test_a_tilde_is_the_home_folder_in_every_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: list[str]
):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / presets.FILE).write_text('{"presets": ["pusht", "debug"]}')
    init = ["--train.init-from", "~/before", "--train.freeze", "~a"]
    parsed = parse(train_dynamics.Config, "dynamics", [*flags, *init])
    assert parsed.config.run == tmp_path / "x" and parsed.presets == ["pusht", "debug"]
    assert parsed.config.train.init_from == str(tmp_path / "before")
    assert parsed.config.train.freeze == ("~a",)


def test_a_name_that_is_not_utf8_is_refused():
    folder = os.fsdecode(b"caf\xe9")
    with pytest.raises(ValueError, match="^--run .* is not UTF-8"):
        parse(train_dynamics.Config, "dynamics", ["--run", folder])
    with pytest.raises(ValueError, match="^--train.init-from .* is not UTF-8"):
        parse(train_dynamics.Config, "dynamics", ["--train.init-from", folder])
    assert parse(train_dynamics.Config, "dynamics", ["--run", "café"]).config.run == Path("café")


def test_a_command_has_other_names_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    ran: list[Config] = []
    commands = {"vpt": Command(ran.append, Config, "small", aliases=("minecraft",))}
    monkeypatch.setattr(sys, "argv", ["preprocess.py", "minecraft", "--name", "x"])
    run_commands(commands, "")
    assert [config.name for config in ran] == ["x"]
    assert "minecraft" in preprocess.COMMANDS["vpt"].aliases
    monkeypatch.setattr(sys, "argv", ["preprocess.py", "minecarft"])
    with pytest.raises(SystemExit):
        run_commands(commands, "")
    assert "did you mean minecraft?" in capsys.readouterr().err


def test_help_of_a_subcommand_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["preprocess.py", "minecraft", "--help"])
    with pytest.raises(SystemExit):
        run_commands(preprocess.COMMANDS, "")
    assert " vpt [-h]" in capsys.readouterr().out


def test_help_keeps_the_lines_of_a_docstring(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        parse(
            Config, "count", ["--help"], "Count.\n\nReads   this.\nWrites  that.\n        more.\n"
        )
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert "  Reads   this." in lines and "  Writes  that." in lines and "          more." in lines


def refuse(
    monkeypatch: pytest.MonkeyPatch, run: Path, problem: Exception, *flags: str, make: str = ""
) -> None:
    """Run a script that makes a folder or a file in `run`, and then raises `problem`."""

    def main(config: train_dynamics.Config) -> None:
        folder = config.run / "shards"
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder):
            if make:
                (folder / make).write_text("content")
            raise problem

    monkeypatch.setattr(sys, "argv", ["train_dynamics.py", "--run", str(run), *flags])
    with pytest.raises(SystemExit):
        run_cli(main, train_dynamics.Config, "dynamics")


def test_a_mistyped_command_leaves_no_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    refuse(monkeypatch, tmp_path / "a" / "b", ValueError("no such input"))
    assert not list(tmp_path.iterdir())


def test_a_mistyped_command_keeps_what_was_there_and_what_holds_something(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "old" / "empty").mkdir(parents=True)
    refuse(monkeypatch, tmp_path / "old", ValueError("no such input"))
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["empty"]
    refuse(monkeypatch, tmp_path / "new", ValueError("half-way"), make="shard")
    assert (tmp_path / "new" / "shards" / "shard").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "preprocess.py SOURCE --run {}"),
        (["--preset", "keypoints", "debug"],
         "preprocess.py pusht --run {} --preset keypoints debug"),
        (["--preset", "minecraft"],
         "preprocess.py vpt --recordings PATH --run {} --preset minecraft"),
    ],
)  # fmt: skip
def test_a_run_without_shards_is_told_the_command_of_its_own_presets(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    flags: list[str],
    words: str,
):
    run = tmp_path / "my runs"
    refuse(monkeypatch, run, NoShards(run / "shards", "other"), *flags)
    made = f"make them with: python {words.format(repr(str(run)))}\n"
    assert capsys.readouterr().err.endswith(made)


def test_a_run_of_arrays_without_shards_is_told_of_arrays(tmp_path: Path):
    (tmp_path / presets.FILE).write_text('{"presets": []}')
    told = presets.first_command(tmp_path, [])
    assert told == f"python preprocess.py arrays PATH --run {tmp_path}"


def test_a_full_disk_names_the_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    refuse(monkeypatch, tmp_path, OSError(28, "No space left on device"))
    assert f"No space left on device, in {tmp_path} or" in capsys.readouterr().err
    refuse(monkeypatch, tmp_path, OSError(28, "No space left on device", "a.pt"))
    assert "No space left on device: 'a.pt'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "problem",
    [
        MemoryError(),
        MemoryError("Unable to allocate 8.0 TiB for an array with shape (1,)"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total ..."),
    ],
)
def test_too_little_memory_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], problem: Exception
):
    assert run_with(monkeypatch, problem) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: there is not enough memory") and told.count("\n") == 1
    for amount in ("8.0 TiB", "9 bytes", "20.00 GiB"):
        assert (amount in str(problem)) == (amount in told)


def test_another_runtime_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(RuntimeError, match="shapes"):
        run_with(monkeypatch, RuntimeError("shapes do not match"))


def test_output_that_nobody_reads_ends_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert run_with(monkeypatch, BrokenPipeError(32, "Broken pipe")) == 1  # of a worker
    assert capsys.readouterr().err.startswith("error: Broken pipe")
    monkeypatch.setattr(startup, "output_is_closed", lambda: True)
    monkeypatch.setattr(startup, "_discard_output", lambda: None)
    assert run_with(monkeypatch, BrokenPipeError(32, "Broken pipe")) == 141
    assert capsys.readouterr().err == ""


def test_a_command_to_copy_is_quoted():
    told = command("train_dynamics.py", "--run", Path("my runs/a"))
    assert told == "python train_dynamics.py --run 'my runs/a'"


def test_presets_change_the_flags_of_a_command_that_needs_a_path():
    from pipeline.recording.images_config import ImagesConfig

    parsed = parse(ImagesConfig, "preprocess_images", ["photos", "--preset", "iwm", "base", "cpu"])
    assert (parsed.config.resolution, parsed.config.crops) == (224, 64)
    assert parsed.config.paths == (Path("photos"),) and parsed.presets == ["iwm", "base", "cpu"]
    words = ["photos", "--preset", "iwm", "cpu", "--crops", "3"]
    assert parse(ImagesConfig, "preprocess_images", words).config.crops == 3
