"""What `preprocess.py check` validates, reports and draws."""

import os
import warnings

import cv2
import h5py
import numpy as np
import pytest

from data.actions import ActionSpec
from data.checks.check import check, contact_sheet, describe, validate
from data.checks.suspicions import suspicions
from data.io.messages import counted
from data.shards.build_info import shard_name
from data.shards.episode_dataset import EpisodeDataset
from data.shards.episodes import Episode
from data.shards.write_shard import write_shard
from data.toy import POINTER, write_toy_shards


def overwrite(folder, shard, field, row, value):
    with h5py.File(folder / shard_name(shard), "r+") as file:
        column = file[field]
        assert isinstance(column, h5py.Dataset)
        column[row] = value


def corrupt(folder, shard):
    path = folder / shard_name(shard)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = os.urandom(200)
    path.write_bytes(bytes(data))


def error_of(folder) -> str:
    with pytest.raises(ValueError) as problem:
        check(folder, folder / "sheet.png")
    assert "\n" not in str(problem.value)
    assert not (folder / "sheet.png").exists()
    return str(problem.value)


def line_of(report, word):
    return next(line for line in report if word in line)


def test_the_report_describes_the_dataset(tmp_path):
    write_toy_shards(tmp_path, episodes=12, length=24)
    dataset = EpisodeDataset(tmp_path)
    report = check(tmp_path, tmp_path / "sheet.png")
    assert "toy, 288 frames of 32 x 32, 12 episodes" in report[0] and "2 shards of" in report[0]
    for split in ("train", "validation", "test"):
        episodes = dataset.episodes(split)
        line = line_of(report, f"{split}:")
        assert f"{counted(len(episodes), 'episode')}, {24 * len(episodes)} frames" in line
    x = dataset.read_rows("actions", 0, 288)[:, 0].astype(float)
    line = line_of(report, "target_x")
    assert f"mean {x.mean():.4g}, deviation {x.std():.4g}" in line and "0.00% outside" in line
    in_contact = (dataset.read_rows("contacts", 0, 288) > 0).mean()
    assert f"in contact in {in_contact:.1%}" in line_of(report, "in contact")
    rewards = dataset.read_rows("rewards", 0, 288)
    best = rewards.reshape(12, 24).max(1).mean()
    line = line_of(report, "rewards:")
    assert f"mean {rewards.mean():.3f}, greatest {rewards.max():.3f}" in line
    assert f"best reward of an episode: mean {best:.3f}" in line


def test_rewards_that_are_all_zero_are_warned_of(tmp_path, monkeypatch):
    write_toy_shards(tmp_path, episodes=4)
    dataset = EpisodeDataset(tmp_path)
    line = "  warning: all rewards are 0, so no controller can learn a task from them"
    assert line not in suspicions(dataset)
    read = dataset.read_rows
    monkeypatch.setattr(
        dataset, "read_rows", lambda name, *a: read(name, *a) * (0 if name == "rewards" else 1)
    )
    assert line in suspicions(dataset)


def test_the_sheet_shows_the_first_and_the_last_frame_of_an_episode(tmp_path):
    write_toy_shards(tmp_path, episodes=4, size=64)
    check(tmp_path, tmp_path / "mine.png")
    drawn = cv2.imread(str(tmp_path / "mine.png"))
    assert drawn is not None
    dataset = EpisodeDataset(tmp_path)
    assert np.array_equal(drawn[..., ::-1], contact_sheet(dataset))
    first, last = (dataset.read(0, "frames")[t] for t in (0, -1))
    assert np.array_equal(drawn[:64, :64, ::-1], first)
    assert np.array_equal(drawn[:64, 7 * 66 : 7 * 66 + 64, ::-1], last)


def test_the_fraction_outside_of_the_range_is_reported(tmp_path):
    write_toy_shards(tmp_path, episodes=6, length=20)
    overwrite(tmp_path, 0, "actions", slice(0, 12), [600, 100])
    report = check(tmp_path, tmp_path / "sheet.png")
    assert "10.00% outside of 0 to 512" in line_of(report, "target_x")
    assert "0.00% outside of 0 to 512" in line_of(report, "target_y")


def test_codes_are_counted(tmp_path):
    write_toy_shards(tmp_path, episodes=6, discrete=True)
    codes = EpisodeDataset(tmp_path).read_rows("actions", 0, 6 * 24)
    line = line_of(check(tmp_path, tmp_path / "sheet.png"), "actions:")
    assert f"stay {(codes == 0).mean():.1%}" in line and "down" in line


