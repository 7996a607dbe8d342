from pathlib import Path

import h5py
import numpy as np
import pytest

from data.arrays import Arrays

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
@pytest.mark.parametrize("colour_first", [False, True])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_every_form_is_imported(tmp_path, write, colour_first, kind):
    frames = FRAMES.transpose(0, 1, 4, 2, 3) if colour_first else FRAMES
    source = Arrays(str(write(tmp_path, frames=frames.astype(kind), actions=CODES)))
    episodes = [e for shard in range(source.shards) for e in source.make(shard)]
    assert len(episodes) == source.sources == 3
    for number, episode in enumerate(episodes):
        assert np.array_equal(episode.frames, FRAMES[number])
        assert np.array_equal(episode.actions, CODES[number])
        assert episode.source == number
    assert source.description()["image_size"] == [16, 24]
    assert source.description()["actions"]["kind"] == "discrete"


def test_continuous_actions_know_their_range(tmp_path):
    source = Arrays(str(write_h5(tmp_path, frames=FRAMES, actions=VECTORS)))
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
    made = Arrays(str(tmp_path)).make(0)
    assert [len(e) for e in made] == [5, 2, 4]
    assert made[2].rewards is not None and made[2].rewards[3] == pytest.approx(0.3)


def test_fractions_need_a_scale_and_get_it(tmp_path):
    path = str(write_h5(tmp_path, frames=FRAMES / 255.0, actions=CODES))
    with pytest.raises(ValueError, match="look like fractions; give --scale 255"):
        Arrays(path).description()
    made = Arrays(path, scale=255.0).make(0)
    assert np.array_equal(made[1].frames, FRAMES[1])


def test_a_doubtful_layout_is_asked_for(tmp_path):
    frames = RANDOM.integers(0, 256, (2, 4, 3, 9, 3), dtype=np.uint8)
    path = str(write_h5(tmp_path, frames=frames, actions=CODES[:2, :4]))
    with pytest.raises(ValueError, match="give --layout CHW or --layout HWC"):
        Arrays(path).description()
    assert Arrays(path, "HWC").description()["image_size"] == [3, 9]
    assert Arrays(path, "CHW").description()["image_size"] == [9, 3]


@pytest.mark.parametrize("write", FORMS)
@pytest.mark.parametrize(
    "arrays, answer",
    [
        ({"frames": FRAMES}, "has no actions"),
        ({"frames": FRAMES[..., :2], "actions": CODES}, "no axis of 3 colours"),
        ({"frames": FRAMES, "actions": CODES[:, :4]}, r"5.* frames.*(4 actions|\(3, 4\))"),
        ({"frames": FRAMES * np.float32("nan"), "actions": CODES}, "NaN or infinity"),
        ({"frames": FRAMES * 2.0, "actions": CODES}, "0 to 255 is needed"),
        ({"frames": FRAMES, "actions": VECTORS * np.nan}, "NaN or infinity in its actions"),
        ({"frames": FRAMES, "actions": -1 - CODES}, "codes start at 0"),
    ],
)
def test_a_fault_is_named(tmp_path, write, arrays, answer):
    with pytest.raises(ValueError, match=answer) as problem:
        source = Arrays(str(write(tmp_path, **arrays)))
        source.description()
        source.make(0)
    assert "\n" not in str(problem.value)


def test_frames_of_two_sizes_are_named(tmp_path):
    np.savez(tmp_path / "0.npz", frames=FRAMES[0], actions=CODES[0])
    np.savez(tmp_path / "1.npz", frames=FRAMES[1, :, :8], actions=CODES[1])
    with pytest.raises(ValueError, match=r"episode 1 .* 8 x 24 pixels, .* 16 x 24"):
        Arrays(str(tmp_path)).make(0)


def test_a_cut_file_and_nothing_at_all_are_named(tmp_path):
    path = write_h5(tmp_path, frames=FRAMES, actions=CODES)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="cannot be read as HDF5"):
        Arrays(str(path)).description()
    with pytest.raises(ValueError, match="is none of these"):
        Arrays(str(tmp_path / "nothing")).description()
