from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

import preprocess
from data.actions import ActionSpec
from data.arrays.array_source import ArraySource
from data.shards.episode_dataset import EpisodeDataset
from models.controllers.task_cost import TaskCost, TaskCostConfig
from models.tokenizers.tokenizer import LatentSpec

RANDOM = np.random.default_rng(0)
FRAMES = RANDOM.integers(0, 256, (3, 5, 16, 24, 3), dtype=np.uint8)
CODES = RANDOM.integers(0, 4, (3, 5))
VECTORS = RANDOM.normal(size=(3, 5, 2)).astype(np.float32)


def write_h5(folder: Path, **arrays) -> Path:
    with h5py.File(folder / "a.h5", "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return folder / "a.h5"


def write_npy(folder: Path, **arrays) -> Path:
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)
    return folder


def write_stem(folder: Path, **arrays) -> Path:
    for name, values in arrays.items():
        np.save(folder / f"mine_{name}.npy", values)
    return folder / "mine"


def write_npz(folder: Path, **arrays) -> Path:
    for number in range(len(next(iter(arrays.values())))):
        np.savez(folder / f"{number}.npz", **{k: v[number] for k, v in arrays.items()})
    return folder


FORMS = [write_h5, write_npy, write_stem, write_npz]


@pytest.mark.parametrize("write", FORMS)
@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_every_file_format_is_imported(tmp_path, write, channels_first, kind):
    frames = FRAMES.transpose(0, 1, 4, 2, 3) if channels_first else FRAMES
    source = ArraySource(str(write(tmp_path, frames=frames.astype(kind), actions=CODES)))
    episodes = [e for shard in range(source.num_shards) for e in source.make_shard(shard)]
    assert len(episodes) == source.num_sources == 3
    for number, episode in enumerate(episodes):
        assert np.array_equal(episode.frames, FRAMES[number])
        assert episode.actions is not None and np.array_equal(episode.actions, CODES[number])
        assert episode.source == number
    assert source.description()["image_size"] == [16, 24]
    assert source.description()["actions"]["kind"] == "discrete"


def test_continuous_actions_get_their_range_from_the_data(tmp_path):
    source = ArraySource(str(write_h5(tmp_path, frames=FRAMES, actions=VECTORS)))
    spec = source.description()["actions"]
    assert spec["kind"] == "continuous" and spec["names"] == ["action_0", "action_1"]
    assert np.allclose(spec["low"], VECTORS.min((0, 1)))
    assert np.allclose(spec["high"], VECTORS.max((0, 1)))


def test_ragged_episodes_and_their_rewards_are_kept(tmp_path):
    for number, length in enumerate((5, 2, 4)):
        np.savez(
            tmp_path / f"{number}.npz",
            frames=FRAMES[number, :length],
            actions=VECTORS[number, :length],
            rewards=np.arange(length) / 10,
        )
    episodes = ArraySource(str(tmp_path)).make_shard(0)
    assert [len(e) for e in episodes] == [5, 2, 4]
    assert episodes[2].rewards is not None and episodes[2].rewards[3] == pytest.approx(0.3)


def test_fractions_need_a_scale(tmp_path):
    path = str(write_h5(tmp_path, frames=FRAMES / 255.0, actions=CODES))
    with pytest.raises(ValueError, match="look like fractions; give --scale 255"):
        ArraySource(path).description()
    episodes = ArraySource(path, scale=255.0).make_shard(0)
    assert np.array_equal(episodes[1].frames, FRAMES[1])


def test_an_ambiguous_layout_has_to_be_given(tmp_path):
    frames = RANDOM.integers(0, 256, (2, 4, 3, 9, 3), dtype=np.uint8)
    path = str(write_h5(tmp_path, frames=frames, actions=CODES[:2, :4]))
    with pytest.raises(ValueError, match="give --layout CHW or --layout HWC"):
        ArraySource(path).description()
    assert ArraySource(path, "HWC").description()["image_size"] == [3, 9]
    assert ArraySource(path, "CHW").description()["image_size"] == [9, 3]


