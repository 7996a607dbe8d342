"""A run folder remembers the presets that it was begun with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from in_process import ROOT, call_script

import evaluate
import preprocess
import train_controller
import train_dynamics
import train_tokenizer
from data.toy import write_toy_shards
from pipeline import presets
from pipeline.cli import parse, run_cli

CONFIGS: dict[str, type] = {
    "tokenizer": train_tokenizer.Config,
    "dynamics": train_dynamics.Config,
    "controller": train_controller.Config,
    "evaluate": evaluate.Config,
}
PREPROCESS = ("preprocess.py", "pusht", "--num-workers", "1", "--resolution", "16")


def written(run: Path) -> list[str]:
    return json.loads((run / "run.json").read_text())["presets"]


def configured(stage: str, run: Path, *names: str) -> Any:
    """The config of a stage with these presets, and this run folder."""
    config = presets.apply(CONFIGS[stage](), stage, names)
    return presets.changed(config, {"run": str(run)}, "test")


def as_text(config: Any) -> str:
    """The settings of a config; its class has other fields where a method is narrowed."""
    return repr(config)


def stage_main(config: train_tokenizer.Config) -> None:
    """Begin a run as a stage does: its folder is made, and something is in it."""
    (config.run / "tokenizer").mkdir(parents=True, exist_ok=True)


def run_stage(monkeypatch: pytest.MonkeyPatch, main: Any, *flags: str) -> None:
    monkeypatch.setattr(sys, "argv", ["train_tokenizer.py", *flags])
    run_cli(main, train_tokenizer.Config, "tokenizer")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that the first stage began with --preset keypoints debug."""
    run = tmp_path_factory.mktemp("runs") / "begun"
    result = call_script(*PREPROCESS, "--preset", "keypoints", "debug", "--run", str(run))
    assert result.returncode == 0, result.stderr
    return run


def test_the_first_stage_writes_the_presets(begun: Path):
    assert (begun / "shards" / "shard-00000.h5").exists()
    assert json.loads((begun / "run.json").read_text()) == {
        "format": 1,
        "presets": ["keypoints", "debug"],
    }


@pytest.mark.parametrize("stage", CONFIGS)
def test_later_stages_need_only_the_run(
    begun: Path, stage: str, capsys: pytest.CaptureFixture[str]
):
    parsed = parse(CONFIGS[stage], stage, ["--run", str(begun)])
    assert parsed.presets == ["keypoints", "debug"] and not parsed.given
    assert as_text(parsed.config) == as_text(configured(stage, begun, "keypoints", "debug"))
    assert as_text(parsed.config) != as_text(configured(stage, begun))  # the defaults
    assert capsys.readouterr().out == "presets: keypoints debug\n"
    assert parse(CONFIGS[stage], stage, [f"--run={begun}"]).presets == ["keypoints", "debug"]


def test_a_later_stage_explains_the_flags_of_the_run(begun: Path):
    result = call_script("train_tokenizer.py", "--run", str(begun), "--help")
    assert result.returncode == 0, result.stderr
    assert "presets: keypoints debug" in result.stdout
    assert "--model.num-keypoints" in result.stdout and "codebook" not in result.stdout


def test_flags_win_over_remembered_presets(begun: Path):
    config = parse(
        train_tokenizer.Config, "tokenizer", ["--run", str(begun), "--train.steps", "7"]
    ).config
    assert config.train.steps == 7 and config.train.batch_size == 16


def test_a_preset_given_again_wins_and_is_printed(begun: Path, capsys: pytest.CaptureFixture[str]):
    flags = ["--run", str(begun), "--preset", "pusht", "cpu"]
    parsed = parse(train_tokenizer.Config, "tokenizer", flags)
    assert parsed.presets == ["pusht", "cpu"] and parsed.given
    assert as_text(parsed.config) == as_text(configured("tokenizer", begun, "pusht", "cpu"))
    line = capsys.readouterr().out
    assert line == f"presets: pusht cpu ({begun} was begun with keypoints debug)\n"
    assert written(begun) == ["keypoints", "debug"]


def test_the_same_preset_given_again_prints_nothing(
    begun: Path, capsys: pytest.CaptureFixture[str]
):
    flags = ["--run", str(begun), "--preset", "keypoints", "debug"]
    parse(train_tokenizer.Config, "tokenizer", flags)
    assert not capsys.readouterr().out


