"""From Minecraft recordings to shards: sizes, splits, notes and errors."""

import json
import pickle
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from in_process import call_script
from vpt_clips import line, scene, turning_lines, write_log, write_pair, write_video

from data.checks.check import describe
from data.shards.build_shards import SkipShard, build
from data.shards.episode_dataset import EpisodeDataset
from data.vpt import recordings as vpt
from data.vpt.alignment import angle_agreement, image_agreement, warnings
from data.vpt.content import recording_digest
from data.vpt.find import find_local
from data.vpt.recordings import FrameFormat, VptSource, sum_inputs
from data.vpt.vpt_actions import INPUT_COLUMN, INPUT_NAMES
from data.vpt.vpt_log import read_log
from data.vpt.vpt_report import describe_agreement
from data.vpt.vpt_report import report as vpt_report
from preprocess import VptConfig
from preprocess import vpt as vpt_command


@pytest.fixture(scope="module")
def recorded_pairs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    for number in range(3):
        write_pair(folder, f"pair-{number}", 64, seed=number)
    return folder


def source(folder: Path, skip_invalid: bool = False, **options: Any) -> VptSource:
    pairs, _ = find_local(folder, skip_invalid)
    names = tuple(pair.name for pair in pairs)
    settings: Any = {"resolution": 32} | options
    return VptSource(names, tuple(pairs), FrameFormat(**settings), skip_invalid)


def first_shard(folder: Path, **options: Any) -> list[Any]:
    return source(folder, **options).make_shard(0)


def test_a_recording_becomes_an_episode_with_its_inputs(recorded_pairs, tmp_path):
    sent = pickle.loads(pickle.dumps(source(recorded_pairs)))  # as it is to a worker
    build(sent, tmp_path, "again")
    dataset = EpisodeDataset(tmp_path)
    assert len(dataset) == 3 and dataset.lengths.tolist() == [64] * 3
    assert sorted(dataset.splits) == [0, 1, 2] and dataset.image_size == (32, 32)
    assert dataset.description["input_names"] == list(INPUT_NAMES)
    assert dataset.actions.size == 4356
    log = read_log((recorded_pairs / "pair-1.jsonl").read_bytes(), "")
    assert np.allclose(dataset.read(1, "inputs"), log.inputs)
    assert dataset.notes[1]["recording"] == "pair-1"
    assert dataset.notes[1]["frames"] == dataset.notes[1]["lines"] == 64
    report = "\n".join(describe(dataset))
    assert "yaw: -10.0" in report and "codes occur" in report and "GUI is open in 0.0%" in report


def test_actions_lead_from_their_frame_to_the_next(recorded_pairs):
    (episode,) = first_shard(recorded_pairs)
    agreement = image_agreement(episode.frames, episode.inputs)
    assert agreement is None, "64 ticks are too few for a correlation"
    turns = episode.inputs[:-1, INPUT_COLUMN["yaw_degrees"]]
    moved = (episode.frames[1:] != episode.frames[:-1]).mean((1, 2, 3)) > 0.5
    assert ((abs(turns) > 2) <= moved).all() and not moved[turns == 0].any()


def test_parts_of_a_recording_join_to_the_whole(recorded_pairs, monkeypatch):
    (whole,) = first_shard(recorded_pairs)
    monkeypatch.setattr(vpt, "BYTES_PER_SHARD", 1500 * 32 * 32 * 3)
    parts = source(recorded_pairs)
    assert parts.shards_per_recording == 4 and parts.num_shards == 12
    episodes = [episode for part in range(4) for episode in parts.make_shard(part)]
    assert [len(e) for e in episodes] == [16] * 4
    assert np.array_equal(np.concatenate([e.frames for e in episodes]), whole.frames)
    actions = [e.actions for e in episodes if e.actions is not None]
    assert np.array_equal(np.concatenate(actions), whole.actions)
    assert [e.notes["first"] for e in episodes] == [0, 16, 32, 48]


def test_frames_can_keep_their_aspect(recorded_pairs):
    assert first_shard(recorded_pairs)[0].frames.shape[1:] == (32, 32, 3)
    assert first_shard(recorded_pairs, keep_aspect=True, resolution=64)[0].frames.shape[1:] == (
        64,
        112,
        3,
    )