@pytest.mark.parametrize("write", FORMS)
@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"actions": CODES}, "has no frames|holds no recordings|is none of these"),
        ({"frames": FRAMES[..., :2], "actions": CODES}, "no axis of 3 colors"),
        ({"frames": FRAMES, "actions": CODES[:, :3]}, "has 5 frames but 3 actions"),
        ({"frames": FRAMES * np.float32("nan"), "actions": CODES}, "NaN or infinity"),
        ({"frames": FRAMES * 2.0, "actions": CODES}, "0 to 255 is needed"),
        ({"frames": FRAMES, "actions": VECTORS * np.nan}, "NaN or infinity in its actions"),
        ({"frames": FRAMES, "actions": -1 - CODES}, "codes start at 0"),
        ({"frames": FRAMES, "actions": CODES + 10**9}, "end below 65536"),
        ({"frames": FRAMES, "actions": CODES.astype(complex)}, "whole numbers or"),
        ({"frames": FRAMES / 127.5 - 1, "actions": CODES}, "shift them before"),
        ({"frames": FRAMES[:, :0], "actions": CODES[:, :0]}, "has 0 steps"),
        ({"frames": FRAMES, "actions": CODES, "rewards": VECTORS[..., 0] * np.nan}, "its rewards"),
        ({"frames": FRAMES, "actions": CODES, "rewards": VECTORS}, "has rewards of"),
    ],
)
def test_a_fault_is_named(tmp_path, write, arrays, message):
    with pytest.raises(ValueError, match=message) as problem:
        source = ArraySource(str(write(tmp_path, **arrays)))
        source.description()
        source.make_shard(0)
    assert "\n" not in str(problem.value)


def test_all_files_with_values_that_are_not_finite_are_named(tmp_path):
    """With step and column; a step that was removed would leave a gap in the actions."""
    vectors, rewards = VECTORS.copy(), np.ones((3, 5), np.float32)
    vectors[0, 3, 1], vectors[2, 0, 0], rewards[1, 2] = np.nan, np.inf, np.nan
    path = str(write_npz(tmp_path, frames=FRAMES, actions=vectors, rewards=rewards))
    with pytest.raises(ValueError, match="actions at step 3, column 1, and .*; end the") as problem:
        ArraySource(path).description()
    assert [f"{number}.npz" in str(problem.value) for number in range(3)] == [True] * 3
    path = str(write_npz(tmp_path, frames=FRAMES, actions=VECTORS, rewards=rewards))
    with pytest.raises(ValueError, match="1.npz has NaN or infinity in its rewards at step 2; end"):
        ArraySource(path).description()


@pytest.mark.parametrize("write", FORMS)
def test_frames_without_actions_are_imported(tmp_path, write):
    source = ArraySource(str(write(tmp_path, frames=FRAMES, rewards=CODES)))
    episodes = source.make_shard(0)
    assert [len(e) for e in episodes] == [5, 5, 5] and source.num_sources == 3
    for number, episode in enumerate(episodes):
        assert np.array_equal(episode.frames, FRAMES[number]) and episode.actions is None
        assert episode.rewards is not None and len(episode.rewards) == 5
    assert ActionSpec.from_dict(source.description()["actions"]) == ActionSpec("none", ())


@pytest.mark.parametrize("write", [write_h5, write_npz])
def test_a_misnamed_array_of_actions_is_named(tmp_path, write):
    source = ArraySource(str(write(tmp_path, frames=FRAMES, action=CODES)))
    with pytest.raises(
        ValueError, match="holds action, which may be actions; say so with --rename action=actions"
    ):
        source.description()


def test_frames_of_two_sizes_are_named(tmp_path):
    np.savez(tmp_path / "0.npz", frames=FRAMES[0], actions=CODES[0])
    np.savez(tmp_path / "1.npz", frames=FRAMES[1, :, :8], actions=CODES[1])
    with pytest.raises(ValueError, match=r"1\.npz has frames of 8 x 24 pixels, .* 16 x 24"):
        ArraySource(str(tmp_path)).make_shard(0)


