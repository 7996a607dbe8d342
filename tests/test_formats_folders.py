"""Folders of images and of videos with a table of actions; MineRL; and folders of other kinds."""

import json
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from recorded_steps import episodes, values

ACTIONS = "step,action\n0,3\n1,0\n2,1\n"


def images(folder: Path, numbers=(0, 1, 2), suffix=".png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        image = np.zeros((8, 12, 3), np.uint8)
        image[..., 2] = 10 * number  # red, in OpenCV's order
        cv2.imwrite(str(folder / f"frame_{number}{suffix}"), image)
    return folder


def video(path: Path, reds=(0, 60, 120, 180, 240)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for red in reds:
            pixels = np.zeros((48, 64, 3), np.uint8)
            pixels[..., 0] = red
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def red(raw, episode: int) -> list[int]:
    return raw.read(episode, "frames")[..., 0].mean((1, 2)).round().astype(int).tolist()


# -- images ------------------------------------------------------------------------------------


def test_each_folder_of_images_is_an_episode_in_the_order_of_numbers(tmp_path):
    for number in (2, 10):
        folder = images(tmp_path / f"episode_{number}", range(11))
        rows = "\n".join(f"{t},{number + t}" for t in range(11))
        (folder / "actions.csv").write_text(f"step,action\n{rows}\n")
    raw = episodes(tmp_path)
    assert raw.lengths == (11, 11) and red(raw, 0) == [10 * t for t in range(11)]
    assert values(raw, 0, "actions")[:2] == [2, 3] and values(raw, 1, "actions")[0] == 10
    assert len(raw.files) == 24


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("actions.csv", "step,action_x,action_y\n0,1,2\n1,3,4\n2,5,6\n", [[1, 2], [3, 4], [5, 6]]),
        ("actions.csv", "action\r\n0.5\r\n1\r\n2\r\n", [0.5, 1, 2]),
        ("actions.csv", "step,action\n0,4\n1,5\n2,\n", [4, 5, 5]),  # the last leads nowhere
        ("actions.csv", "action\nTrue\nFalse\nTrue\n", [1, 0, 1]),
        ("actions.json", "[4, 5, null]", [4, 5, 5]),
        ("actions.json", "[4, 5, 6]", [4, 5, 6]),
        ("actions.json", '{"actions": [[1], [2], [3]]}', [[1], [2], [3]]),
        ("actions.json", '[{"action": 1}, {"action": 2}, {"action": 0}]', [1, 2, 0]),
        ("actions.npy", np.arange(3), [0, 1, 2]),
    ],
)
def test_actions_are_read_from_csv_json_and_npy(tmp_path, name, content, expected):
    path = images(tmp_path / "a") / name
    np.save(path, content) if name.endswith("npy") else path.write_text(content)
    found = episodes(tmp_path).read(0, "actions")
    assert found.tolist() == expected
    assert (found.dtype.kind == "i") == all(isinstance(v, int) for v in np.ravel(expected).tolist())


def test_a_table_may_lie_next_to_the_folder_and_hold_rewards(tmp_path):
    images(tmp_path / "a")
    (tmp_path / "a.csv").write_text("step,action,rewards\n0,3,0\n1,0,0.5\n2,1,1\n")
    raw = episodes(tmp_path)
    assert values(raw, 0, "rewards") == [0, 0.5, 1] and values(raw, 0, "actions") == [3, 0, 1]


def test_images_without_actions_are_imported(tmp_path):
    assert episodes(images(tmp_path / "a")).keys == {"frames"}


@pytest.mark.parametrize(
    "content, message",
    [
        ("0,3\n1,0\n2,1\n", "begins without names of columns"),
        ("step,action\n0,3\n2,0\n3,1\n", "step goes from 2 to 3 at row 4, so rows are missing"),
        ("step,action\n0,3\n1,up\n2,1\n", "row 3 has action 'up', which is no number"),
        ("step,action\n0,3\n1\n2,1\n", "row 3 has 1 cells, and row 1 2"),
        ("step,x\n0,3\n1,0\n2,1\n", "has no column of actions .step, x."),
        ("step,action\n0,3\n", "3 frames but 1 actions"),
        ("step,action,reward\n0,3,0\n1,0,0\n2,1,0\n", "--rename reward=rewards"),
        ("step,action\n2,3\n1,0\n0,1\n", "step goes from 2 to 1 at row 3"),
        ("step,action\n0,3\n0,0\n0,1\n", "step goes from 0 to 0 at row 3"),
        ("step;action\n0;3\n1;0\n2;1\n", "has no commas between its cells .'step;action'."),
    ],
)
def test_a_fault_in_a_table_is_named(tmp_path, content, message):
    (images(tmp_path / "a") / "actions.csv").write_text(content)
    with pytest.raises(ValueError, match=message) as problem:
        episodes(tmp_path)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"actions": "up"}',
        '{"actions": null}',
        '{"actions": 7}',
        "7",
        "[]",
        '[{"a": 1}, {}]',
    ],
)
def test_json_that_holds_no_actions_is_one_line(tmp_path, content):
    (images(tmp_path / "a") / "actions.json").write_text(content)
    with pytest.raises(ValueError, match=r"actions\.json|has 0 steps|one number") as problem:
        episodes(tmp_path)
    assert "\n" not in str(problem.value) and len(str(problem.value)) < 500


