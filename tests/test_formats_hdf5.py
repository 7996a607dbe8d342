"""HDF5 files that others write: their names, their alignment, and what is refused."""

from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from recorded_steps import episodes, frames, times, values

from data.formats.raw_episodes import RawEpisodes


def write(path: Path, arrays: dict) -> Path:
    """Write arrays by their paths in the file."""
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return path


def robomimic(folder: Path, cameras=("agentview_image",)) -> Path:
    arrays = {"mask/train": np.array([b"demo_0", b"demo_1"])}
    for demo in range(11):  # demo_10 comes after demo_9
        group = f"data/demo_{demo}"
        arrays |= {
            f"{group}/actions": np.array([[0.1], [0.2], [0.3]]),
            f"{group}/rewards": np.array([0.0, 0.0, 1.0]),
            f"{group}/dones": np.array([0, 0, 1]),
            f"{group}/states": np.arange(6.0).reshape(3, 2) + demo,
            f"{group}/obs/robot0_eef_pos": np.zeros((3, 3)),
        }
        for camera in cameras:
            arrays[f"{group}/obs/{camera}"] = frames(demo, demo + 1, demo + 2)
            arrays[f"{group}/next_obs/{camera}"] = frames(demo + 1, demo + 2, demo + 3)
    return write(folder / "image.hdf5", arrays)


def test_robomimic_is_an_episode_a_demonstration_in_their_order(tmp_path):
    raw = episodes(robomimic(tmp_path))
    assert raw.lengths == (3,) * 11
    assert [times(raw, e)[0] for e in range(11)] == list(range(11))
    assert values(raw, 4, "states")[0] == [4, 5]
    assert raw.location(10).startswith("data/demo_10 of ")


def test_a_reward_of_robomimic_goes_to_the_frame_that_its_action_leads_to(tmp_path):
    path = robomimic(tmp_path)
    with h5py.File(path, "r+") as file:
        del file["data/demo_0/rewards"]
        file["data/demo_0/rewards"] = np.array([0.25, 0.5, 1.0])
    raw = episodes(path)
    assert np.allclose(values(raw, 0, "actions"), [[0.1], [0.2], [0.3]])
    assert values(raw, 0, "rewards") == [0, 0.25, 1]  # the outcome of the last one is no frame


def test_dones_of_robomimic_may_be_successes_and_are_left_aside(tmp_path):
    raw = episodes(robomimic(tmp_path))
    assert "terminals" not in raw.keys
    assert any("left aside" in remark and "dones" in remark for remark in raw.remarks)
    chosen = episodes(tmp_path / "image.hdf5", rename=["dones=terminals"])
    assert values(chosen, 0, "terminals") == [0, 0, 1]


def test_one_of_several_cameras_has_to_be_chosen(tmp_path):
    path = robomimic(tmp_path, ("agentview_image", "robot0_eye_in_hand_image"))
    with pytest.raises(ValueError, match="one of several") as problem:
        episodes(path)
    for camera in ("agentview_image", "robot0_eye_in_hand_image"):
        assert f"--frames-key obs/{camera}" in str(problem.value)
        assert episodes(path, f"obs/{camera}").lengths == (3,) * 11
    assert "next_obs" not in str(problem.value)
    with pytest.raises(ValueError, match="--frames-key: .* has no array 'obs/front'"):
        episodes(path, "obs/front")


def maniskill(folder: Path) -> Path:
    arrays = {}
    for number in range(2):
        arrays |= {
            f"traj_{number}/obs/sensor_data/base_camera/rgb": frames(0, 1, 2, 3),
            f"traj_{number}/obs/agent/qpos": np.zeros((4, 9)),
            f"traj_{number}/actions": np.array([[0.0], [1.0], [2.0]], np.float32),
            f"traj_{number}/rewards": np.array([10.0, 20.0, 30.0]),
            f"traj_{number}/terminated": np.array([False, False, True]),
            f"traj_{number}/truncated": np.array([False, False, False]),
            f"traj_{number}/success": np.array([False, False, True]),
        }
    return write(folder / "trajectory.h5", arrays)