def test_a_later_stage_keeps_what_the_run_was_begun_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    run = tmp_path / "run"
    run_stage(monkeypatch, stage_main, "--run", str(run), "--preset", "keypoints", "debug")
    assert written(run) == ["keypoints", "debug"]
    run_stage(monkeypatch, stage_main, "--run", str(run), "--preset", "pusht")
    run_stage(monkeypatch, stage_main, "--run", str(run))
    run_stage(monkeypatch, stage_main, "--run", str(run), "--restart")
    assert written(run) == ["keypoints", "debug"]


def test_a_stage_that_starts_over_with_other_presets_changes_the_run_s(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    run = tmp_path / "run"
    run_stage(monkeypatch, stage_main, "--run", str(run), "--preset", "pusht", "debug")
    other = ("--preset", "keypoints", "debug", "--restart")
    run_stage(monkeypatch, stage_main, "--run", str(run), *other)
    assert written(run) == ["keypoints", "debug"]


def test_restart_of_the_first_stage_rewrites_the_presets(tmp_path: Path):
    run = str(tmp_path / "run")
    flags = ("--run", run, "--episodes", "2")
    for presets_given, restart, expected in (
        (("--preset", "keypoints", "debug"), (), ["keypoints", "debug"]),
        (("--preset", "pusht", "cpu"), (), ["keypoints", "debug"]),
        (("--preset", "pusht", "cpu"), ("--restart",), ["pusht", "cpu"]),
        ((), ("--restart",), ["pusht", "cpu"]),
    ):
        result = call_script(*PREPROCESS, *flags, *presets_given, *restart)
        assert result.returncode == 0, result.stderr
        assert written(tmp_path / "run") == expected


def test_a_size_without_a_recipe_is_that_of_pusht(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    run = tmp_path / "run"
    run_stage(monkeypatch, stage_main, "--run", str(run), "--preset", "debug")
    assert written(run) == ["pusht", "debug"]


def test_an_interruption_is_remembered_but_a_mistake_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def stopped_by(problem: BaseException) -> Any:
        def main(config: train_tokenizer.Config) -> None:
            stage_main(config)
            raise problem

        return main

    flags = ["--run", str(tmp_path / "run"), "--preset", "keypoints"]
    with pytest.raises(SystemExit):
        run_stage(monkeypatch, stopped_by(ValueError("another tokenizer is there")), *flags)
    assert not (tmp_path / "run" / "run.json").exists()
    with pytest.raises(SystemExit):
        run_stage(monkeypatch, stopped_by(KeyboardInterrupt()), *flags)
    assert written(tmp_path / "run") == ["keypoints"]


def test_a_mistyped_run_leaves_no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with pytest.raises(SystemExit):
        run_stage(monkeypatch, train_tokenizer.main, "--run", f"{tmp_path}/nowhere")
    assert not list(tmp_path.iterdir())


def test_a_run_that_was_begun_without_presets_keeps_the_first_that_are_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    presets.remember(tmp_path, [])
    assert presets.remembered(tmp_path) == []
    run_stage(monkeypatch, stage_main, "--run", str(tmp_path), "--preset", "lewm")
    assert written(tmp_path) == ["lewm"] and "begun with" not in capsys.readouterr().out


def test_arrays_keep_their_presets_at_a_restart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Their config has a path without a default, so presets reach it only through run.json."""
    monkeypatch.chdir(tmp_path)
    parsed = parse(preprocess.ArraysConfig, "preprocess_arrays", ["somewhere"])
    assert parsed.presets == [] and parsed.config.run == Path("runs/arrays")
    presets.remember(Path("runs/arrays"), ["keypoints"])
    parsed = parse(preprocess.ArraysConfig, "preprocess_arrays", ["somewhere", "--restart"])
    assert parsed.presets == ["keypoints"] and parsed.config.run == Path("runs/arrays")


def test_only_the_main_process_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    presets.remember(tmp_path, ["pusht"])
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("RANK", "0")
    presets.remember(tmp_path, ["pusht"])
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_rank_that_was_left_in_the_environment_means_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    presets.remember(tmp_path, ["pusht"])
    assert (tmp_path / "run.json").exists()


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "null", "3", '{"format": 1}', '{"presets": null}', '{"presets": "pusht"}',
        '{"presets": [1]}', '{"presets": ["pushed"]}', '{"presets": ["pusht", "150m"]}', "\0\xff",
    ],
)  # fmt: skip
def test_a_damaged_run_json_is_reported_in_one_line(tmp_path: Path, content: str):
    (tmp_path / "run.json").write_bytes(content.encode("latin-1"))
    for given in ([], ["--preset", "pusht"]):
        with pytest.raises(ValueError) as problem:
            parse(train_tokenizer.Config, "tokenizer", ["--run", str(tmp_path), *given])
        message = str(problem.value)
        assert message.startswith(f"{tmp_path}/run.json") and "\n" not in message
        assert message.endswith("delete it, and give --preset once more")


def test_a_script_reports_a_damaged_run_json(tmp_path: Path):
    write_toy_shards(tmp_path / "shards")
    (tmp_path / "run.json").write_text('{"presets": ')
    result = subprocess.run(
        [sys.executable, "train_tokenizer.py", "--run", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {tmp_path}/run.json cannot be read (JSONDecodeError")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "near"), [("keypoint", "keypoints"), ("cpu3", "cpu30"), ("minecraf", "minecraft")]
)
def test_an_unknown_preset_is_refused_with_a_suggestion(name: str, near: str):
    with pytest.raises(ValueError, match=f"unknown preset '{name}'; did you mean {near}\\?"):
        presets.check([name])
    with pytest.raises(ValueError, match="recipes are .*pusht.*, and their sizes .*debug"):
        presets.apply(train_tokenizer.Config(), "tokenizer", ["pusht", name])


@pytest.mark.parametrize("recipe", ["pusht", "keypoints", "lewm", "dinov2", "minecraft"])
def test_a_recipe_that_would_undo_the_one_before_is_refused(recipe: str):
    for names in (["autoregressive", recipe], ["pusht", "autoregressive", recipe]):
        message = f"{recipe} replaces what autoregressive changes; give autoregressive after"
        with pytest.raises(ValueError, match=message):
            presets.check(names)


@pytest.mark.parametrize(
    ("names", "better"),
    [
        ("genie cpu maskgit", "genie cpu maskgit cpu"),
        ("genie cpu maskgit autoregressive", "genie cpu maskgit cpu autoregressive"),
        ("cpu keypoints", "pusht cpu keypoints cpu"),
        ("debug genie maskgit", "pusht debug genie debug maskgit debug"),
    ],
)
def test_a_size_that_a_later_recipe_would_undo_is_refused_where_it_is_given(
    names: str, better: str
):
    with pytest.raises(ValueError, match=f"give --preset {better}$"):
        parse(train_tokenizer.Config, "tokenizer", ["--preset", *names.split()])
    assert presets.check_given(better.split()) == better.split()
    assert presets.check(names.split())  # a run that was begun so goes on


@pytest.mark.parametrize(
    "names",
    [
        "genie maskgit cpu",
        "genie cpu maskgit cpu",
        "genie cpu maskgit debug",  # another size is a choice
        "dreamer cpu sharp atari",  # atari has no such sizes
        "genie maskgit",
    ],
)
def test_a_size_after_its_recipe_is_taken(names: str):
    assert presets.check_given(names.split()) == names.split()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["minecraft", "cpu"], "minecraft has no size 'cpu'; it has 150m, high_res, debug"),
        (["150m"], "pusht has no size '150m'; it has cpu, cpu30, debug, high_res"),
        (["autoregressive", "cpu"], "autoregressive has no size 'cpu'; it has none"),
        (["pusht", "keypoints", "150m"], "none of pusht, keypoints has a size '150m'"),
        (["cpu", "minecraft", "150m", "cpu30"], ""),  # pusht stands before them, and has it
    ],
)
def test_a_size_that_the_recipe_lacks_is_refused(names: list[str], message: str):
    if not message:
        assert presets.check(names) == ["pusht", *names]
        return
    with pytest.raises(ValueError) as problem:
        presets.check(names)
    assert str(problem.value) == message