def test_episodes_without_actions_are_checked(tmp_path):
    frames = np.zeros((9, 8, 8, 3), np.uint8)
    description = {"image_size": [8, 8], "actions": ActionSpec("none", ()).as_dict()}
    write_shard(tmp_path / shard_name(0), [Episode(frames, None)], description)
    assert "  no actions" in check(tmp_path, tmp_path / "sheet.png")


@pytest.mark.parametrize("field", ["actions", "rewards", "states", "contacts"])
def test_a_nan_is_named_with_its_shard(tmp_path, field):
    write_toy_shards(tmp_path / "shards")
    overwrite(tmp_path / "shards", 1, field, 30, np.nan)
    message = error_of(tmp_path / "shards")
    assert f"{shard_name(1)} is damaged: {field} at its frame 30 are NaN" in message
    assert message.endswith(f"python preprocess.py SOURCE --run {tmp_path}")


@pytest.mark.parametrize("code", [-1, 5])
def test_an_invalid_code_is_named_with_its_shard(tmp_path, code):
    write_toy_shards(tmp_path, discrete=True)
    overwrite(tmp_path, 1, "actions", 7, code)
    message = error_of(tmp_path)
    assert f"{shard_name(1)} is damaged: the action code at its frame 7 is {code}" in message
    assert "0 to 4; delete that one file" in message


def test_unreadable_frames_are_found_in_every_shard(tmp_path):
    write_toy_shards(tmp_path, episodes=24, size=64)
    corrupt(tmp_path, 1)
    overwrite(tmp_path, 3, "rewards", 0, np.inf)
    message = error_of(tmp_path)
    assert f"{shard_name(1)} is damaged (" in message
    assert message.count("is damaged") == 1 and message.count("delete") == 1
    assert f", and so are {shard_name(3)}; delete those files" in message


@pytest.mark.parametrize(
    "ends, reason", [([24, 48, 40], "do not rise"), ([24, 48, 999], "do not rise to its 72")]
)
def test_wrong_episode_ends_are_refused(tmp_path, ends, reason):
    write_toy_shards(tmp_path, episodes=3)
    overwrite(tmp_path, 0, "episode_ends", slice(None), ends)
    message = error_of(tmp_path)
    assert shard_name(0) in message and reason in message and "delete that one file" in message


def test_a_rebuilt_shard_is_valid(tmp_path):
    write_toy_shards(tmp_path)
    corrupt(tmp_path, 0)
    with pytest.raises(ValueError, match=shard_name(0)):
        validate(EpisodeDataset(tmp_path))
    write_toy_shards(tmp_path)
    validate(EpisodeDataset(tmp_path))


def shift_actions(folder, steps):
    """Write toy episodes whose actions are `steps` late."""
    write_toy_shards(folder / "right", episodes=6)
    dataset = EpisodeDataset(folder / "right")
    episodes = []
    for number in range(6):
        actions = np.roll(dataset.read(number, "actions"), steps, axis=0)
        frames, states = (dataset.read(number, f) for f in ("frames", "states"))
        episodes.append(Episode(frames, actions, source=number, states=states))
    (folder / "wrong").mkdir()
    description = {k: v for k, v in dataset.description.items() if k != "format"}
    write_shard(folder / "wrong" / shard_name(0), episodes, description)
    return EpisodeDataset(folder / "wrong")


def test_actions_shifted_against_the_frames_are_noticed(tmp_path):
    line = describe(shift_actions(tmp_path, 1))[-1]
    assert "actions seem to be shifted" in line
    right = describe(EpisodeDataset(tmp_path / "right"))
    assert right[-1].endswith("; highest with actions[t]: aligned") and "aligned" not in line
    assert not any("frames change too little" in line for line in right), "one verdict"


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_short_episodes_are_checked_without_a_warning(tmp_path, length):
    write_toy_shards(tmp_path, length=length)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(check(tmp_path, tmp_path / "sheet.png")) > 4


def test_an_agent_that_never_moves_gives_no_alignment(tmp_path):
    still = Episode(
        frames=np.zeros((9, 8, 8, 3), np.uint8),
        actions=np.random.default_rng(0).uniform(0, 512, (9, 2)).astype(np.float32),
        states=np.ones((9, 2), np.float32),
    )
    description = {"image_size": [8, 8], "actions": POINTER.as_dict()}
    description |= {"state_names": ["agent_x", "agent_y"]}
    write_shard(tmp_path / shard_name(0), [still], description)
    assert "too little motion" in describe(EpisodeDataset(tmp_path))[-1]


def test_a_sheet_that_cannot_be_written_is_an_error(tmp_path):
    write_toy_shards(tmp_path)
    (tmp_path / "sheet.png").mkdir()
    with pytest.raises(ValueError, match=r"sheet\.png was not written"):
        check(tmp_path, tmp_path / "sheet.png")
