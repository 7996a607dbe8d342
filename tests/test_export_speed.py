"""A step in ONNX Runtime beside the same step in PyTorch."""

from pathlib import Path

import pytest
from untrained_run import write_run

from bench.areas import export_speed
from bench.races.pairs import Options
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards


@pytest.mark.slow
def test_a_step_is_raced_after_its_parity_is_checked(tmp_path: Path, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    checked = []
    real = export_speed.check

    def check(*arguments):
        checked.append(True)
        return real(*arguments)

    def race(runners, rounds, **_):
        assert checked
        frames = [run() for run in runners.values()]
        assert abs(frames[0].astype(int) - frames[1].numpy().astype(int)).max() <= 1
        return dict.fromkeys(runners, [1.0] * rounds)

    monkeypatch.setattr(export_speed, "check", check)
    monkeypatch.setattr(export_speed, "race", race)
    write_toy_shards(tmp_path / "shards", episodes=6, length=40)
    run = write_run(tmp_path, EpisodeDataset(tmp_path / "shards"), method="keypoints")
    (row,) = export_speed.rows(Options(rounds=1, quick=True, run=run))
    assert row.baseline == export_speed.PLAIN and row.ratio == 1.0


def test_a_run_of_codes_is_a_row_that_says_so(tmp_path: Path):
    pytest.importorskip("onnxruntime")
    write_toy_shards(tmp_path / "shards", episodes=6)
    run = write_run(tmp_path, EpisodeDataset(tmp_path / "shards"))
    (row,) = export_speed.rows(Options(rounds=1, quick=True, run=run))
    assert row.ours is None and "codes" in row.note and not row.failed