def minari(folder: Path, terminated=True, image=lambda values: values) -> Path:
    """As Minari stores a dataset: FOLDER/data/main_data.hdf5, one more observation than actions."""
    (folder / "data").mkdir()
    with h5py.File(folder / "data" / "main_data.hdf5", "w") as file:
        for number in range(12):
            group = file.create_group(f"episode_{number}")
            observations = image(frames(0, 1, 2, 3))
            bytes_of = h5py.vlen_dtype(np.uint8) if isinstance(observations, list) else None
            group.create_dataset("observations", data=observations, dtype=bytes_of)
            group["actions"] = np.array([5, 6, 7 + number])
            group["rewards"] = np.array([10.0, 20.0, 30.0])
            group["terminations"] = np.array([False, False, terminated])
            group["truncations"] = np.array([False, False, not terminated])
            group["infos/seed"] = np.zeros(4)
    return folder


def check_one_more_frame(raw: RawEpisodes) -> None:
    """The last action is repeated, since it leads nowhere; nothing is earned at the first frame."""
    assert raw.lengths[0] == 4 and times(raw, 0) == [0, 1, 2, 3]
    assert values(raw, 0, "rewards") == [0, 10, 20, 30]
    assert values(raw, 0, "terminals") == [False, False, False, True]
    assert any("one more frame" in remark for remark in raw.remarks)


def test_maniskill_has_one_more_frame_than_actions(tmp_path):
    raw = episodes(maniskill(tmp_path))
    check_one_more_frame(raw)
    assert values(raw, 1, "actions") == [[0], [1], [2], [2]]


def test_minari_has_one_more_frame_than_actions(tmp_path):
    raw = episodes(minari(tmp_path))
    check_one_more_frame(raw)
    assert [values(raw, e, "actions") for e in (0, 11)] == [[5, 6, 7, 7], [5, 6, 18, 18]]


def test_parts_of_an_action_are_asked_about_and_not_left_aside_in_silence(tmp_path):
    with h5py.File(minari(tmp_path) / "data" / "main_data.hdf5", "a") as file:
        for group in file.values():
            group.move("actions", "moved")
            group["actions/move"] = group["actions/jump"] = group.pop("moved")[:]
    with pytest.raises(ValueError, match="has no actions, but actions/jump, actions/move; choose"):
        episodes(tmp_path)
    aside = "actions/jump= actions/move="
    with pytest.raises(ValueError, match=f"--rename {aside}$"):
        episodes(tmp_path)
    assert "actions" not in episodes(tmp_path, rename=tuple(aside.split())).keys
    chosen = episodes(tmp_path, rename=("actions/move=actions",))
    assert values(chosen, 0, "actions") == [5, 6, 7, 7]


def test_a_time_limit_of_minari_is_no_terminal(tmp_path):
    raw = episodes(minari(tmp_path, terminated=False))
    assert len(raw.lengths) == 12 and not any(values(raw, 0, "terminals"))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_images_that_minari_stores_as_files_are_decoded(tmp_path, suffix):
    def encoded(images):
        red_only = images * np.array([1, 0, 0], np.uint8)
        return [cv2.imencode(suffix, image[..., ::-1])[1].ravel() for image in red_only * 50]

    raw = episodes(minari(tmp_path, image=encoded))
    found = raw.read(0, "frames")
    assert found.shape == (4, 8, 8, 3) and found.dtype == np.uint8
    assert abs(found[..., 0].mean((1, 2)) - [0, 50, 100, 150]).max() < 3
    assert found[..., 1:].max() < 3  # RGB, not BGR


def test_an_image_that_cannot_be_decoded_is_named(tmp_path):
    def encoded(images):
        rows = [cv2.imencode(".jpg", image)[1].ravel() for image in images]
        return [*rows[:2], np.zeros(9, np.uint8), rows[3]]

    raw = episodes(minari(tmp_path, image=encoded))
    with pytest.raises(ValueError, match="row 2 is no image"):
        raw.read(3, "frames")


def stable_worldmodel(folder: Path, **changed) -> Path:
    arrays = {
        "pixels": frames(0, 1, 2, 10, 11),
        "action": np.array([[1], [2], [np.nan], [3], [np.nan]]),
        "reward": np.array([np.nan, 0.5, 1.0, np.nan, 0.25]),
        "terminated": np.array([False, False, True, False, False]),
        "truncated": np.array([False, False, False, False, True]),
        "ep_len": np.array([3, 2], np.int32),
        "ep_offset": np.array([0, 3]),
    }
    return write(folder / "a.h5", arrays | changed)


