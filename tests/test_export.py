"""A copy of the trained models of a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from untrained_run import write_run

import play
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from models.planning.planner import PlannerConfig
from pipeline import checkpoint as ckpt
from pipeline import presets
from pipeline.export import checkpoints as export
from pipeline.inference.load_controllers import (
    load_canonical_policy,
    load_controllers,
    load_goal_policy,
)
from pipeline.inference.load_world import load_world
from pipeline.play.player import StartSampler

GIVEN = Path(__file__).parents[1] / "checkpoints" / "pusht-goals"


def test_a_copy_predicts_nearly_the_same_and_is_half_as_large(tmp_path: Path):
    write_toy_shards(tmp_path / "run" / "shards", episodes=6)
    dataset = EpisodeDataset(tmp_path / "run" / "shards")
    run = write_run(tmp_path / "run", dataset, method="keypoints")
    export.main(export.Config(run=run, out=tmp_path / "copy"))
    whole, copy = load_world(run), load_world(tmp_path / "copy")
    assert set(load_controllers(tmp_path / "copy", copy)) == {"bc", "actor_critic"}
    assert load_goal_policy(tmp_path / "copy", copy) is not None
    frames = torch.from_numpy(dataset.read(0, "frames")[:3]).permute(0, 3, 1, 2)[None]
    actions = torch.from_numpy(dataset.read(0, "actions")[:2])[None]
    with torch.no_grad():
        one, two = (w.reset(frames, actions).latents for w in (whole, copy))
    assert torch.allclose(one, two, atol=1e-2) and not torch.equal(one, two)
    sizes = [(f / "dynamics" / "best.pt").stat().st_size for f in (run, tmp_path / "copy")]
    assert sizes[1] < 0.7 * sizes[0]


def test_a_copy_remembers_the_presets(tmp_path: Path):
    write_toy_shards(tmp_path / "run" / "shards", episodes=6)
    run = write_run(tmp_path / "run", EpisodeDataset(tmp_path / "run" / "shards"))
    presets.remember(run, ["keypoints", "debug"])
    export.main(export.Config(run=run, out=tmp_path / "copy"))
    assert presets.remembered(tmp_path / "copy") == ["keypoints", "debug"]


def test_what_comes_along_is_small_and_belongs_together():
    """The folder of the repository has less than 12 MB, and all its controllers load."""
    files = [path for path in GIVEN.rglob("*") if path.is_file()]
    folders = {"play", "report"}  # of who plays in it
    shared = [path for path in files if not folders & {*path.relative_to(GIVEN).parts}]
    assert sum(path.stat().st_size for path in shared) < 12_000_000
    world = load_world(GIVEN)
    assert load_canonical_policy(GIVEN, world) is not None
    assert load_goal_policy(GIVEN, world) is not None
    assert set(load_controllers(GIVEN, world)) == {"bc"}


def test_replaced_checkpoints_are_reported(tmp_path: Path, capsys):
    write_toy_shards(tmp_path / "run" / "shards", episodes=6)
    run = write_run(tmp_path / "run", EpisodeDataset(tmp_path / "run" / "shards"))
    for _ in range(2):
        export.main(export.Config(run=run, out=tmp_path / "copy"))
    first, second = capsys.readouterr().out.splitlines()
    assert "of them replaced" not in first and "of them replaced" in second


def test_a_run_is_not_copied_onto_itself(tmp_path: Path, monkeypatch):
    write_toy_shards(tmp_path / "run" / "shards", episodes=6)
    run = write_run(tmp_path / "run", EpisodeDataset(tmp_path / "run" / "shards"))
    before = {p: p.read_bytes() for p in run.rglob("best.pt")}
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"--out run is --run .* itself"):
        export.main(export.Config(run=run, out=Path("run")))
    assert {p: p.read_bytes() for p in run.rglob("best.pt")} == before


def test_files_of_no_stage_are_not_copied(tmp_path: Path):
    write_toy_shards(tmp_path / "run" / "shards", episodes=6)
    run = write_run(tmp_path / "run", EpisodeDataset(tmp_path / "run" / "shards"))
    shutil.copytree(run / "dynamics", run / "old" / "dynamics")
    shutil.copy(run / "dynamics" / "best.pt", run)
    export.main(export.Config(run=run, out=tmp_path / "copy"))
    assert sorted(p.name for p in (tmp_path / "copy").iterdir()) == [
        "controller", "dynamics", "tokenizer",
    ]  # fmt: skip


def test_parts_that_do_not_belong_together_are_not_given_away(tmp_path: Path):
    write_toy_shards(tmp_path / "run" / "shards", episodes=6)
    dataset = EpisodeDataset(tmp_path / "run" / "shards")
    run = write_run(tmp_path / "run", dataset)
    for stage, child in (("tokenizer", "dynamics"), ("dynamics", "controller/bc")):
        path = run / stage / "best.pt"
        before = path.read_bytes()
        checkpoint = ckpt.load(path, stage)  # as if it were trained again
        next(iter(checkpoint["model"].values())).add_(1)
        retrained = ckpt.fingerprint(checkpoint["model"], checkpoint["config"])
        ckpt.save(path, checkpoint | {"fingerprint": retrained})
        with pytest.raises(ValueError, match=rf"{child}/best.pt was trained on a {stage} with"):
            export.main(export.Config(run=run, out=tmp_path / "copy"))
        path.write_bytes(before)
    (run / "tokenizer" / "best.pt").unlink()
    with pytest.raises(ValueError, match=r"tokenizer/best.pt is not there"):
        export.main(export.Config(run=run, out=tmp_path / "copy"))
    assert not (tmp_path / "copy").exists()


def test_models_of_another_run_do_not_stay_next_to_the_copy(tmp_path: Path):
    write_toy_shards(tmp_path / "run" / "shards", episodes=6)
    run = write_run(tmp_path / "run", EpisodeDataset(tmp_path / "run" / "shards"))
    export.main(export.Config(run=run, out=tmp_path / "copy"))
    before = {p: p.read_bytes() for p in (tmp_path / "copy").rglob("best.pt")}
    shutil.rmtree(run / "controller" / "bc")
    with pytest.raises(ValueError, match="copy/controller/bc/best.pt would stay next to"):
        export.main(export.Config(run=run, out=tmp_path / "copy"))
    assert {p: p.read_bytes() for p in (tmp_path / "copy").rglob("best.pt")} == before


def test_a_weight_beyond_16_bits_is_not_made_infinite(tmp_path: Path):
    write_toy_shards(tmp_path / "run" / "shards", episodes=6)
    run = write_run(tmp_path / "run", EpisodeDataset(tmp_path / "run" / "shards"))
    checkpoint = ckpt.load(run / "tokenizer" / "best.pt", "tokenizer")
    next(v for v in checkpoint["model"].values() if v.is_floating_point()).fill_(1e6)
    fingerprint = ckpt.fingerprint(checkpoint["model"], checkpoint["config"])
    ckpt.save(run / "tokenizer" / "best.pt", checkpoint | {"fingerprint": fingerprint})
    shutil.rmtree(run / "dynamics")
    shutil.rmtree(run / "controller")
    with pytest.raises(ValueError, match="beyond the range of 16 bits"):
        export.main(export.Config(run=run, out=tmp_path / "copy"))


def test_a_copy_remembers_the_recordings(tmp_path: Path):
    write_toy_shards(tmp_path / "run" / "shards", episodes=6)
    dataset = EpisodeDataset(tmp_path / "run" / "shards")
    run = write_run(tmp_path / "run", dataset, recordings=True)
    export.main(export.Config(run=run, out=tmp_path / "copy"))
    kept = ckpt.load(tmp_path / "copy" / "dynamics" / "best.pt", "dynamics")
    assert kept["recordings"]["dataset"] == dataset.fingerprint


def test_a_run_without_checkpoints_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="holds no best.pt"):
        export.main(export.Config(run=tmp_path, out=tmp_path / "copy"))
    assert not (tmp_path / "copy").exists()


def test_the_committed_checkpoint_reaches_a_goal_in_its_own_rollout(tmp_path: Path):
    for part in ("tokenizer", "dynamics", "controller", "shards"):  # not what play.py wrote there
        shutil.copytree(GIVEN / part, tmp_path / part)
    shutil.copy(GIVEN / "README.md", tmp_path)
    assert sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) < 12e6
    plan = PlannerConfig(num_samples=64, iterations=4, num_elites=8)
    reached = {}
    for source in ("planner", "random"):
        config = play.Config(
            run=tmp_path, headless=True, steps=25, size=64, planner=plan, episode=0,
            actions=source,
        )  # fmt: skip
        play.main(config)
        reached[source] = _distance_to_goal(tmp_path, np.load(tmp_path / "play" / "actions.npy"))
    assert reached["planner"] < 0.3 * reached["random"]


@torch.no_grad()
def _distance_to_goal(run: Path, actions: np.ndarray) -> float:
    """Squared latent distance between where actions lead and the dataset's frame 25 steps later."""
    world, dataset = load_world(run), EpisodeDataset(run / "shards")
    start = StartSampler(dataset, "test", world.context, 0).at(0)
    frames = torch.from_numpy(start.frames).permute(0, 3, 1, 2)[None]
    state = world.reset(frames, torch.from_numpy(start.actions)[None])
    end = world.rollout(state, torch.from_numpy(actions)[None]).latents
    goal = torch.from_numpy(start.next_frames[24]).permute(2, 0, 1)[None]
    return float((end - world.embed(goal)).square().mean())
