"""Curves of cost: shards that grow, processes of their own, tables of what was measured."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_job import fill
from untrained_run import write_run

from bench import growth
from bench.areas.play_speed import DEFAULT_RUN
from bench.areas.train_speed import Workload, llama_config
from bench.curves import data_growth, model_growth
from bench.curves.growth_table import Measured, as_markdown, draw
from bench.curves.own_process import _timed, alone, run_stage
from data.shards.build_shards import build
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from models.planning.planner import PlannerConfig
from pipeline import presets

ROWS = [
    Measured("times", "opening, s", 1, 0.5),
    Measured("times", "opening, s", 4, 2.0),
    Measured("times", "memory, MiB", 4, 1234.5),
]


def test_copies_are_the_same_episodes_of_other_sources(tmp_path: Path):
    shards = write_toy_shards(tmp_path / "one", episodes=12)
    build(data_growth.Copies(shards, 3), tmp_path / "three", "again")
    once, thrice = EpisodeDataset(shards), EpisodeDataset(tmp_path / "three")
    assert len(thrice) == 3 * len(once) and thrice.num_frames == 3 * once.num_frames
    assert len(set(thrice.sources.tolist())) == 3 * len(set(once.sources.tolist()))
    for field in ("frames", "actions", "rewards", "states"):
        assert np.array_equal(thrice.read(len(once) + 5, field), once.read(5, field))
    assert {*thrice.splits} == {0, 1, 2}


def test_a_job_has_memory_of_its_own():
    _, size, small = alone(fill, 1)
    taken, _, large = alone(fill, 300)
    assert size == 2**20 and large > small + 250 and taken > 0


def test_a_stage_that_fails_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"train_tokenizer.py --run .* ended with [12]; its mess"):
        run_stage("train_tokenizer", tmp_path / "empty")


def test_shards_of_an_earlier_measurement_are_not_measured_again(tmp_path: Path):
    (tmp_path / "x1").mkdir()
    with pytest.raises(ValueError, match="of an earlier measurement, .* give another --out"):
        next(data_growth.measure(tmp_path, 3, (1,), 1))


@pytest.mark.parametrize("times", [(0,), (1, -4)])
def test_shards_that_hold_recordings_no_times_are_refused_before_they_are_made(times):
    with pytest.raises(ValueError, match=r"--times (0|-4) is out of range"):
        growth.Config(times=times)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(ValueError, match="file is a file, not a folder; .* another --out"):
        growth.main(growth.Config(out=file))
    assert file.read_text() == "kept"


def test_predictors_are_trained_beside_a_run_without_cached_latents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run, out, trained = tmp_path / "run", tmp_path / "out", []
    with pytest.raises(ValueError, match=r"run/shards is not there; preprocess.py"):
        next(model_growth.validation(run, out, 1))
    (run / "tokenizer").mkdir(parents=True)
    (run / "tokenizer/best.pt").touch()
    (run / "shards").mkdir()
    out.mkdir()

    def stage(name: str, own: Path, *given: str) -> None:
        trained.append(sorted(path.name for path in own.iterdir()))
        raise ValueError("interrupted")

    monkeypatch.setattr(model_growth, "run_stage", stage)
    with pytest.raises(ValueError, match="interrupted"):
        next(model_growth.validation(run, out, 1))
    assert trained == [["shards", "tokenizer"]]
    with pytest.raises(ValueError, match="predictor-64 is of an earlier measurement"):
        next(model_growth.validation(run, out, 1))
    assert sorted(path.name for path in run.iterdir()) == ["shards", "tokenizer"]


@pytest.mark.slow
def test_a_trained_predictor_is_a_point_of_the_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = tmp_path / "run"
    write_run(
        run, EpisodeDataset(write_toy_shards(run / "shards", episodes=12)), method="keypoints"
    )
    presets.remember(run, ["keypoints", "debug"])
    monkeypatch.setattr(model_growth, "PREDICTORS", ((32, 1),))
    found = {row.what: row for row in model_growth.validation(run, tmp_path, 2)}
    assert found.keys() == {
        *(f"{name} after 2 steps, dB" for name in ("psnr", "psnr_1", "psnr_16", "delta_psnr_4")),
        "2 steps, s",
    }
    logged = (tmp_path / "predictor-32/dynamics/log.jsonl").read_text().splitlines()
    assert found["psnr_16 after 2 steps, dB"].value == json.loads(logged[-1])["validation/psnr_16"]
    assert len({row.size for row in found.values()}) == 1 and found["2 steps, s"].size > 0


def test_figures_of_shards_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def here(job: Callable[..., Any], *given: Any) -> tuple[float, Any, float]:
        """Each job begins with seconds of imports where it has a process."""
        return _timed(pickle.loads(pickle.dumps(job)), *given)

    monkeypatch.setattr(data_growth, "alone", here)
    shards = write_toy_shards(tmp_path / "shards", episodes=12)
    found = {row.what: row.value for row in data_growth.shard_costs(shards, 4)}
    assert len(found) == 6 and all(value > 0 for value in found.values())


def test_training_steps_of_a_model_are_timed():
    work = Workload(llama_config(32, 1, 2, 64, 2), 64, (2, 2))
    millions, rate = model_growth.train(work)
    assert 0 < millions < 0.1 and rate > 0


def test_a_plan_is_timed_at_each_size(monkeypatch: pytest.MonkeyPatch):
    small = PlannerConfig(num_samples=8, iterations=2, num_elites=4, horizon=2)
    monkeypatch.setattr(model_growth, "PLAN", small)
    monkeypatch.setattr(model_growth, "STEPS", 1)
    monkeypatch.setattr(model_growth, "CANDIDATES_SIZES", (4, 8))
    monkeypatch.setattr(model_growth, "HORIZON_SIZES", (1,))
    monkeypatch.setattr(model_growth, "WORLD_SIZES", (2,))
    rows = list(model_growth.planning(DEFAULT_RUN))
    assert [(row.part, row.size) for row in rows] == [
        (model_growth.CANDIDATES, 4), (model_growth.CANDIDATES, 8), (model_growth.HORIZON, 1),
        (model_growth.WORLDS, 2),
    ]  # fmt: skip
    assert all(row.value > 0 for row in rows)


def test_a_table_has_a_column_for_each_size_and_a_dash_where_nothing_was_measured(tmp_path: Path):
    lines = as_markdown(ROWS).splitlines()
    assert lines == [
        "| times | 1 | 4 |", "|---|---|---|", "| opening, s | 0.5 | 2 |",
        "| memory, MiB | - | 1,234 |",
    ]  # fmt: skip
    draw(ROWS, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
