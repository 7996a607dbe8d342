import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from in_process import ROOT, call_script

from data.checks.check import contact_sheet, describe, main_check
from data.shards.build_info import shard_name
from data.shards.build_shards import build
from data.shards.episode_dataset import EpisodeDataset
from data.toy import ToyEpisodes, write_toy_shards

TOY = ToyEpisodes(episodes=18, length=12, size=16, episodes_per_shard=3)


def contents(folder: Path) -> list[bytes]:
    dataset = EpisodeDataset(folder)
    fields = ("frames", "actions", "rewards", "states")
    return [dataset.read_rows(f, 0, dataset.num_frames).tobytes() for f in fields] + [
        dataset.sources.tobytes(),
        bytes(dataset.splits.tolist()),
    ]


def test_the_number_of_workers_and_missing_shards_change_nothing(tmp_path):
    assert build(TOY, tmp_path / "one", "-", num_workers=1) == 6
    assert build(TOY, tmp_path / "two", "-", num_workers=2) == 6
    whole = contents(tmp_path / "one")
    assert contents(tmp_path / "two") == whole
    (tmp_path / "two" / shard_name(4)).unlink()
    with open(tmp_path / "two" / shard_name(1), "r+b") as file:
        file.truncate(700)
    with pytest.raises(ValueError, match="5 of 6 shards"):
        EpisodeDataset(tmp_path / "two")
    assert build(TOY, tmp_path / "two", "-") == 2  # the missing one, and the damaged one
    assert contents(tmp_path / "two") == whole
    assert build(TOY, tmp_path / "two", "-") == 0


def test_each_rank_writes_its_share(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        assert build(TOY, tmp_path / "ranks", "-") == 3
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    build(TOY, tmp_path / "one", "-")
    assert contents(tmp_path / "ranks") == contents(tmp_path / "one")


def test_other_settings_are_refused_and_restart_starts_over(tmp_path):
    build(TOY, tmp_path, "-")
    other = ToyEpisodes(episodes=9, length=12, size=16, episodes_per_shard=3)
    with pytest.raises(ValueError, match=r"shards with settings .*--restart"):
        build(other, tmp_path, "-")
    assert len(EpisodeDataset(tmp_path)) == 18
    build(other, tmp_path, "-", restart=True)
    assert len(EpisodeDataset(tmp_path)) == 9


def test_a_killed_build_resumes_without_holes(tmp_path):
    flags = ["pusht", "--preset", "debug", "--episodes", "21", "--resolution", "16"]
    flags += ["--num-workers", "1", "--run", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "preprocess.py", *flags],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    until = time.monotonic() + 240
    while not list((tmp_path / "shards").glob("*.h5")) and time.monotonic() < until:
        time.sleep(0.02)
    os.killpg(process.pid, 9)
    process.wait()
    cut = call_script("preprocess.py", "check", str(tmp_path))
    assert cut.returncode == 1 and "finish them with: python preprocess.py" in cut.stderr
    done = call_script("preprocess.py", *flags)
    assert done.returncode == 0, done.stderr
    dataset = EpisodeDataset(tmp_path / "shards")
    assert sorted(dataset.sources.tolist()) == list(range(21))
    assert not list((tmp_path / "shards").glob("*.partial"))
    assert "all shards exist" in call_script("preprocess.py", *flags).stdout


def test_check_describes_valid_shards_and_draws_them(tmp_path, capsys):
    write_toy_shards(tmp_path, episodes=12)
    main_check(tmp_path)
    printed = capsys.readouterr().out
    assert "12 episodes" in printed and "target_x: mean" in printed
    assert "all shards are valid" in printed
    assert (tmp_path / "sheet.png").stat().st_size > 500
    dataset = EpisodeDataset(tmp_path)
    assert contact_sheet(dataset).shape == (12 * 34 * 2, 8 * 34 * 2, 3)
    line = describe(dataset)[-1]
    before, now, after = (float(part.split()[0]) for part in line.split("r = ")[1].split(", "))
    assert now > 0.8 and now > before and now > after


def test_check_names_a_damaged_shard_and_how_to_rebuild_it(tmp_path):
    write_toy_shards(tmp_path / "shards")
    path = tmp_path / "shards" / shard_name(1)
    middle = path.stat().st_size // 2
    data = bytearray(path.read_bytes())
    data[middle : middle + 200] = os.urandom(200)
    path.write_bytes(bytes(data))
    result = call_script("preprocess.py", "check", str(tmp_path))
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert shard_name(1) in result.stderr and "python preprocess.py" in result.stderr


def test_arrays_are_converted_to_shards(tmp_path):
    random = np.random.default_rng(0)
    np.save(tmp_path / "frames.npy", random.integers(0, 255, (4, 6, 16, 16, 3), dtype=np.uint8))
    np.save(tmp_path / "actions.npy", random.integers(0, 3, (4, 6)))
    flags = ["--run", str(tmp_path / "run"), "--num-workers", "1"]
    result = call_script("preprocess.py", "arrays", str(tmp_path), *flags)
    assert result.returncode == 0, result.stderr
    dataset = EpisodeDataset(tmp_path / "run" / "shards")
    assert len(dataset) == 4 and dataset.actions.kind == "discrete"
    about = json.loads((tmp_path / "run" / "shards" / "build.json").read_text())
    assert about["command"].startswith("python preprocess.py arrays")


def test_frames_without_actions_are_converted_to_shards(tmp_path):
    np.savez(tmp_path / "0.npz", frames=np.zeros((6, 16, 16, 3), np.uint8))
    flags = ["--run", str(tmp_path / "run"), "--num-workers", "1"]
    result = call_script("preprocess.py", "arrays", str(tmp_path), *flags)
    assert result.returncode == 0 and "without actions" in result.stdout, result.stderr
    dataset = EpisodeDataset(tmp_path / "run" / "shards")
    assert dataset.lengths.tolist() == [6] and not dataset.has("actions")
    assert "no actions" in call_script("preprocess.py", "check", str(tmp_path / "run")).stdout


def test_mistakes_are_reported_in_one_line(tmp_path):
    for arguments, message in {
        ("pushed",): "did you mean pusht",
        ("pusht", "--perturb", "2"): "--perturb needs --demos",
        ("pusht", "--preset", "cpus"): "did you mean cpu",
        ("pusht", "--run", str(tmp_path), "--demos", "nowhere.zip"): "nowhere.zip does not exist",
        ("arrays", "nowhere", "--run", str(tmp_path)): "nowhere is none of these",
        ("check", str(tmp_path)): "holds no shards",
    }.items():
        result = call_script("preprocess.py", *arguments)
        assert result.returncode == 1 and result.stderr.count("\n") == 1, result.stderr
        assert message in result.stderr, result.stderr
