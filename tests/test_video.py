from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

from pipeline import video
from pipeline.play.play_config import FPS_RANGE


def make_frames(count: int = 6, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """A red bar that moves over gray."""
    frames = [np.full((height, width, 3), 128, np.uint8) for _ in range(count)]
    for number, frame in enumerate(frames):
        frame[:, 8 * number : 8 * number + 8] = (250, 10, 10)
    return frames


def read_mp4(path: Path) -> np.ndarray:
    """(T, H, W, 3) uint8"""
    return imageio.imread(path, plugin="pyav")


def red_column(frame: np.ndarray) -> float:
    red = (frame[..., 0].astype(int) - frame[..., 1]) > 120
    return float(np.flatnonzero(red.any(0)).mean())


def test_a_video_is_pngs_a_gif_and_an_mp4_of_the_same_frames(tmp_path: Path):
    frames = make_frames()
    assert video.write_video(tmp_path, frames, fps=10) == 6
    names = sorted(p.name for p in (tmp_path / "frames").iterdir())
    assert names == [f"{i:05d}.png" for i in range(6)]
    for number, frame in enumerate(frames):
        np.testing.assert_array_equal(imageio.imread(tmp_path / "frames" / names[number]), frame)
    for read in (imageio.imread(tmp_path / "rollout.gif"), read_mp4(tmp_path / "rollout.mp4")):
        assert len(read) == 6
        for frame, seen in zip(frames, read, strict=True):
            assert abs(red_column(frame) - red_column(seen)) < 1
            assert np.abs(frame.astype(int) - seen[..., :3]).mean() < 6
    assert not list(tmp_path.rglob("*.partial"))


def test_a_video_lasts_as_long_as_its_frames(tmp_path: Path):
    video.write_gif(tmp_path / "a.gif", make_frames(), fps=10)
    assert imageio.immeta(tmp_path / "a.gif")["duration"] == 100
    import av

    video.write_mp4(tmp_path / "a.mp4", make_frames(), fps=10)
    with av.open(tmp_path / "a.mp4") as opened:
        assert float(opened.streams.video[0].average_rate or 0) == 10


@pytest.mark.parametrize("fps", [FPS_RANGE.low, FPS_RANGE.high])
def test_a_video_holds_the_slowest_and_the_fastest_pace(tmp_path: Path, fps: float):
    assert video.write_video(tmp_path, make_frames(), fps) == 6
    assert len(read_mp4(tmp_path / "rollout.mp4")) == len(imageio.imread(tmp_path / "rollout.gif"))


def test_a_shorter_video_leaves_no_frame_of_the_longer_one(tmp_path: Path):
    video.write_video(tmp_path, make_frames(6), fps=10)
    video.write_video(tmp_path, make_frames(3), fps=10)
    assert len(list((tmp_path / "frames").iterdir())) == 3


def test_odd_sizes_are_made_even_for_the_mp4_alone(tmp_path: Path):
    video.write_video(tmp_path, make_frames(3, height=33, width=49), fps=7.5)
    assert read_mp4(tmp_path / "rollout.mp4").shape == (3, 34, 50, 3)
    assert imageio.imread(tmp_path / "frames" / "00000.png").shape == (33, 49, 3)


def test_a_grid_has_a_row_for_each_clip():
    rows = [torch.full((3, 3, 4, 5), value, dtype=torch.uint8) for value in (10, 200)]
    grid = video.make_grid(rows, gap=1, scale=2)
    assert grid.shape == (2 * 2 * 5, 2 * 3 * 6, 3)
    assert grid[0, 0, 0] == 10 and grid[10, 0, 0] == 200 and grid[0, 10, 0] == 128


def test_no_frames_or_unequal_ones_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="no frame"):
        video.write_video(tmp_path, [], fps=10)
    with pytest.raises(ValueError, match="different sizes"):
        video.write_video(tmp_path, make_frames(1) + make_frames(1, height=10), fps=10)


def test_the_old_video_stays_whole_when_writing_fails(tmp_path: Path, monkeypatch):
    video.write_video(tmp_path, make_frames(), fps=10)
    before = (tmp_path / "rollout.mp4").read_bytes()
    monkeypatch.setattr("av.codecs_available", {"libx264": 0})
    monkeypatch.setattr("numpy.pad", None)
    with pytest.raises(TypeError):
        video.write_mp4(tmp_path / "rollout.mp4", make_frames(), fps=10)
    assert (tmp_path / "rollout.mp4").read_bytes() == before
    assert not list(tmp_path.rglob("*.partial"))
