"""Videos without actions become episodes: every frame once, cut at scenes, split by file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

import data.video.video_source as video_source
import preprocess
from data.shards.build_info import shard_name
from data.shards.episode_dataset import EpisodeDataset
from data.video.scenes import scene_bounds
from pipeline.cli import check_config
from pipeline.video import write_gif

SIDE = 32
CODECS = {".mp4": "libx264rgb", ".mkv": "libx264rgb", ".webm": "libvpx-vp9"}


def square(step: int, seed: int = 0, size: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    """A white square on black that moves a pixel a step; its brightness tells the step."""
    frame = np.zeros((*size, 3), np.uint8)
    x = (3 * seed + step) % (size[1] - 8)
    frame[8:16, x : x + 8] = 120
    frame[-8:] = 6 * step  # a band across the bottom
    return frame


def write(path: Path, frames: list[np.ndarray]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gif":
        write_gif(path, frames, fps=20)
        return path
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream(CODECS[path.suffix], rate=20)
        stream.height, stream.width = frames[0].shape[:2]
        codec = CODECS[path.suffix]
        stream.pix_fmt = "rgb24" if codec == "libx264rgb" else "yuv420p"
        stream.options = {"qp": "0"} if codec == "libx264rgb" else {}
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            file.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        file.mux(stream.encode())
    return path


def clip(seed: int, steps: int = 20) -> list[np.ndarray]:
    return [square(step, seed) for step in range(steps)]


def images(folder: Path, frames: list[np.ndarray]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(frames):
        cv2.imwrite(str(folder / f"{number:04d}.png"), pixels[..., ::-1])
    return folder


def make(tmp_path: Path, *paths: Path, name: str = "run", **flags: Any) -> EpisodeDataset:
    flags = {"resolution": SIDE, "num_workers": 1} | flags
    preprocess.video(preprocess.VideoConfig(paths, tmp_path / name, **flags))
    return EpisodeDataset(tmp_path / name / "shards")


def steps_of(frames: np.ndarray) -> list[int]:
    """The step that each frame's band tells."""
    return (frames[:, -6:-2].mean((1, 2, 3)) / 6).round().astype(int).tolist()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in range(4):
        write(tmp_path / "videos" / f"clip_{seed}.mp4", clip(seed))
    return tmp_path / "videos"


@pytest.mark.parametrize("suffix", [*CODECS, ".gif"])
def test_every_frame_of_each_kind_of_file_is_there_once_and_in_order(tmp_path, suffix):
    path = write(tmp_path / f"clip{suffix}", clip(0))
    dataset = make(tmp_path, path)
    error = np.array(steps_of(dataset.read(0, "frames"))) - np.arange(20)
    assert abs(error).max() <= (suffix == ".gif")  # whose palette has steps
    assert dataset.actions.kind == "none" and not dataset.has("actions")


def test_numbered_images_are_a_video(tmp_path):
    images(tmp_path / "videos" / "a", clip(0, 12))
    dataset = make(tmp_path, tmp_path / "videos", frameskip=2)
    assert steps_of(dataset.read(0, "frames")) == list(range(0, 12, 2))
    assert np.array_equal(dataset.read(0, "frames")[3], square(6))


def test_frameskip_takes_every_kth_frame_whatever_shard_it_is_in(tmp_path, folder, monkeypatch):
    whole = make(tmp_path, folder, frameskip=3)
    assert steps_of(whole.read(0, "frames")) == list(range(0, 20, 3))
    monkeypatch.setattr(video_source, "BYTES_PER_SHARD", 3 * SIDE * SIDE * 4)
    parts = make(tmp_path, folder, name="parts", frameskip=3)
    assert len(parts.headers) > len(whole.headers)
    assert np.array_equal(
        parts.read_rows("frames", 0, parts.num_frames), whole.read_rows("frames", 0, 28)
    )


def test_a_scene_is_an_episode_and_cuts_are_counted(tmp_path, capsys):
    other = [255 - frame for frame in clip(0)]
    write(tmp_path / "videos" / "film.mp4", clip(0)[:10] + other[10:17] + clip(0)[17:])
    dataset = make(tmp_path, tmp_path / "videos")
    assert dataset.lengths.tolist() == [10, 7, 3]
    assert "1 files, 3 scenes: 2 cuts, where the mean change of a pixel is above 30 of 255" in (
        capsys.readouterr().out
    )
    uncut = make(tmp_path, tmp_path / "videos", name="uncut", scene_threshold=0.0)
    assert uncut.lengths.tolist() == [20]


def test_a_flash_of_one_frame_is_left_out_and_said(tmp_path, capsys):
    flash = [*clip(0)[:10], np.full((SIDE, SIDE, 3), 255, np.uint8), *clip(0)[11:]]
    write(tmp_path / "videos" / "film.mp4", flash)
    assert make(tmp_path, tmp_path / "videos").lengths.tolist() == [10, 9]
    assert "1 scenes of one frame left out" in capsys.readouterr().out


def test_scenes_hold_every_frame_once():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (9, 1, 1, 3)).astype(np.uint8)
    bounds = scene_bounds(frames, 60.0)
    assert len(bounds) > 1 and [i for a, b in bounds for i in range(a, b)] == list(range(9))


