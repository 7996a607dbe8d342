"""Which recorded episodes a checkpoint was trained on, and who asks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from untrained_run import write_run

import evaluate
import train_controller
import train_dynamics
from data.shards.build_info import shard_name
from data.shards.episode_dataset import EpisodeDataset
from data.shards.shard_header import SPLITS
from data.shards.splits import split_sources
from data.shards.write_shard import write_shard
from data.toy import ToyEpisodes, write_toy_shards
from evaluation.provenance import provenance
from evaluation.session import Session
from pipeline import presets
from pipeline.lineage import all_digests, count_trained_on, inherit
from pipeline.trained_on import (
    check_parent_recordings,
    episode_digests,
    recordings_of,
)


def shards(folder: Path, split_seed: int = 0, episodes: int = 12, seed: int = 0) -> EpisodeDataset:
    """The same toy episodes, split anew by each seed, and more of them."""
    source = ToyEpisodes(episodes, 24, 32, seed)
    splits = split_sources(episodes, split_seed)
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    for index in range(source.num_shards):
        made = source.make_shard(index)
        for episode in made:
            episode.split = int(splits[episode.source])
        description = source.description() | {"split_seed": split_seed}
        write_shard(folder / "shards" / shard_name(index), made, description)
    return EpisodeDataset(folder / "shards")


def of(dataset: EpisodeDataset) -> dict[str, Any]:
    """A checkpoint that was trained on a dataset."""
    return {"stage": "tokenizer", "recordings": recordings_of(dataset)}


def test_an_episode_has_one_digest_whatever_its_split_and_its_shard(tmp_path):
    one, two = shards(tmp_path / "one"), shards(tmp_path / "two", split_seed=1)
    more = shards(tmp_path / "more", episodes=20)
    digests = episode_digests(one, range(12))
    assert len(set(digests.tolist())) == 12
    assert np.array_equal(digests, episode_digests(two, range(12)))
    assert set(digests) < set(episode_digests(more, range(20)))
    assert one.fingerprint != two.fingerprint
    assert not set(digests) & set(episode_digests(shards(tmp_path / "other", seed=1), range(12)))


def test_recordings_that_are_split_anew_are_refused(tmp_path):
    before, now = shards(tmp_path / "a"), shards(tmp_path / "b", split_seed=1)
    path = tmp_path / "b" / "tokenizer" / "best.pt"
    message = r"trained on other recordings: [12] of the 2 held-out .* train_tokenizer\.py --run "
    with pytest.raises(ValueError, match=message) as problem:
        check_parent_recordings(of(before), path, recordings_of(now), now)
    assert "\n" not in str(problem.value)
    check_parent_recordings(of(now), path, recordings_of(now), now)


def test_recordings_that_are_elsewhere_are_refused_and_unknown_ones_are_not(tmp_path):
    before, now = shards(tmp_path / "a", seed=1), shards(tmp_path / "b")
    path, mine = tmp_path / "b" / "tokenizer" / "best.pt", recordings_of(now)
    with pytest.raises(ValueError, match=r"10 of its 10 training episodes are not in .*b/shards"):
        check_parent_recordings(of(before), path, mine, now)
    for unknown in (None, {}, {"dataset": 3}, {"dataset": "a", "train": [1]}):
        check_parent_recordings({"recordings": unknown}, path, mine, now)


def test_a_parent_may_have_learned_from_fewer_episodes(tmp_path):
    now = shards(tmp_path / "b")
    fewer = recordings_of(now) | {"dataset": "before it grew"}
    fewer["train"] = fewer["train"][:5]
    check_parent_recordings({"recordings": fewer}, tmp_path / "best.pt", recordings_of(now), now)


def test_digests_are_taken_over_from_a_checkpoint_of_the_same_shards(tmp_path, monkeypatch):
    dataset = shards(tmp_path)
    known = of(dataset)
    monkeypatch.setattr("pipeline.trained_on.episode_digests", None)
    assert recordings_of(dataset, None, known)["dataset"] == dataset.fingerprint
    assert torch.equal(recordings_of(dataset, known)["train"], known["recordings"]["train"])


def test_held_out_episodes_that_were_trained_on_are_counted(tmp_path):
    one, two = shards(tmp_path / "a"), shards(tmp_path / "b", split_seed=1)
    shared = set(two.episodes("test")) & set(one.episodes("train"))
    assert shared
    assert count_trained_on([of(two)], two, "test") == 0
    assert count_trained_on([of(two), of(one)], two, "test") == len(shared)
    inherited = {"recordings": inherit(recordings_of(two), of(one))}
    assert count_trained_on([inherited], two, "test") == len(shared)
    expected = set(recordings_of(one)["train"].tolist()) | set(recordings_of(two)["train"].tolist())
    found = all_digests(inherited)
    assert found is not None and set(found.tolist()) == expected
    # of the older format: unknown, but what another is known to have learned counts
    assert count_trained_on([{}], two, "test") is None
    assert count_trained_on([{}, of(two)], two, "test") is None
    assert count_trained_on([{}, of(one)], two, "test") == len(shared)
    from_unknown = {"recordings": inherit(recordings_of(two), {})}
    assert count_trained_on([from_unknown], two, "test") is None


# -- those who ask ---------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose recordings are split anew after it was trained."""
    write_run(tmp_path, shards(tmp_path), recordings=True)
    shards(tmp_path, split_seed=1)
    return tmp_path


def test_no_stage_is_built_on_a_parent_of_other_recordings(run: Path):
    for stage, name in ((train_dynamics, "dynamics"), (train_controller, "controller")):
        config = presets.apply(stage.Config(), name, ["pusht", "debug"])
        with pytest.raises(ValueError, match=r"tokenizer/best.pt was trained on other recordings|"
                           r"dynamics/best.pt was trained on other recordings"):  # fmt: skip
            stage.main(replace(config, run=run))
    assert not list(run.rglob("last.pt")) and not (run / "latents").exists()


def test_an_evaluation_says_how_many_of_its_episodes_were_trained_on(run: Path, capsys):
    config = presets.apply(evaluate.Config(), "evaluate", ["pusht", "debug"])
    evaluate.main(replace(config, run=run, num_workers=1, parts=("imitation",)))
    said = "1 of the 1 held-out episodes were trained on"
    assert f"evaluate: warning: {said}" in capsys.readouterr().out
    assert said in (run / "report" / "index.html").read_text()
    other = write_toy_shards(run / "other" / "shards", seed=5)
    with Session(run, other, None, 1, 2) as session:  # a mixture on purpose
        assert session.trained_on == 0 and len(session.describe()) == 1


def test_an_evaluation_of_a_world_that_does_not_remember_says_so(tmp_path: Path):
    write_run(tmp_path, shards(tmp_path))
    with Session(tmp_path, None, None, 1, 2) as session:
        assert provenance(session)["held_out_episodes_trained_on"] is None
        assert "unknown whether any held-out episode was trained on" in session.describe()[1]


def test_every_split_is_in_the_toy_recordings(tmp_path):
    dataset = shards(tmp_path, split_seed=1)
    assert all(dataset.episodes(split) for split in SPLITS)