def test_facts_about_an_episode_and_the_index_of_pandas_are_no_columns(tmp_path):
    facts = {"actions": [3, 0, 1], "fps": 30, "task": "push", "meta": {"x": 1}, "seed": None}
    (images(tmp_path / "a") / "actions.json").write_text(json.dumps(facts))
    (images(tmp_path / "b") / "actions.csv").write_text(",action\n0,3\n1,0\n2,1\n")
    raw = episodes(tmp_path)
    assert values(raw, 0, "actions") == values(raw, 1, "actions") == [3, 0, 1]
    assert not raw.remarks


def test_a_missing_image_would_shift_the_actions_and_is_refused(tmp_path):
    images(tmp_path / "a", (0, 1, 3))
    with pytest.raises(ValueError, match=r"frame_3\.png follows frame_1\.png, so images are miss"):
        episodes(tmp_path)


def test_two_images_of_one_number_are_refused(tmp_path):
    images(images(tmp_path / "a"), (1,), ".jpg")
    with pytest.raises(ValueError, match="have the same number; give each camera"):
        episodes(tmp_path)


def test_a_table_that_some_episodes_lack_is_named(tmp_path):
    (images(tmp_path / "a") / "actions.csv").write_text(ACTIONS)
    images(tmp_path / "b")
    with pytest.raises(ValueError, match="b without a table of actions, which 1 others have"):
        episodes(tmp_path)


def test_a_table_of_another_name_is_asked_about(tmp_path):
    (images(tmp_path / "a") / "labels.csv").write_text(ACTIONS)
    with pytest.raises(ValueError, match=r"labels\.csv may hold the actions .* actions\.csv"):
        episodes(tmp_path)


def test_an_image_that_is_none_and_one_of_another_size_are_named(tmp_path):
    folder = images(tmp_path / "a")
    (folder / "frame_1.png").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(ValueError, match=r"frame_1\.png is no image .* an HTML page"):
        episodes(tmp_path).read(0, "frames")
    cv2.imwrite(str(folder / "frame_1.png"), np.zeros((4, 12, 3), np.uint8))
    with pytest.raises(ValueError, match=r"frame_1\.png has 4 x 12 pixels, and frame_0\.png 8 x"):
        episodes(tmp_path).read(0, "frames")


def test_sixteen_bits_a_color_are_refused(tmp_path):
    folder = images(tmp_path / "a")
    cv2.imwrite(str(folder / "frame_1.png"), np.zeros((8, 12), np.uint16))
    with pytest.raises(ValueError, match=r"frame_1\.png has pixels of mode I;16; save 8 bits"):
        episodes(tmp_path).read(0, "frames")


# -- videos ------------------------------------------------------------------------------------


def test_a_video_is_an_episode_with_the_actions_next_to_it(tmp_path):
    video(tmp_path / "walk_1.mp4")
    (tmp_path / "walk_1.csv").write_text("action\n0\n1\n2\n3\n")  # one less than frames
    raw = episodes(tmp_path)
    assert raw.lengths == (5,) and values(raw, 0, "actions") == [0, 1, 2, 3, 3]
    assert np.abs(np.subtract(red(raw, 0), [0, 60, 120, 180, 240])).max() < 12
    assert episodes(tmp_path / "walk_1.mp4").lengths == (5,)


def test_actions_of_a_video_that_lacks_frames_are_refused(tmp_path):
    video(tmp_path / "a.mp4")
    np.save(tmp_path / "a.npy", np.arange(9))
    with pytest.raises(ValueError, match=r"a\.mp4 has 5 frames but 9 actions"):
        episodes(tmp_path)


def test_a_table_of_another_name_next_to_videos_is_asked_about(tmp_path):
    video(tmp_path / "a.mp4")
    np.save(tmp_path / "a_actions.npy", np.arange(5))
    with pytest.raises(ValueError, match=r"a_actions\.npy may hold the actions .*NAME\.npy of"):
        episodes(tmp_path)
    (tmp_path / "a_actions.npy").rename(tmp_path / "a.npy")
    assert values(episodes(tmp_path), 0, "actions") == [0, 1, 2, 3, 4]


