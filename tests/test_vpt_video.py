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
    assert (info.height, info.width, info.rate) == (360, 640, 20)
    assert info.ticks.tolist() == list(range(30))


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


def ticks(folder, times):
    write_video(folder / "a.mp4", [scene(0.0)] * len(times), times=times)
    return read_video_info(FileSlice(str(folder / "a.mp4"))).ticks.tolist()


def test_a_missing_frame_leaves_a_gap_in_the_ticks(tmp_path):
    assert ticks(tmp_path, [0, 1, 2, 5, 6, 8, 9, 10]) == [0, 1, 2, 5, 6, 8, 9, 10]
    assert ticks(tmp_path, [30, 31, 32, 34]) == [0, 1, 2, 4]  # the first is shown late
    assert ticks(tmp_path, [0, 1.1, 1.95, 3.9]) == [0, 1, 2, 4]
    late = [1.004 * t + (t > 9) for t in range(200)]  # of a clock that is slow
    assert ticks(tmp_path, late) == [t + (t > 9) for t in range(200)]


def test_frames_at_times_of_no_grid_are_counted(tmp_path):
    assert ticks(tmp_path, [0, 1, 2, 2.4, 4, 5]) == list(range(6))
    assert ticks(tmp_path, [0]) == [0]


def test_a_gap_does_not_change_the_index_of_a_frame(tmp_path):
    path = tmp_path / "a.mp4"
    shades = [scene(float(yaw)) for yaw in range(120)]
    write_video(path, shades, times=[t + (t > 70) for t in range(120)])
    whole = [shrink(f, 32, 32) for f in read_frames(FileSlice(str(path)), 0, 120)]
    part = [shrink(f, 32, 32) for f in read_frames(FileSlice(str(path)), 66, 90)]
    assert len(whole) == 120 and np.array_equal(part, whole[66:90])


@pytest.mark.parametrize("seed", range(3))
def test_frames_that_are_decoded_from_damaged_bytes_are_refused(tmp_path, seed):
    path = tmp_path / "a.mp4"
    write_video(path, [scene(float(yaw)) for yaw in range(60)], codec="mpeg4")
    content = bytearray(path.read_bytes())
    random = np.random.default_rng(seed)
    for position in random.integers(len(content) // 3, len(content) - 100, 20):
        content[position] ^= 0xFF
    path.write_bytes(content)
    for first in (0, 50):
        with pytest.raises(ValueError, match=r"a\.mp4 (is damaged at|cannot be dec.*) frame"):
            list(read_frames(FileSlice(str(path)), first, 60))


def test_a_video_of_an_unknown_codec_is_named(tmp_path):
    path = write_pair(tmp_path, "a", 10)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"xyz1"))
    with pytest.raises(ValueError, match=r"a\.mp4 is in a form that cannot be decoded here"):
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