def test_skipped_ticks_add_up(recorded_pairs):
    (each,), (second,) = first_shard(recorded_pairs), first_shard(recorded_pairs, frameskip=3)
    assert len(second) == 21 and np.array_equal(second.frames, each.frames[:63:3])
    turned = each.inputs[:63, INPUT_COLUMN["yaw_degrees"]].reshape(21, 3).sum(1)
    assert np.allclose(second.inputs[:, INPUT_COLUMN["yaw_degrees"]], turned)
    inputs = np.zeros((4, len(INPUT_NAMES)), np.float32)
    inputs[[0, 1, 2], INPUT_COLUMN["forward"]] = 1
    inputs[3, INPUT_COLUMN["jump"]] = inputs[2, INPUT_COLUMN["jump"]] = 1
    steps = sum_inputs(inputs, 2)
    assert steps[:, INPUT_COLUMN["forward"]].tolist() == [1, 1]
    assert steps[:, INPUT_COLUMN["jump"]].tolist() == [0, 1]


def test_segments_of_few_recordings_are_held_out_with_a_gap_between(recorded_pairs, tmp_path):
    path = write_pair(tmp_path, "long", 400)
    pairs, _ = find_local(path, False)
    alone = VptSource(("long",), tuple(pairs), FrameFormat(resolution=16))
    build(alone, tmp_path / "shards", "again")
    dataset = EpisodeDataset(tmp_path / "shards")
    assert sorted(dataset.splits) == [0] * 8 + [1, 2]
    assert dataset.lengths.tolist() == [40] + [20] * 9
    assert [n["first"] for n in dataset.notes][:3] == [0, 60, 100]
    lines = vpt_report(tmp_path / "shards", [], 1.0)
    assert any("segments of each are held out" in text for text in lines)


def gui_pair(folder: Path) -> Path:
    write_video(folder / "a.mp4", [scene(0.0)] * 30)
    lines = [line(isGuiOpen=10 <= tick < 16) for tick in range(30)]
    for tick in range(10, 16):
        lines[tick]["mouse"] |= {"x": 640.0, "y": 360.0}
    write_log(folder / "a.jsonl", lines)
    return folder


def test_segments_with_a_gui_are_marked_or_dropped_or_drawn_with_a_cursor(tmp_path, monkeypatch):
    monkeypatch.setattr(VptSource, "split_by_segment", False)
    (kept,) = first_shard(gui_pair(tmp_path))
    assert kept.inputs[:, INPUT_COLUMN["gui"]].tolist() == [0] * 10 + [1] * 6 + [0] * 14
    before, after = first_shard(tmp_path, gui=False)
    assert (len(before), len(after)) == (10, 14) and after.notes["first"] == 16
    (drawn,) = first_shard(tmp_path, cursor=True, resolution=64)
    (plain,) = first_shard(tmp_path, resolution=64)
    differs = (drawn.frames != plain.frames).any((1, 2, 3))
    assert np.flatnonzero(differs).tolist() == list(range(10, 16))


def test_ticks_without_input_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(VptSource, "split_by_segment", False)
    write_video(tmp_path / "a.mp4", [scene(0.0)] * 12)
    write_log(tmp_path / "a.jsonl", [line() for _ in range(12)])
    assert first_shard(tmp_path)[0].actions.tolist() == [60] * 12


def test_unequal_lengths_are_truncated_and_a_large_mismatch_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(VptSource, "split_by_segment", False)
    write_video(tmp_path / "a.mp4", [scene(0.0)] * 33)
    write_log(tmp_path / "a.jsonl", turning_lines(31))
    (episode,) = first_shard(tmp_path)
    assert len(episode) == 31 and (episode.notes["frames"], episode.notes["lines"]) == (33, 31)
    write_log(tmp_path / "a.jsonl", turning_lines(20))
    with pytest.raises(ValueError, match=r"a\.mp4 has 33 frames, but .*a\.jsonl 20 lines"):
        first_shard(tmp_path)


@pytest.mark.parametrize(
    "video, message",
    [
        ({"rate": 30}, "30 frames per second, but recordings of this kind have 20"),
        ({"frames": [np.zeros((480, 640, 3), np.uint8)] * 30}, r"aspect ratio of 1\.333"),
    ],
)
def test_a_video_of_another_size_or_rate_is_refused_or_skipped(tmp_path, video, message):
    write_video(tmp_path / "a.mp4", **({"frames": [scene(0.0)] * 30} | video))
    write_log(tmp_path / "a.jsonl", turning_lines(30))
    with pytest.raises(ValueError, match=message) as refused:
        source(tmp_path).make_shard(0)
    assert not isinstance(refused.value, SkipShard)
    with pytest.raises(SkipShard, match=message):
        source(tmp_path, skip_invalid=True).make_shard(0)


