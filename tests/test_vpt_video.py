"""Reading frames of videos by index, and drawing the cursor."""

import numpy as np
import pytest
from vpt_clips import scene, write_pair, write_video

from data.vpt.cursor import draw_cursor
from data.vpt.file_slice import FileSlice
from data.vpt.video import read_frames, read_video_info, shrink

RED, GREEN, BLUE = (200, 30, 30), (30, 160, 30), (30, 30, 200)


def test_a_header_gives_frames_size_and_rate(tmp_path):
    info = read_video_info(FileSlice(str(write_pair(tmp_path, "a", 30))))
    assert (info.frames, info.height, info.width, info.rate) == (30, 360, 640, 20)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_frames_from_the_middle_equal_those_of_the_whole(tmp_path, codec):
    path = tmp_path / "a.mp4"
    write_video(path, [scene(float(yaw)) for yaw in range(130)], codec=codec)
    whole = [shrink(f, 32, 32) for f in read_frames(FileSlice(str(path)), 0, 130)]
    assert len(whole) == 130
    for first, last in ((1, 4), (49, 52), (77, 130), (129, 130)):
        part = [shrink(f, 32, 32) for f in read_frames(FileSlice(str(path)), first, last)]
        assert np.array_equal(part, whole[first:last])


@pytest.mark.parametrize("color", [RED, GREEN, BLUE])
def test_a_red_frame_stays_red(tmp_path, color):
    path = tmp_path / "a.mp4"
    write_video(path, [np.full((360, 640, 3), color, np.uint8)] * 3)
    frames = [shrink(f, 16, 24) for f in read_frames(FileSlice(str(path)), 0, 3)]
    assert frames[0].shape == (16, 24, 3)
    assert abs(np.array(frames).astype(int) - color).max() < 12


def test_a_truncated_or_invalid_file_is_named_with_its_last_frame(tmp_path):
    path = write_pair(tmp_path, "a", 60)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.mp4 (ends|cannot be decoded) after frame \d+"):
        list(read_frames(FileSlice(str(path)), 0, 60))
    path.write_bytes(whole[:100])
    with pytest.raises(ValueError, match=r"a\.mp4 (cannot be opened|holds no video)"):
        read_video_info(FileSlice(str(path)))
    path.write_bytes(b"<html>" * 50)
    with pytest.raises(ValueError, match=r"a\.mp4 (cannot be opened|holds no video)"):
        read_video_info(FileSlice(str(path)))


def test_a_video_inside_another_file_is_read_in_place(tmp_path):
    path = write_pair(tmp_path, "a", 20)
    video = path.read_bytes()
    (tmp_path / "b.tar").write_bytes(b"x" * 777 + video + b"y" * 5000)
    place = FileSlice(str(tmp_path / "b.tar"), 777, len(video), "a.mp4")
    inside = [shrink(f, 16, 16) for f in read_frames(place, 3, 20)]
    alone = [shrink(f, 16, 16) for f in read_frames(FileSlice(str(path)), 3, 20)]
    assert np.array_equal(inside, alone) and place.read() == video


def test_the_cursor_has_its_tip_at_the_logged_position_and_is_clipped_at_the_border():
    frame = np.full((360, 640, 3), 90, np.uint8)
    draw_cursor(frame, 400.0, 200.0)  # of the 1280 x 720 window
    changed = np.argwhere((frame != 90).any(-1))
    assert changed.min(0).tolist() == [100, 200] and (changed.max(0) < [116, 216]).all()
    assert frame.max() == 255 and frame.min() < 60  # white with a black rim
    for x, y in ((1279.0, 719.0), (-4.0, -4.0), (5000.0, 3.0)):
        draw_cursor(frame, x, y)
    assert (frame[-1, -1] != 90).any() or (frame[0, 0] != 90).any()