def test_a_wide_image_is_cut_around_its_center_or_stretched(tmp_path):
    wide = np.zeros((SIDE, 2 * SIDE, 3), np.uint8)
    wide[:, SIDE // 2 : 3 * SIDE // 2] = 200
    path = write(tmp_path / "videos" / "wide.mp4", [wide] * 4)
    assert (make(tmp_path, path).read(0, "frames") == 200).all()
    stretched = make(tmp_path, path, name="stretched", stretch=True).read(0, "frames")
    assert stretched[0, :, 0].max() == 0 and stretched[0, :, SIDE // 2].min() == 200
    whole = make(tmp_path, path, name="whole", aspect=(16.0, 8.0))
    assert np.array_equal(whole.read(0, "frames")[0], wide)


def test_files_are_split_whole(tmp_path, folder):
    film = clip(0)[:8] + [255 - frame for frame in clip(0)[8:]]
    write(folder / "clip_4.mp4", film)
    dataset = make(tmp_path, folder)
    by_file: dict[str, set[int]] = {}
    for note, split in zip(dataset.notes, dataset.splits, strict=True):
        by_file.setdefault(note["video"], set()).add(int(split))
    assert len(by_file) == 5 and all(len(splits) == 1 for splits in by_file.values())
    assert set(dataset.splits.tolist()) == {0, 1, 2}


def test_a_single_long_video_holds_out_segments_that_do_not_touch(tmp_path):
    path = write(tmp_path / "long.mp4", [square(step % 40) for step in range(300)])
    dataset = make(tmp_path, path, scene_threshold=0.0)
    assert set(dataset.splits.tolist()) == {0, 1, 2} and len(dataset) == 10
    starts = [note["first"] for note in dataset.notes]
    gaps = np.array(starts[1:]) - (np.array(starts[:-1]) + dataset.lengths[:-1])
    assert (gaps == video_source.SEGMENT_GAP).all()


def test_damaged_and_empty_files_are_named_and_left_out(tmp_path, folder, capsys):
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("no video")
    whole = (folder / "clip_0.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    write(folder / "one.mp4", clip(0, 1))
    images(folder / "holes", clip(0, 4))
    (folder / "holes" / "0002.png").unlink()
    dataset = make(tmp_path, folder)
    out = capsys.readouterr().out
    assert {note["video"] for note in dataset.notes} == {f"clip_{i}.mp4" for i in range(4)}
    for name in ("empty.mp4 has 0 bytes", "text.mp4", "cut.mp4", "one.mp4 has 1 frame", "0003.png"):
        assert f"left out: {folder}" in out and name in out


def test_a_file_that_is_damaged_within_is_left_out_and_the_others_stay(tmp_path, folder, capsys):
    images(folder / "frames", clip(0))
    (folder / "frames" / "0012.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    dataset = make(tmp_path, folder)
    assert len(dataset) == 4 and f"left out: {folder}/frames/0012.png" in capsys.readouterr().out


def test_nothing_that_can_be_used_is_one_line(tmp_path):
    (tmp_path / "videos").mkdir()
    with pytest.raises(ValueError, match="holds no video \\(it is empty\\); give videos"):
        make(tmp_path, tmp_path / "videos")
    (tmp_path / "videos" / "a.mp4").touch()
    with pytest.raises(ValueError, match="no video can be used: .*a.mp4 has 0 bytes"):
        make(tmp_path, tmp_path / "videos")
    with pytest.raises(ValueError, match="nowhere does not exist"):
        make(tmp_path, tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="a.txt is a text"):
        make(tmp_path, tmp_path / "a.txt")
    assert not list((tmp_path / "run" / "shards").glob("*.h5"))


def test_shards_are_the_same_again_and_from_a_copy_elsewhere(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(video_source, "BYTES_PER_SHARD", 3 * SIDE * SIDE * 20)
    first = make(tmp_path, folder)
    content = (first.folder / shard_name(1)).read_bytes()
    (first.folder / shard_name(1)).unlink()
    elsewhere = folder.rename(tmp_path / "moved")
    make(tmp_path, elsewhere, num_workers=2)
    assert (first.folder / shard_name(1)).read_bytes() == content


def test_another_file_or_another_setting_is_refused(tmp_path, folder):
    make(tmp_path, folder)
    with pytest.raises(ValueError, match="settings frameskip 1, but now it is 2"):
        make(tmp_path, folder, frameskip=2)
    write(folder / "clip_9.mp4", clip(9))
    with pytest.raises(ValueError, match="now has 5 recordings, .* are of 4"):
        make(tmp_path, folder)
    assert len(make(tmp_path, folder, restart=True)) == 5


def test_a_folder_and_the_files_in_it_are_the_same_data(tmp_path, folder):
    make(tmp_path, folder)
    dataset = make(tmp_path, *sorted(folder.iterdir()), folder)
    assert len(dataset) == 4


def test_no_path_and_no_width_are_refused():
    with pytest.raises(ValueError, match="no PATH is given; .* preprocess.py video PATH"):
        check_config(preprocess.VideoConfig(()))
    with pytest.raises(ValueError, match="--aspect 1 50 makes frames of 64 x 1 pixels"):
        check_config(preprocess.VideoConfig((Path("a"),), aspect=(1.0, 50.0)))