def test_lines_are_matched_by_time_where_a_frame_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(VptSource, "split_by_segment", False)
    lines = turning_lines(60)
    kept = [tick for tick in range(60) if tick not in (21, 40)]
    frames = [scene(lines[tick]["yaw"]) for tick in kept]
    write_video(tmp_path / "a.mp4", frames, times=kept)
    write_log(tmp_path / "a.jsonl", lines)
    episodes = first_shard(tmp_path)
    assert [(e.notes["first"], e.notes["last"]) for e in episodes] == [(0, 21), (22, 40), (41, 60)]
    assert episodes[0].notes["missing_frames"] == 2
    write_video(tmp_path / "a.mp4", [scene(line["yaw"]) for line in lines])
    (whole,) = first_shard(tmp_path)
    for episode in episodes:
        rows = slice(episode.notes["first"], episode.notes["last"])
        assert np.array_equal(episode.actions, whole.actions[rows])
        error = episode.frames.astype(int) - whole.frames[rows]
        assert abs(error).mean() < 4  # another frame differs by far more
    skipped = first_shard(tmp_path, frameskip=2)
    assert len(skipped) == 1
    write_video(tmp_path / "a.mp4", frames, times=kept)
    assert [e.notes["first"] for e in first_shard(tmp_path, frameskip=2)] == [0, 42]


def test_too_many_missing_frames_are_refused(tmp_path):
    kept = [tick for tick in range(60) if tick % 8 != 5]
    write_video(tmp_path / "a.mp4", [scene(0.0)] * len(kept), times=kept)
    write_log(tmp_path / "a.jsonl", turning_lines(60))
    with pytest.raises(ValueError, match=r"a\.mp4 has 53 frames in 60 ticks, but .* 60 lines"):
        first_shard(tmp_path)


def test_a_missing_frame_does_not_count_in_the_alignment():
    lines = turning_lines(150)
    frames = np.array([scene(line["yaw"])[::6, ::10] for line in lines])
    inputs = read_log("\n".join(map(json.dumps, lines)).encode(), "").inputs
    shown = np.ones(150, bool)
    shown[40:60] = False
    damaged = np.where(shown[:, None, None, None], frames, 0)
    whole, measured = image_agreement(frames, inputs), image_agreement(damaged, inputs, shown)
    assert whole and measured and measured["+0"] > 0.9
    assert measured["+0"] > image_agreement(damaged, inputs)["+0"]  # pyright: ignore


def test_a_recording_that_is_too_short_for_its_frameskip_is_named(recorded_pairs, tmp_path):
    with pytest.raises(SkipShard, match=r"pair-0: .* no 2 frames in a row \(64 ticks, .* 40\)"):
        first_shard(recorded_pairs, frameskip=40)
    with pytest.raises(ValueError, match="--frameskip 7000"):
        FrameFormat(frameskip=7000)
    config = VptConfig(
        tmp_path, recorded_pairs, frame_format=FrameFormat(frameskip=40), num_workers=1
    )
    with pytest.raises(ValueError, match=r"all were skipped: pair-0: .*--frameskip 40"):
        vpt_command(config)


@pytest.mark.parametrize("camera", [{"camera_maxval": 1e-4}, {"camera_mu": 1e6}])
def test_camera_bins_that_no_turn_tells_apart_are_refused(camera):
    camera |= {"camera_maxval": 0.1} if "camera_mu" in camera else {}
    with pytest.raises(ValueError, match=r"--camera-maxval .* and --camera-mu .* equal"):
        FrameFormat(**camera)


def test_a_shift_between_frames_and_lines_gives_a_warning(tmp_path):
    notes = {}
    for late in (0, 1):
        write_pair(tmp_path / str(late), "a", 150, late=late)
        pairs, _ = find_local(tmp_path / str(late), False)
        whole = VptSource(("a", "b", "c"), tuple(pairs), FrameFormat(resolution=64))
        notes[late] = whole.make_shard(0)[0].notes
        assert notes[late]["angles"]["+0"] == 1.0
    assert notes[0]["images"]["+0"] > 0.9 and not warnings(notes[0])
    assert notes[1]["images"]["+1"] > 0.9
    (warning,) = warnings(notes[1])
    assert "a: the image does not turn with the mouse" in warning
    lines = turning_lines(100)
    for tick in range(99, 1, -1):
        lines[tick]["yaw"] = lines[tick - 1]["yaw"]
    log = read_log("\n".join(map(json.dumps, lines)).encode(), "")
    shifted = {"recording": "b", "angles": angle_agreement(log), "images": None}
    assert "the logged view" in warnings(shifted)[0]


