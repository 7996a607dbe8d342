"""A folder of runs, listed: how far each is, what runs, what is broken, what continues it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from data.io.files import lock
from data.io.lock_holder import lock_holder
from pipeline.run_state import StageState, current, stage_states
from pipeline.runs import Config, main


def write_checkpoint(folder: Path, parent: str = "", step: int = 40, **facts: Any) -> None:
    """Write best.pt and last.pt, as far as a listing reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    stage = "controller" if folder.parent.name == "controller" else folder.name
    content: dict[str, Any] = {
        "format": 4, "stage": stage, "fingerprint": f"{folder.name}-1", "step": step, "best": 2.5,
        "train": {"steps": 40, "patience": 0}, "config": {"kind": "llama"},
        "parent": {"fingerprint": parent}, "model": {"w": torch.zeros(3)},
    }  # fmt: skip
    for name in ("best.pt", "last.pt"):
        torch.save(content | facts, folder / name)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A whole run, all of whose stages are finished."""
    run = tmp_path / "runs" / "a"
    (run / "shards").mkdir(parents=True)
    (run / "shards" / "shard-00000.h5").touch()
    write_checkpoint(run / "tokenizer")
    write_checkpoint(run / "dynamics", "tokenizer-1")
    write_checkpoint(run / "controller" / "bc", "dynamics-1")
    (run / "report").mkdir()
    (run / "report" / "metrics.json").write_text("{}")
    return run


def now(run: Path) -> StageState:
    return current(stage_states(run))


def test_of_a_finished_run_all_stages_are_and_it_can_be_played(run: Path):
    states = stage_states(run)
    assert [s.stage for s in states] == [
        "shards", "tokenizer", "dynamics", "controller/bc", "report"
    ]  # fmt: skip
    assert {s.progress for s in states} == {"finished"}
    assert now(run).next_command == f"python play.py --run {run}"


@pytest.mark.parametrize(
    ("folder", "command"),
    [("tokenizer", "train_tokenizer.py"), ("dynamics", "train_dynamics.py"),
     ("controller/bc", "train_controller.py")],
)  # fmt: skip
def test_a_stage_that_was_stopped_is_resumed_by_its_command(run: Path, folder: str, command: str):
    parents = {"dynamics": "tokenizer-1", "bc": "dynamics-1"}
    write_checkpoint(run / folder, parents.get(Path(folder).name, ""), step=7)
    state = now(run)
    assert (state.stage, state.progress, state.step, state.steps) == (folder, "stopped", 7, 40)
    methods = " --methods bc" if "bc" in folder else ""
    assert state.next_command == f"python {command} --run {run}{methods}"


def test_a_training_that_stopped_early_is_finished(run: Path):
    train = {"steps": 40, "patience": 3}
    write_checkpoint(run / "tokenizer", step=7, train=train, bad_validations=3)
    assert now(run).stage == "report" and now(run).progress == "finished"


def test_the_next_stage_is_named(run: Path):
    for path in (run / "dynamics").iterdir():
        path.unlink()
    state = now(run)
    assert state.next_command == f"python train_dynamics.py --run {run}"
    assert (state.stage, state.progress) == ("dynamics", "missing")


def test_a_damaged_checkpoint_and_one_of_another_parent_are_broken(run: Path):
    write_checkpoint(run / "dynamics", "tokenizer-0")
    state = now(run)
    assert state.progress == "broken" and "another tokenizer" in state.reason
    assert state.next_command.endswith("--restart")
    (run / "tokenizer" / "last.pt").write_bytes(b"PK" + bytes(40))
    state = now(run)
    assert (state.stage, state.progress) == ("tokenizer", "broken")
    assert state.reason.startswith("last.pt: it cannot be read")


def test_a_tokenizer_that_went_on_as_the_data_grew_breaks_nothing(run: Path):
    write_checkpoint(run / "tokenizer", fingerprint="tokenizer-2", lineage=["tokenizer-1"])
    assert now(run).progress == "finished"


def test_what_runs_is_told_with_its_process_and_left_alone(run: Path, capsys: Any):
    assert lock_holder(run / "dynamics") == ""
    with lock(run / "dynamics"):
        state = now(run)
        assert (state.stage, state.progress) == ("dynamics", "running")
        assert state.reason.startswith("process ") and not state.next_command
    assert now(run).progress == "finished"
    lock(run / "dynamics").close()  # a listing keeps nobody from beginning


def test_a_world_without_tokenizer_or_shards_lacks_none(run: Path):
    for folder in ("tokenizer", "shards"):
        for path in (run / folder).iterdir():
            path.unlink()
        (run / folder).rmdir()
    write_checkpoint(run / "dynamics")
    assert {s.progress for s in stage_states(run)} == {"finished"}


def test_a_recipe_that_is_trained_jointly_goes_from_shards_to_dynamics(run: Path):
    (run / "run.json").write_text(json.dumps({"format": 1, "presets": ["dreamer"]}))
    for path in [*(run / "tokenizer").iterdir(), *(run / "dynamics").iterdir()]:
        path.unlink()
    assert now(run).stage == "dynamics"


def test_runs_are_listed_with_one_command_each(run: Path, capsys: Any):
    other = run.parent / "group" / "b"
    (other / "shards").mkdir(parents=True)
    (run.parent / "not-a-run").mkdir()
    main(Config(run.parent))
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 6 and out[1].startswith(str(run)) and out[3].startswith(str(other))
    assert out[4] == f"    python preprocess.py SOURCE --run {other}"
    assert out[5] == f"runs: 2 in {run.parent}: 1 finished, 1 missing"
    main(Config(run, stages=True))
    assert "psnr 2.5" in capsys.readouterr().out


def test_a_damaged_run_json_does_not_hide_the_other_runs(run: Path, capsys: Any):
    broken = run.parent / "b"
    broken.mkdir()
    (broken / "run.json").write_text("{")
    main(Config(run.parent))
    assert "2 in" in capsys.readouterr().out.splitlines()[-1]
    assert now(broken).progress == "broken"


@pytest.mark.parametrize("made", [False, True])
def test_a_folder_without_runs_is_told_in_one_line(tmp_path: Path, made: bool):
    folder = tmp_path / "runs"
    if made:
        folder.mkdir()
    with pytest.raises(ValueError, match="holds no run; python preprocess" if made else "not ther"):
        main(Config(folder))


@pytest.mark.parametrize("kind", ["iwm", "vqvae"])
def test_a_run_of_still_images_goes_on_with_what_can_be_measured_of_its_tokenizer(
    run: Path, kind: str
):
    for stage in ("dynamics", "controller", "report"):
        shutil.rmtree(run / stage)
    build = {"description": {"source": "images"}, "shards": 1, "command": "x", "seconds": 1.0}
    (run / "shards" / "build.json").write_text(json.dumps(build))
    write_checkpoint(run / "tokenizer", config={"kind": kind})
    assert not any("train_dynamics" in state.next_command for state in stage_states(run))
    if kind == "vqvae":
        assert now(run).progress == "finished" and not now(run).next_command
        return
    assert now(run).next_command == f"python -m evaluation.latents --run {run}"
    (run / "report").mkdir()
    (run / "report" / "latents.json").write_text("{}")
    assert now(run).progress == "finished"
    assert now(run).next_command == f"python serve.py --run {run}"
    build["description"] = {"source": "videos"}
    (run / "shards" / "build.json").write_text(json.dumps(build))
    assert now(run).next_command == f"python train_dynamics.py --run {run}"
