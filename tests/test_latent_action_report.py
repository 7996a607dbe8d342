"""Latent actions in the report: from a run folder to metrics, tables and maps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from square_run import square_run
from square_world import MOVES, STICK, write_squares

import evaluate
from evaluation.evaluate_config import Config
from evaluation.report.latent_action_table import arrow
from evaluation.report.metrics_schema import LATENT_ACTIONS
from pipeline.inference.action_maps import load_action_map
from pipeline.inference.load_world import load_world


def evaluated(run: Path, **changes) -> dict:
    config = Config(
        run, parts=("latent_actions",), num_clips=12, estimator_steps=2, num_videos=0,
        label_budgets=(50,), num_workers=1, **changes,
    )  # fmt: skip
    evaluate.main(config)
    folder = run / "report" if "shards" not in changes else run / "report" / "on-labeled"
    return json.loads((folder / "metrics.json").read_text())


def test_a_run_is_measured_and_leaves_maps_that_play_reads(tmp_path, monkeypatch):
    run = square_run(monkeypatch, tmp_path / "run")
    found = evaluated(run)["latent_actions"]
    assert set(found) == set(LATENT_ACTIONS)
    assert found["clustering"]["nmi"] == pytest.approx(1) and found["used"] == 9
    assert found["label_budget"]["50"]["labels"] == 50
    page = (run / "report" / "index.html").read_text()
    for words in ("<h2>Latent actions</h2>", "normalized mutual information", "labeled steps", "→"):
        assert words in page
    world = load_world(run)
    assert load_action_map(run, world, 50).true == STICK
    with pytest.raises(ValueError, match=r"200.pt holds no map .*evaluate.py --run .*learns those"):
        load_action_map(run, world, 200)


def test_videos_are_measured_by_true_actions_that_other_shards_of_the_same_world_have(
    tmp_path, monkeypatch
):
    run = square_run(monkeypatch, tmp_path / "run", None)
    own = evaluated(run)["latent_actions"]
    assert own["clustering"] is None and own["probe"] is None and own["label_budget"] == {}
    assert own["delta_psnr"]["delta_psnr"] > 5
    write_squares(tmp_path / "labeled" / "shards", MOVES, seed=1)
    labeled = evaluated(run, shards=tmp_path / "labeled")["latent_actions"]
    assert labeled["clustering"]["nmi"] == pytest.approx(1)
    assert load_action_map(run, load_world(run), 50).true == MOVES


def test_a_map_of_an_earlier_training_is_refused(tmp_path, monkeypatch):
    run = square_run(monkeypatch, tmp_path / "run")
    evaluated(run)
    path = run / "dynamics" / "best.pt"
    from pipeline import checkpoint as ckpt

    saved = ckpt.load(path, "dynamics")
    saved["model"]["unused"] += 1
    saved["fingerprint"] = ckpt.fingerprint(saved["model"], saved["config"])
    ckpt.save(path, saved)
    with pytest.raises(ValueError, match="was learned for other latent actions"):
        load_action_map(run, load_world(run), 50)
    whole = (run / "action_maps" / "50.pt").read_bytes()
    (run / "action_maps" / "50.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="50.pt is damaged"):
        load_action_map(run, load_world(run), 50)


def test_an_arrow_points_where_it_moves():
    assert [arrow(*v) for v in ((1, 0), (0, 1), (-1, 0), (0, -1), (1, -1))] == list("→↓←↑↗")
    assert arrow(0.0, 0.0001) == "·"