def test_invalid_recordings_are_skipped_and_restart_rebuilds_all(recorded_pairs, tmp_path, capsys):
    folder = tmp_path / "recorded_pairs"
    folder.mkdir()
    for path in recorded_pairs.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    cut = (folder / "pair-1.mp4").read_bytes()
    (folder / "pair-1.mp4").write_bytes(cut[: len(cut) // 2])
    config = VptConfig(
        tmp_path / "run", folder, frame_format=FrameFormat(resolution=16), num_workers=1
    )
    with pytest.raises(ValueError, match=r"pair-1\.mp4"):
        vpt_command(config)
    config = replace(config, skip_invalid=True)
    vpt_command(config)
    printed = capsys.readouterr().out
    assert printed.count("skipped:") == 1 and "pair-1.mp4" in printed
    dataset = EpisodeDataset(tmp_path / "run" / "shards")
    assert [n["recording"] for n in dataset.notes] == ["pair-0", "pair-2"]
    (folder / "pair-1.mp4").write_bytes(cut)
    vpt_command(config)
    printed = capsys.readouterr().out
    assert "1 shard written" in printed and "skipped" not in printed
    assert len(EpisodeDataset(tmp_path / "run" / "shards")) == 3
    vpt_command(replace(config, restart=True))
    assert "3 shards written" in capsys.readouterr().out


def test_recordings_that_changed_or_grew_are_noticed(recorded_pairs, tmp_path, capsys):
    folder = tmp_path / "recordings"
    shutil.copytree(recorded_pairs, folder)
    config = VptConfig(
        tmp_path / "run", folder, frame_format=FrameFormat(resolution=16), num_workers=1
    )
    vpt_command(config)
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    config = replace(config, recordings=moved)
    vpt_command(config)
    assert "all shards exist" in capsys.readouterr().out
    log = (moved / "pair-1.jsonl").read_text()
    (moved / "pair-1.jsonl").write_text(log.replace('"dy": 0', '"dy": 3', 1))
    with pytest.raises(ValueError, match=r"^pair-1: other content than .* shard-00001\.h5"):
        vpt_command(config)
    (tmp_path / "run" / "shards" / "shard-00001.h5").unlink()
    vpt_command(config)
    assert "1 shard written" in capsys.readouterr().out
    write_pair(moved, "pair-9", 64)
    with pytest.raises(ValueError, match=r"now has 4 recordings.* are of 3; --restart"):
        vpt_command(config)
    vpt_command(replace(config, restart=True))
    assert "4 shards written" in capsys.readouterr().out


def test_the_digest_of_a_recording_is_that_of_its_content(recorded_pairs, tmp_path):
    pairs, _ = find_local(recorded_pairs, False)
    digests = [recording_digest(pair) for pair in pairs]
    assert len(set(digests)) == 3
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for path in sorted(recorded_pairs.iterdir()):
            tar.add(path, path.name)
    packed, _ = find_local(tmp_path / "all.tar", False)
    assert [recording_digest(pair) for pair in packed] == digests


def test_reports_of_many_recordings_stay_short():
    turned = {"+0": 0.1, "-1": 0.9, "+1": 0.1}
    notes = [
        {"recording": f"r{n}", "frames": 9, "missing_frames": 1, "lines": 4, "broken_lines": [],
         "angles": turned, "images": None}
        for n in range(500)
    ]  # fmt: skip
    dataset: Any = SimpleNamespace(
        notes=notes,
        num_frames=4,
        description={},
        read_rows=lambda *_: np.zeros((4, len(INPUT_NAMES)), np.float32),
    )
    lines = describe_agreement(dataset)
    assert len(lines) < 20 and max(map(len, lines)) < 1000
    assert any("and 490 more" in line for line in lines) and "500 such in all" in lines[-1]


def test_ranks_share_the_recordings(recorded_pairs, tmp_path, capsys, monkeypatch):
    config = VptConfig(
        tmp_path, recorded_pairs, frame_format=FrameFormat(resolution=16), num_workers=1
    )
    for rank, printed in ((0, "rank 0 of 2 wrote 2"), (1, "1 shard written")):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        vpt_command(config)
        assert printed in capsys.readouterr().out
    assert EpisodeDataset(tmp_path / "shards").num_frames == 3 * 64


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "--recordings PATH and --index"),
        (["--recordings", "nowhere", "--restart"], "nowhere does not exist"),
    ],
)
def test_a_users_mistake_is_reported_in_one_line(flags, message, tmp_path):
    result = call_script("preprocess.py", "vpt", *flags, "--run", str(tmp_path))
    assert result.returncode == 1 and message in result.stderr
    assert result.stderr.strip().count("\n") == 0