def test_a_truncated_file_and_a_missing_one_are_named(tmp_path):
    path = write_h5(tmp_path, frames=FRAMES, actions=CODES)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"a\.h5 \(HDF5\) cannot be read"):
        ArraySource(str(path)).description()
    with pytest.raises(ValueError, match="is none of these"):
        ArraySource(str(tmp_path / "nothing")).description()


def test_all_damaged_files_of_a_folder_are_named_together(tmp_path):
    whole = write_h5(tmp_path, frames=FRAMES, actions=CODES).read_bytes()
    (tmp_path / "b.h5").write_bytes(whole[:500])
    with pytest.raises(ValueError, match=r"b\.h5 .* cannot be read .*; get it again, or move it"):
        ArraySource(str(tmp_path)).description()
    (tmp_path / "c.h5").write_bytes(whole[:500])
    (tmp_path / "d.h5").write_bytes(b"a page of an error")
    message = (
        r"b\.h5 .*\), and c\.h5, d\.h5 cannot be read either; get them again, or move them away$"
    )
    with pytest.raises(ValueError, match=message):
        ArraySource(str(tmp_path)).description()


GOOD = {"frames": FRAMES[0], "actions": CODES[0]}


@pytest.mark.parametrize(
    "second, message",
    [
        (GOOD | {"frames": FRAMES[1, ..., :2]}, r"1\.npz has frames of \(16, 24, 2\)"),
        (GOOD | {"frames": FRAMES[1, ..., 0]}, r"1\.npz has frames of \(16, 24\)"),
        (GOOD | {"frames": FRAMES[1].transpose(0, 3, 1, 2)}, r"1\.npz has frames of \(3, 16, 24\)"),
        (GOOD | {"frames": FRAMES[1, :4]}, r"1\.npz has 4 frames but 5 actions"),
        (GOOD | {"actions": CODES[1, :0]}, r"1\.npz has 0 steps"),
        (GOOD | {"actions": VECTORS[1]}, r"1\.npz has actions of \(2,\) .*0\.npz of \(\)"),
        (GOOD | {"actions": np.int64(3)}, r"1\.npz has actions of one number"),
        (GOOD | {"rewards": np.zeros(5)}, r"1\.npz holds .*rewards, but .*0\.npz holds"),
        ({"frames": FRAMES[1]}, r"1\.npz holds frames, but .*0\.npz holds actions, frames"),
    ],
)
def test_the_file_that_differs_from_the_first_is_named(tmp_path, second, message):
    np.savez(tmp_path / "0.npz", **GOOD)
    np.savez(tmp_path / "1.npz", **second)
    with pytest.raises(ValueError, match=message) as problem:
        source = ArraySource(str(tmp_path))
        source.description()
        source.make_shard(0)
    assert "\n" not in str(problem.value)


def test_a_damaged_npz_is_named(tmp_path):
    np.savez_compressed(tmp_path / "0.npz", **GOOD)
    np.savez_compressed(tmp_path / "1.npz", **GOOD)
    data = bytearray((tmp_path / "1.npz").read_bytes())
    data[200:400] = bytes(200)
    (tmp_path / "1.npz").write_bytes(data)
    with pytest.raises(ValueError, match=r"1\.npz: its frames cannot be read"):
        ArraySource(str(tmp_path)).make_shard(0)


def test_a_scale_for_bytes_is_refused(tmp_path):
    path = str(write_h5(tmp_path, frames=FRAMES, actions=CODES))
    with pytest.raises(ValueError, match="--scale 255 is too large"):
        ArraySource(path, scale=255.0).description()