def test_one_table_for_several_videos_is_refused(tmp_path):
    video(tmp_path / "a.mp4")
    video(tmp_path / "b.mp4")
    (tmp_path / "actions.csv").write_text("action\n0\n1\n2\n3\n4\n")
    with pytest.raises(ValueError, match=r"lies next to several videos; call it a\.csv"):
        episodes(tmp_path)


def test_recordings_of_openai_are_sent_to_their_own_command(tmp_path):
    video(tmp_path / "a.mp4").with_suffix(".jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="preprocess.py vpt --recordings"):
        episodes(tmp_path)


# -- MineRL ------------------------------------------------------------------------------------


def minerl(folder: Path, **changed) -> Path:
    """Two frames before the first step, then 3 frames for 2 actions."""
    video(folder / "recording.mp4")
    steps = {
        "reward": np.array([0.0, 4.0]),
        "action$camera": np.array([[1.5, -2.0], [0, 0]], np.float32),
        "action$forward": np.array([1, 0]),
        "action$attack": np.array([0, 1]),
        "action$craft": np.array(["none", "planks"]),
        "observation$inventory$dirt": np.array([0, 0, 1]),
    }
    np.savez(folder / "rendered.npz", **(steps | changed))
    (folder / "metadata.json").write_text(json.dumps({"true_video_frame_count": 5}))
    return folder


def test_minerl_has_its_states_at_the_end_of_the_video(tmp_path):
    minerl(tmp_path / "MineRLTreechop-v0" / "v3_player")
    raw = episodes(tmp_path)
    assert raw.lengths == (3,) and values(raw, 0, "rewards") == [0, 0, 4]
    assert np.abs(np.subtract(red(raw, 0), [120, 180, 240])).max() < 12
    assert values(raw, 0, "actions") == [[0, 1.5, -2, 1], [1, 0, 0, 0], [1, 0, 0, 0]]
    assert any("attack, camera, forward" in remark for remark in raw.remarks)
    assert any("craft" in remark for remark in raw.remarks)


def test_minerl_whose_facts_do_not_count_frames_has_those_of_its_video(tmp_path):
    (minerl(tmp_path / "a") / "metadata.json").write_text(json.dumps({"duration_ms": 100}))
    assert np.abs(np.subtract(red(episodes(tmp_path), 0), [120, 180, 240])).max() < 12


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"reward": np.zeros(9)}, "3 frames but 9 rewards"),
        ({"action$camera": np.zeros((9, 2))}, "has actions of .2, 9. steps"),
        ({"action$camera": np.array(["a", "b"])}, "has no action.camera and reward"),
        ({"action$" + k: np.zeros(7) for k in ("camera", "forward", "attack")}, "holds 5 frames"),
    ],
)
def test_minerl_that_is_not_whole_is_named(tmp_path, changed, message):
    minerl(tmp_path / "a", **changed)
    with pytest.raises(ValueError, match=message):
        episodes(tmp_path)


@pytest.mark.parametrize(
    "count, message", [(6, "holds 5 frames, but 6"), ("many", "metadata.json")]
)
def test_facts_of_minerl_that_do_not_fit_are_named(tmp_path, count, message):
    facts = minerl(tmp_path / "a") / "metadata.json"
    facts.write_text(json.dumps({"true_video_frame_count": count}))
    with pytest.raises(ValueError, match=message):
        episodes(tmp_path)


# -- other kinds -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mark, kind",
    [
        ("dataset_info.json", "an RLDS"),
        ("ep_len.npz", "swm convert"),
        ("zarr.json", "a zarr store"),
    ],
)
def test_a_folder_of_a_known_kind_is_named_with_the_way_out(tmp_path, mark, kind):
    (tmp_path / mark).parent.mkdir(exist_ok=True)
    (tmp_path / mark).write_text("{}")
    with pytest.raises(ValueError, match=f"{kind}.*your-recordings.md"):
        episodes(tmp_path)


def test_a_folder_of_other_files_is_named_for_what_they_are(tmp_path):
    for number in range(30):
        (tmp_path / f"{number}.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"30 of \.parquet; 0\.parquet is a Parquet file"):
        episodes(tmp_path)
    with pytest.raises(ValueError, match="holds no recordings .it is empty."):
        (tmp_path / "none").mkdir()
        episodes(tmp_path / "none")


def test_a_file_of_another_kind_and_a_missing_one_are_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="is a Parquet file, and none of what is read"):
        episodes(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="does not exist"):
        episodes(tmp_path / "absent")
    (tmp_path / "a.zip").write_bytes(b"PK\3\4")
    with pytest.raises(ValueError, match="is a zip archive .unpack it first"):
        episodes(tmp_path / "a.zip")
