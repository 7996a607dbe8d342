"""Shards return what was written, or a clear error."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from data.actions import ActionSpec
from data.io.files import partial_path
from data.pusht.simulator import ACTIONS as PUSHT_ACTIONS
from data.shards.build_info import BUILD_FILE, SKIPPED, shard_name, shards_folder
from data.shards.build_shards import build
from data.shards.episode_dataset import EpisodeDataset
from data.shards.episodes import Episode
from data.shards.shard_header import SPLITS
from data.shards.splits import split_sources
from data.shards.write_shard import write_shard
from data.toy import MOVES, POINTER, ToyEpisodes, write_toy_shards

COMMITTED = Path(__file__).parents[1] / "checkpoints" / "pusht-goals" / "shards"
BUILD = {"description": {}, "shards": 3, "command": "", "seconds": 0.5}
DESCRIPTION = {"image_size": [8, 12], "actions": POINTER.as_dict(), "source": "test"}


def episode(length: int, seed: int = 0) -> Episode:
    random = np.random.default_rng(seed)
    frames = random.integers(0, 256, (length, 8, 12, 3), dtype=np.uint8)
    return Episode(
        frames,
        random.uniform(0, 512, (length, 2)).astype(np.float32),
        split=seed % 3,
        source=seed,
        rewards=random.random(length, np.float32),
        terminals=np.arange(length) == length - 1,
        states=random.random((length, 4), np.float32),
        contacts=np.zeros(length, np.float32),
    )


def test_reading_returns_what_was_written(tmp_path):
    episodes = [episode(length, seed) for seed, length in enumerate((7, 40, 1, 16, 17))]
    write_shard(tmp_path / shard_name(0), episodes[:2], DESCRIPTION)
    write_shard(tmp_path / shard_name(1), episodes[2:], DESCRIPTION)
    dataset = EpisodeDataset(tmp_path)
    assert dataset.image_size == (8, 12) and dataset.actions == POINTER
    assert dataset.lengths.tolist() == [7, 40, 1, 16, 17] and dataset.num_frames == 81
    for number, split in enumerate(SPLITS):
        assert dataset.episodes(split) == [e for e in range(5) if e % 3 == number]
    for number, one in enumerate(episodes):
        assert int(dataset.sources[number]) == number and dataset.length(number) == len(one)
        for field in ("frames", "actions", "rewards", "terminals", "states", "contacts"):
            assert np.array_equal(dataset.read(number, field), getattr(one, field))
    part = dataset.read(1, "frames", 15, 33)
    assert np.array_equal(part, episodes[1].frames[15:33])
    everything = np.concatenate([one.states for one in episodes if one.states is not None])
    assert np.array_equal(dataset.read_rows("states", 0, 81), everything)
    assert np.array_equal(dataset.read_rows("states", 45, 60), everything[45:60])
    batch = np.zeros((3, 15, 4), np.float32)
    dataset.read_rows("states", 45, 60, out=batch[1])
    assert np.array_equal(batch[1], everything[45:60]) and not batch[[0, 2]].any()
    with pytest.raises(AssertionError):  # nothing is converted, and nothing written outside
        dataset.read_rows("states", 45, 60, out=np.zeros((15, 4), np.float16))
    assert dataset.read_rows("frames", 81, 81).shape == (0, 8, 12, 3)


def test_a_missing_field_is_named(tmp_path):
    bare = [replace(episode(5), rewards=None, states=None)]
    write_shard(tmp_path / shard_name(0), bare, DESCRIPTION)
    dataset = EpisodeDataset(tmp_path)
    assert dataset.has("contacts") and not dataset.has("rewards")
    with pytest.raises(ValueError, match="has no rewards; it holds actions, contacts"):
        dataset.read(0, "rewards")
    with pytest.raises(ValueError, match="is outside"):
        dataset.read(0, "frames", 2, 6)


def test_invalid_episodes_are_refused(tmp_path):
    good, path = episode(5), tmp_path / shard_name(0)
    assert good.actions is not None
    wrong = [
        (replace(good, frames=good.frames[:, :, :8]), "frames uint8"),
        (replace(good, frames=good.frames / 255), "frames float64"),
        (replace(good, actions=good.actions[:4]), "5 frames but 4 actions"),
        (replace(good, actions=good.actions[:, :1]), r"actions of \(1,\)"),
        (replace(good, actions=good.actions.astype(np.int64)), "needs floats"),
        (replace(good, states=np.full((5, 4), np.nan)), "NaN or infinity in states at step 0"),
        (replace(good, rewards=None), "some episodes have rewards"),
    ]
    for bad, message in wrong:
        with pytest.raises(ValueError, match=message):
            write_shard(path, [good, bad], DESCRIPTION)
    with pytest.raises(ValueError, match="needs whole numbers"):
        actions = good.actions[:, 0]
        write_shard(
            path, [replace(good, actions=actions)], DESCRIPTION | {"actions": MOVES.as_dict()}
        )
    with pytest.raises(ValueError, match="no episode"):
        write_shard(path, [], DESCRIPTION)
    assert not list(tmp_path.iterdir())


def test_episodes_without_actions_are_read_as_written(tmp_path):
    without = [replace(episode(length), actions=None) for length in (5, 3)]
    description = DESCRIPTION | {"actions": ActionSpec("none", ()).as_dict()}
    write_shard(tmp_path / shard_name(0), without, description)
    dataset = EpisodeDataset(tmp_path)
    assert dataset.actions == ActionSpec("none", ()) and not dataset.has("actions")
    assert np.array_equal(dataset.read(1, "frames"), without[1].frames)
    with pytest.raises(ValueError, match="has no actions; it holds contacts"):
        dataset.read(0, "actions")


def test_episodes_have_actions_exactly_where_their_spec_does(tmp_path):
    path = tmp_path / shard_name(0)
    nothing = DESCRIPTION | {"actions": ActionSpec("none", ()).as_dict()}
    with pytest.raises(ValueError, match=r"has actions of \(2,\), but .* kind 'none'"):
        write_shard(path, [episode(5)], nothing)
    with pytest.raises(ValueError, match="has no actions, but .* kind 'continuous'"):
        write_shard(path, [replace(episode(5), actions=None)], DESCRIPTION)
    write_shard(path, [episode(5)], DESCRIPTION)
    with h5py.File(path, "r+") as file:
        description = json.loads(str(file.attrs["description"]))
        file.attrs["description"] = json.dumps(description | {"actions": nothing["actions"]})
    with pytest.raises(ValueError, match="damaged .it describes actions of kind 'none'"):
        EpisodeDataset(tmp_path)


def test_the_spec_of_no_actions_leaves_actions_of_no_numbers_unchanged():
    spec = ActionSpec("none", ())
    assert ActionSpec.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec
    assert spec.size == 0 and spec.shape == (0,) and spec.describe(0) == "no actions"
    actions = torch.zeros(2, 3, 0)
    for same in (spec.normalize(actions), spec.denormalize(actions)):
        assert same.shape == (2, 3, 0) and same.dtype == torch.float32
    drawn = spec.sample(4, np.random.default_rng(0))
    assert drawn.shape == (4, 0) and drawn.dtype == np.float32
    with pytest.raises(ValueError, match="'none' has no names"):
        ActionSpec("none", ("x",))
    with pytest.raises(ValueError, match="kind is 'none' in the first"):
        spec.check_same(POINTER, "a", "b")


def test_the_committed_shards_open():
    dataset = EpisodeDataset(COMMITTED)
    assert len(dataset) == 28 and dataset.has("actions") and dataset.actions == PUSHT_ACTIONS
    assert dataset.read(3, "frames").shape[1:] == (64, 64, 3)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_an_error_in_one_line_and_keeps_the_old_shard(tmp_path):
    path = tmp_path / shard_name(0)
    write_shard(path, [episode(5)], DESCRIPTION)
    before = path.read_bytes()
    partial_path(path).symlink_to("/dev/full")
    with pytest.raises(ValueError, match="was not written: No space left on device"):
        write_shard(path, [episode(9)], DESCRIPTION)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_the_same_episodes_give_the_same_bytes(tmp_path):
    first, second = tmp_path / shard_name(0), tmp_path / shard_name(1)
    write_shard(first, [episode(20)], DESCRIPTION)
    write_shard(second, [episode(20)], DESCRIPTION)
    assert first.read_bytes() == second.read_bytes()


def test_the_fingerprint_depends_on_the_episodes_and_not_on_the_folder(tmp_path):
    one = write_toy_shards(tmp_path / "one")
    shutil.copytree(one, tmp_path / "copy")
    two = write_toy_shards(tmp_path / "two", seed=1)
    assert EpisodeDataset(one).fingerprint == EpisodeDataset(tmp_path / "copy").fingerprint
    assert EpisodeDataset(one).fingerprint != EpisodeDataset(two).fingerprint


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_a_truncated_shard_is_named_with_the_command_that_rebuilds_it(tmp_path, keep):
    write_toy_shards(tmp_path)
    path = tmp_path / shard_name(1)
    size = int(keep * path.stat().st_size) if isinstance(keep, float) else keep
    os.truncate(path, size)
    with pytest.raises(ValueError, match="shard-00001.h5 is damaged .*delete that one file") as e:
        EpisodeDataset(tmp_path)
    assert "\n" not in str(e.value) and "python preprocess.py" in str(e.value)


def test_a_flipped_bit_in_the_frames_is_found_on_reading(tmp_path):
    write_toy_shards(tmp_path)
    path = tmp_path / shard_name(0)
    with h5py.File(path) as file:
        chunk = file["frames"].id.get_chunk_info(2)  # type: ignore[union-attr]
    with open(path, "r+b") as file:
        file.seek(chunk.byte_offset + chunk.size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))
    dataset = EpisodeDataset(tmp_path)
    with pytest.raises(ValueError, match="shard-00000.h5 is damaged"):
        dataset.read_rows("frames", 0, dataset.num_frames)


def test_episode_ends_past_the_data_are_refused(tmp_path):
    write_toy_shards(tmp_path)
    with h5py.File(tmp_path / shard_name(0), "r+") as file:
        file["episode_ends"][-1] += 1  # type: ignore[index]
    with pytest.raises(ValueError, match="do not rise to its 144 frames"):
        EpisodeDataset(tmp_path)


@pytest.mark.parametrize("name", [shard_name(1), BUILD_FILE])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path, name):
    write_toy_shards(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} is damaged .*is a named pipe"):
        EpisodeDataset(tmp_path)


def test_a_split_that_does_not_exist_is_not_written(tmp_path):
    for wrong in ({"split": -1}, {"split": 3}, {"source": -1}):
        with pytest.raises(ValueError, match="but a split is from 0 to 2"):
            write_shard(tmp_path / shard_name(0), [replace(episode(5), **wrong)], DESCRIPTION)
    assert not list(tmp_path.iterdir())


def test_shards_of_another_build_are_named(tmp_path):
    write_toy_shards(tmp_path, episodes=18)
    (tmp_path / BUILD_FILE).write_text(json.dumps(BUILD | {"shards": 2}))
    with pytest.raises(ValueError, match="holds shard-00002.h5, but its build has 2 shards"):
        EpisodeDataset(tmp_path)


def test_a_folder_whose_shards_were_all_skipped_says_why(tmp_path):
    (tmp_path / BUILD_FILE).write_text(json.dumps(BUILD))
    for index in range(3):
        (tmp_path / shard_name(index)).with_suffix(SKIPPED).write_text(f"log {index} is empty\n")
    with pytest.raises(ValueError, match="all were skipped: log 0 is empty, log 1 is empty"):
        EpisodeDataset(tmp_path)


def test_another_format_is_refused(tmp_path):
    write_toy_shards(tmp_path)
    with h5py.File(tmp_path / shard_name(0), "r+") as file:
        description = json.loads(str(file.attrs["description"]))
        file.attrs["description"] = json.dumps(description | {"format": 2})
    with pytest.raises(ValueError, match="has shard format 2, but this version reads 1"):
        EpisodeDataset(tmp_path)


def test_two_datasets_in_one_folder_are_refused(tmp_path):
    write_toy_shards(tmp_path, episodes=12)
    write_toy_shards(tmp_path, episodes=6, size=16)
    with pytest.raises(ValueError, match="different datasets .they differ in image_size"):
        EpisodeDataset(tmp_path)


def test_missing_shards_are_named_with_the_command_that_finishes(tmp_path):
    with pytest.raises(ValueError, match="holds no shards; make them with: python preprocess.py"):
        EpisodeDataset(tmp_path)
    write_toy_shards(tmp_path)
    about = BUILD | {"command": "python preprocess.py pusht --seed 7"}
    (tmp_path / BUILD_FILE).write_text(json.dumps(about))
    with pytest.raises(ValueError, match="holds 2 of 3 shards; .* pusht --seed 7"):
        EpisodeDataset(tmp_path)


@pytest.mark.parametrize("run", ["--run old/place", "--run=old/place", "--run 'old place'", ""])
def test_the_command_that_finishes_names_the_current_folder(tmp_path, run):
    shards = write_toy_shards(tmp_path / "new place" / "shards")
    command = f"python preprocess.py arrays 'my arrays' {run} --num-workers 2"
    (shards / BUILD_FILE).write_text(json.dumps(BUILD | {"command": command}))
    words = f"arrays 'my arrays' --num-workers 2 --run '{tmp_path}/new place'"
    with pytest.raises(ValueError, match=f"with: python preprocess.py {words}$"):
        EpisodeDataset(shards)


def test_the_command_that_makes_shards_names_the_run(tmp_path):
    for folder in (tmp_path / "empty", tmp_path / "empty" / "shards"):
        with pytest.raises(ValueError, match=f"SOURCE --run {tmp_path}/empty$"):
            EpisodeDataset(shards_folder(folder))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (json.dumps(BUILD)[:40].encode(), "damaged"),
        (b"\xff\xfe\x00", "codec can't decode"),
        (b"[]", "holds no fields"),
        (b"{}", "lacks description, shards, command, seconds"),
        (json.dumps(BUILD | {"shards": "three"}).encode(), "lacks shards"),
        (json.dumps(BUILD | {"shards": -5}).encode(), "lacks shards"),
        (json.dumps(BUILD | {"shards": True}).encode(), "lacks shards"),
        (json.dumps(BUILD | {"shards": 1.5}).encode(), "lacks shards"),
        (json.dumps(BUILD | {"seconds": float("nan")}).encode(), "lacks seconds"),
        (json.dumps(BUILD | {"command": "python 'preprocess"}).encode(), "lacks command"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_damaged_build_file_is_named(tmp_path, content, reason):
    write_toy_shards(tmp_path)
    (tmp_path / BUILD_FILE).write_bytes(content)
    for opens in (EpisodeDataset, lambda folder: build(ToyEpisodes(), folder, "-")):
        with pytest.raises(ValueError, match=f"{BUILD_FILE} is damaged .*delete it") as problem:
            opens(tmp_path)
        assert reason in str(problem.value) and "\n" not in str(problem.value)


def test_splits_are_drawn_by_source_and_never_empty():
    for count in (3, 4, 5, 12, 206):
        splits = split_sources(count, seed=0)
        shares = np.bincount(splits, minlength=3)
        assert shares[1] == shares[2] == max(1, round(count / 10)) and shares[0] >= 1
    assert split_sources(2, seed=0).tolist() == [0, 0]
    assert not np.array_equal(split_sources(206, seed=0), split_sources(206, seed=1))