def test_stable_worldmodel_has_nan_for_the_action_that_leads_nowhere(tmp_path):
    raw = episodes(stable_worldmodel(tmp_path))
    assert raw.lengths == (3, 2) and times(raw, 1) == [10, 11]
    assert values(raw, 0, "actions") == [[1], [2], [2]]
    assert values(raw, 1, "actions") == [[3], [3]]
    assert values(raw, 0, "rewards") == [0, 0.5, 1] and values(raw, 1, "rewards") == [0, 0.25]
    assert values(raw, 0, "terminals") == [False, False, True]
    assert not any(values(raw, 1, "terminals"))


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"ep_len": np.array([3, 1])}, "disagree|ends after 4 steps, but it holds 5"),
        ({"ep_len": np.array([3, 0])}, "episode 1 has 0 steps"),
        ({"ep_offset": np.array([0, 2])}, "disagree"),
        ({"ep_len": np.array([3.0, 2.0])}, "whole numbers are needed"),
        (
            {"ep_len": np.array([3, 2, 4]), "ep_offset": np.array([0, 3, 5])},
            "ends after 9 steps, but it holds 5",
        ),
    ],
)
def test_lengths_that_do_not_fit_are_refused(tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        episodes(stable_worldmodel(tmp_path, **changed))


def d4rl(folder: Path, **changed) -> Path:
    arrays = {
        "observations": frames(0, 1, 2, 10, 11, 20),
        "actions": np.arange(6.0)[:, None],
        "rewards": np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        "terminals": np.array([0, 0, 1, 0, 0, 0], bool),
        "timeouts": np.array([0, 0, 0, 0, 1, 0], bool),
        "infos/qpos": np.zeros((6, 2)),
    }
    return write(folder / "d4rl.hdf5", arrays | changed)


def test_d4rl_is_cut_at_terminals_and_timeouts_and_keeps_them_apart(tmp_path):
    raw = episodes(d4rl(tmp_path))
    assert raw.lengths == (3, 2, 1)
    assert [times(raw, e) for e in range(3)] == [[0, 1, 2], [10, 11], [20]]
    assert values(raw, 0, "terminals") == [False, False, True]
    assert not any(values(raw, 1, "terminals"))  # a time limit
    assert values(raw, 0, "rewards") == [0, 1, 3] and values(raw, 1, "rewards") == [0, 5]
    assert any("cut there into 3 episodes" in remark for remark in raw.remarks)


def test_vectors_are_told_from_images(tmp_path):
    with pytest.raises(ValueError, match=r"\(6, 17\), which are vectors; a world of images"):
        episodes(d4rl(tmp_path, observations=np.zeros((6, 17))))


def test_steps_in_a_row_need_the_ends_of_episodes(tmp_path):
    path = write(tmp_path / "a.h5", {"frames": frames(0, 1), "actions": np.zeros(2, int)})
    with pytest.raises(ValueError, match="2 steps in a row without where episodes end; add ep_len"):
        episodes(path)
    assert episodes(tmp_path).lengths == (2,)  # in a folder, a file is an episode


def test_a_folder_of_files_of_one_episode_each_is_read(tmp_path):
    for number in range(11):
        write(
            tmp_path / f"episode_{number}.hdf5",
            {
                "observations/images/top": frames(number, number + 1),
                "observations/qpos": np.zeros((2, 14)),
                "action": np.full((2, 1), float(number)),
            },
        )
    raw = episodes(tmp_path, "observations/images/top", ["action=actions"])
    assert raw.lengths == (2,) * 11 and times(raw, 10) == [10, 11]
    assert values(raw, 3, "actions") == [[3], [3]] and len(raw.files) == 11
    write(tmp_path / "other.h5", {"traj_0/obs": frames(1), "traj_0/terminated": np.ones(1, bool)})
    with pytest.raises(ValueError, match="is laid out as ManiSkill"):
        episodes(tmp_path, "observations/images/top", ["action=actions"])


# -- what lies in other files is never read ------------------------------------------------------


def external_storage(file: h5py.File, folder: Path) -> None:
    (folder / "secret").write_bytes(bytes(2 * 8 * 8 * 3))
    file.create_dataset("frames", (2, 8, 8, 3), "u1", external=[(str(folder / "secret"), 0, 384)])


def external_link(file: h5py.File, folder: Path) -> None:
    write(folder / "other.h5", {"x": frames(0, 1)})
    file["frames"] = h5py.ExternalLink(str(folder / "other.h5"), "x")


def link_to_a_link(file: h5py.File, folder: Path) -> None:
    write(folder / "other.h5", {"x": frames(0, 1)})
    file["traj_1/frames"] = frames(0, 1)
    file["out"] = h5py.ExternalLink(str(folder / "other.h5"), "/")
    file["traj_0/frames"] = h5py.SoftLink("/out/x")
    for group in ("traj_0", "traj_1"):
        file[f"{group}/actions"] = np.zeros(2, int)


def external_group(file: h5py.File, folder: Path) -> None:
    write(folder / "other.h5", {"demo_0/frames": frames(0, 1)})
    file["data"] = h5py.ExternalLink(str(folder / "other.h5"), "/")


def virtual(file: h5py.File, folder: Path) -> None:
    write(folder / "other.h5", {"x": frames(0, 1)})
    layout = h5py.VirtualLayout((2, 8, 8, 3), "u1")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "x", (2, 8, 8, 3))
    file.create_virtual_dataset("frames", layout)


