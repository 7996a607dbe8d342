"""What `check` warns of: valid shards that spoil what is trained on them."""

import json
from dataclasses import replace

import numpy as np
import pytest

from data.checks.check import check, main_check
from data.checks.suspicions import suspicions
from data.shards.build_info import BUILD_FILE, SKIPPED, shard_name
from data.shards.build_shards import build
from data.shards.episode_dataset import EpisodeDataset
from data.shards.episodes import Episode
from data.shards.write_shard import write_shard
from data.toy import MOVES, POINTER, ToyEpisodes, write_toy_shards

DESCRIPTION = {"image_size": [8, 8], "actions": POINTER.as_dict()}


def episode(**changes) -> Episode:
    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    actions = random.uniform(0, 512, (9, 2)).astype(np.float32)
    return replace(Episode(frames, actions, terminals=np.arange(9) == 8), **changes)


def warnings_of(folder, *episodes: Episode, description=DESCRIPTION) -> list[str]:
    write_shard(folder / shard_name(0), list(episodes), description)
    return suspicions(EpisodeDataset(folder))


def test_sound_shards_raise_no_suspicion(tmp_path):
    build(ToyEpisodes(), tmp_path, "-")
    assert suspicions(EpisodeDataset(tmp_path)) == []
    assert not any("warning" in line for line in check(tmp_path, tmp_path / "sheet.png"))


def test_the_last_line_counts_the_warnings(tmp_path, capsys):
    """Also with costs that are all but 0, whose mean is not -0.000."""
    nearly = np.full(9, -1e-6, np.float32)
    warnings_of(tmp_path, episode(frames=np.zeros((9, 8, 8, 3), np.uint8), rewards=nearly))
    main_check(tmp_path)
    shown = capsys.readouterr().out
    assert shown.count("warning: ") > 1 and "-0.000" not in shown
    assert f"all shards are valid, with {shown.count('warning: ')} warnings; contact" in shown


@pytest.mark.parametrize(
    "changes, warning",
    [
        ({"frames": np.ones((9, 8, 8, 3), np.uint8)}, "values from 1 to 1 only, of 0 to 255"),
        ({"actions": np.full((9, 2), [3, 4], np.float32)}, "never change: target_x, target_y"),
        ({"terminals": np.arange(9) > 6}, "1 of 1 episodes go on after a frame that is marked"),
    ],
)
def test_what_says_nothing_is_named(tmp_path, changes, warning):
    (line,) = warnings_of(tmp_path, episode(**changes))
    assert line.startswith("  warning: ") and warning in line


def test_one_code_throughout_is_named(tmp_path):
    description = DESCRIPTION | {"actions": MOVES.as_dict()}
    still = episode(actions=np.ones(9, np.int64))
    (line,) = warnings_of(tmp_path, still, description=description)
    assert "the actions never change: left" in line


def test_a_source_in_two_splits_is_named(tmp_path):
    parts = [episode(source=4), episode(source=4, split=2), episode(source=5)]
    (line,) = warnings_of(tmp_path, *parts)
    assert "1 of 2 sources have episodes in several splits (source 4 in train, test)" in line


def test_skipped_shards_and_another_build_file_are_named(tmp_path):
    write_toy_shards(tmp_path)
    info = {"description": {"source": "toy", "seed": 1}, "shards": 3, "command": "", "seconds": 1}
    (tmp_path / BUILD_FILE).write_text(json.dumps(info))
    (tmp_path / shard_name(2)).with_suffix(SKIPPED).write_text("log 2 is empty\n")
    skipped, other = suspicions(EpisodeDataset(tmp_path))
    assert "1 skipped shard: log 2 is empty" in skipped
    assert "build.json describes other shards, by actions, image_size, seed" in other