def test_a_dark_episode_among_scaled_ones_is_kept(tmp_path):
    frames = FRAMES / 255.0
    frames[1] *= 0.003
    path = str(write_h5(tmp_path, frames=frames, actions=CODES))
    assert ArraySource(path, scale=255.0).make_shard(0)[1].frames.max() <= 1


def test_stored_actions_lie_within_their_range(tmp_path):
    numbers = RANDOM.normal(size=(3, 5, 2))
    numbers[..., 1] = 7.0
    source = ArraySource(str(write_h5(tmp_path, frames=FRAMES, actions=numbers)))
    spec = source.description()["actions"]
    for episode in source.make_shard(0):
        assert episode.actions is not None
        assert (episode.actions >= spec["low"]).all() and (episode.actions <= spec["high"]).all()
    assert spec["low"][1] == 7.0 and spec["high"][1] == 8.0  # never changes, yet has a width


def test_states_are_imported_with_names(tmp_path):
    path = write_h5(tmp_path, frames=FRAMES, actions=CODES, states=np.ones((3, 5, 4)))
    source = ArraySource(str(path))
    assert source.description()["state_names"] == ["state_0", "state_1", "state_2", "state_3"]
    line = "states are state_0, state_1, state_2, state_3; --state-names gives them names"
    assert line in source.remarks
    states = source.make_shard(0)[0].states
    assert states is not None and states.shape == (5, 4) and states.dtype == np.float32


def test_states_get_the_names_that_are_given_and_angles_are_known(tmp_path, capsys):
    states = np.random.default_rng(0).uniform(0, 6, (3, 5, 3))
    path = write_h5(tmp_path, frames=FRAMES, actions=VECTORS, rewards=CODES, states=states)
    names = ("cup_x", "cup_y", "cup_angle")
    config = preprocess.ArraysConfig(path, tmp_path / "run", state_names=names, num_workers=1)
    preprocess.arrays(config)
    said = "arrays: states are cup_x, cup_y, cup_angle; angles, in radians: cup_angle"
    assert said in capsys.readouterr().out.splitlines()
    stored = EpisodeDataset(tmp_path / "run" / "shards").state_names
    assert stored == names
    actions = EpisodeDataset(tmp_path / "run" / "shards").actions
    latents = LatentSpec("continuous", (1, 2), 2)
    cost = TaskCost(TaskCostConfig(state_names=stored), latents, actions)
    assert cost.is_angle == [False, False, True]  # which its read-out turns into sine and cosine
    with pytest.raises(ValueError, match="state_names .*, but now it is .*--restart"):
        preprocess.arrays(replace(config, state_names=("x", "y", "z")))


def test_an_angle_in_degrees_is_warned_of(tmp_path):
    path = write_h5(tmp_path, frames=FRAMES, actions=CODES, states=np.full((3, 5, 2), 90.0))
    lines = ArraySource(str(path), state_names=("x", "angle")).remarks
    assert any("warning: angle reaches 90; if that is in degrees, convert" in x for x in lines)


@pytest.mark.parametrize("names", [("x",), ("x", "x"), ("x", " "), ("x", "y", "angle")])
def test_state_names_that_do_not_fit_are_refused(tmp_path, names):
    path = write_h5(tmp_path, frames=FRAMES, actions=CODES, states=np.ones((3, 5, 2)))
    with pytest.raises(ValueError, match="--state-names x.* has 2 numbers.* give 2 different"):
        ArraySource(str(path), state_names=names).description()
    path = write_h5(tmp_path, frames=FRAMES, actions=CODES)
    with pytest.raises(ValueError, match="--state-names x.* has no states; leave the flag out"):
        ArraySource(str(path), state_names=names).description()


def test_shards_have_a_limited_size(tmp_path, monkeypatch):
    path = write_h5(tmp_path, frames=FRAMES, actions=CODES)
    monkeypatch.setattr("data.arrays.array_source.BYTES_PER_SHARD", FRAMES[0].nbytes)
    source = ArraySource(str(path))
    assert source.num_shards == 3
    assert [len(source.make_shard(shard)) for shard in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int64])