@pytest.mark.parametrize(
    "plant", [external_storage, external_link, link_to_a_link, external_group, virtual]
)
def test_values_in_another_file_are_refused(tmp_path, plant):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        plant(file, tmp_path)
    with pytest.raises(ValueError, match="lies in another file, which is never read") as problem:
        episodes(tmp_path / "a.h5").read(0, "frames")
    assert "\n" not in str(problem.value)


def test_a_link_within_the_file_is_followed_and_a_circle_ends(tmp_path):
    path = write(
        tmp_path / "a.h5", {"traj_0/rgb": frames(0, 1), "traj_0/actions": np.zeros(2, int)}
    )
    with h5py.File(path, "r+") as file:
        file["traj_0/frames"] = h5py.SoftLink("/traj_0/rgb")
        del file["traj_0/rgb"]
    with pytest.raises(ValueError, match="its frames cannot be read"):  # it leads nowhere
        episodes(path)
    with h5py.File(path, "r+") as file:
        file["kept"] = frames(0, 1)
        del file["traj_0/frames"]
        file["traj_0/frames"] = h5py.SoftLink("/kept")
        del file["kept"]
        file["others/kept"] = frames(0, 1)
        del file["traj_0/frames"]
        file["traj_0/frames"] = h5py.SoftLink("/others/kept")
    assert times(episodes(path), 0) == [0, 1]
    with h5py.File(path, "r+") as file:
        file["traj_0/again"] = h5py.SoftLink("/traj_0")
    with pytest.raises(ValueError, match="groups within each other"):
        episodes(path)


# -- damage, and sizes -----------------------------------------------------------------------------


def test_a_flipped_bit_in_a_checked_array_is_refused(tmp_path):
    path, stored = tmp_path / "a.h5", frames(*range(6)).reshape(2, 3, 8, 8, 3)
    with h5py.File(path, "w") as file:
        file.create_dataset("frames", data=stored, chunks=stored.shape, fletcher32=True)
    content = bytearray(path.read_bytes())
    content[content.index(stored.tobytes()) + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="its frames cannot be read .*get it again"):
        episodes(path).read(0, "frames")


def test_an_unknown_compression_is_one_line(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        space = h5py.h5s.create_simple((1, 2, 8, 8, 3))
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk((1, 2, 8, 8, 3))
        settings.set_filter(31999, h5py.h5z.FLAG_OPTIONAL)  # no codec has this number
        dataset = h5py.h5d.create(file.id, b"frames", h5py.h5t.NATIVE_UINT8, space, settings)
        dataset.write_direct_chunk((0, 0, 0, 0, 0), bytes(384))
    with pytest.raises(ValueError, match="its frames cannot be read") as problem:
        episodes(path).read(0, "frames")
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    "shape, message",
    [
        ((1, 10**9, 64, 64, 3), "of memory; store shorter episodes"),
        ((10**12, 1, 64, 64, 3), "declares 1000000000000 episodes"),
    ],
)
def test_a_declared_size_beyond_all_memory_is_refused_at_once(tmp_path, shape, message):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("frames", shape, "u1", chunks=(1, 1, 64, 64, 3))
    with pytest.raises(ValueError, match=message):
        episodes(tmp_path / "a.h5")


@pytest.mark.parametrize(
    "content, kind",
    [(b"<!DOCTYPE html>", "an HTML page"), (b"PAR1", "a Parquet file"), (b"", "empty")],
)
def test_a_file_of_another_kind_is_named_for_what_it_is(tmp_path, content, kind):
    (tmp_path / "a.h5").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.h5 is {kind}.*not an HDF5 file"):
        episodes(tmp_path / "a.h5")


def test_hundreds_of_arrays_make_no_long_message(tmp_path):
    path = write(tmp_path / "a.h5", {f"sensor/{i}_of_many": np.zeros(3) for i in range(400)})
    with pytest.raises(ValueError, match="and 395 more") as problem:
        episodes(path)
    assert len(str(problem.value)) < 700