def test_frames_of_zeros_and_ones_are_not_imported_black(tmp_path, kind):
    path = str(write_h5(tmp_path, frames=(FRAMES > 127).astype(kind), actions=CODES))
    with pytest.raises(ValueError, match=r"from 0 to 1, .* would be black; give --scale 255"):
        ArraySource(path).description()
    source = ArraySource(path, scale=255.0)
    assert np.array_equal(source.make_shard(0)[1].frames, (FRAMES[1] > 127) * np.uint8(255))
    assert "up to 1, times 255: rounded, at most 255 of 255" in source.remarks[0]


@pytest.mark.parametrize("scale", [0.0, 1e-9, 0.003])
def test_a_scale_that_makes_frames_black_is_refused(tmp_path, scale):
    path = str(write_h5(tmp_path, frames=FRAMES, actions=CODES))
    with pytest.raises(ValueError, match=r"--scale .* makes the frames of .* black: 255 becomes"):
        ArraySource(path, scale=scale).description()


def test_frames_that_are_rounded_or_black_are_spoken_of(tmp_path):
    for number, (frames, remark) in enumerate([
        (FRAMES, ""),
        (FRAMES + np.float32(0.3) * (FRAMES < 200), "frames of float32 up to 255: rounded"),
        (FRAMES.astype(np.int32), "frames of int32 up to 255: rounded"),
        (FRAMES * 0, "warning: all frames of 3 episodes that were looked at are black"),
    ]):  # fmt: skip
        folder = tmp_path / str(number)
        folder.mkdir()
        remarks = "\n".join(ArraySource(str(write_npz(folder, frames=frames))).remarks)
        assert remarks.startswith(remark), remarks


def test_a_dark_episode_of_whole_numbers_among_others_is_kept(tmp_path):
    frames = FRAMES.copy()
    frames[1] = frames[1] > 200
    path = str(write_h5(tmp_path, frames=frames, actions=CODES))
    assert ArraySource(path).make_shard(0)[1].frames.max() == 1


def test_a_second_session_is_imported_like_the_first(tmp_path, capsys):
    for name, high in (("first", 4), ("second", 3)):
        (tmp_path / name).mkdir()
        write_npy(tmp_path / name, frames=FRAMES, actions=np.minimum(CODES * 2, high))
    runs = tmp_path / "run 1", tmp_path / "run 2"
    preprocess.arrays(preprocess.ArraysConfig(tmp_path / "first", runs[0], num_workers=1))
    preprocess.arrays(
        preprocess.ArraysConfig(tmp_path / "second", runs[1], like=runs[0], num_workers=1)
    )
    first, second = (EpisodeDataset(run / "shards").actions for run in runs)
    assert first == second and first.size == 5
    assert "arrays: actions: whole numbers (T,), taken as codes 0 to 4" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--like gives the action space; leave out --low"):
        preprocess.arrays(preprocess.ArraysConfig(tmp_path, runs[1], like=runs[0], low=(1.0,)))


def test_frames_of_several_sizes_are_averaged_to_one(tmp_path):
    for number, side in enumerate((32, 64, 48)):
        frames = np.zeros((4, side, side + 16, 3), np.uint8)
        frames[:, : side // 2] = 100 + number  # the upper half
        np.savez(tmp_path / f"{number}.npz", frames=frames, actions=np.arange(4))
    preprocess.arrays(
        preprocess.ArraysConfig(tmp_path, tmp_path / "run", num_workers=1, resolution=16)
    )
    dataset = EpisodeDataset(tmp_path / "run" / "shards")
    assert dataset.image_size == (16, 16) and dataset.description["settings"]["resolution"] == 16
    for episode in range(3):
        frames = dataset.read(episode, "frames")
        assert (frames[:, :8] == 100 + episode).all() and (frames[:, 8:] == 0).all()
    assert "resolution" not in ArraySource(str(tmp_path)).description()["settings"]
