"""Minecraft recordings as a source of episodes.

A shard is a part of one recording: shards stay small at any resolution, and an invalid recording
does not affect the others. Letters: T frames, H W pixels, I inputs.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import av
import numpy as np

from data.ranges import MAX_SIDE, MIN_SIDE, CheckedConfig, Range
from data.shards.build_shards import SkipShard
from data.shards.episodes import Episode
from data.shards.segments import SEGMENTS, segment_bounds
from data.vpt.alignment import angle_agreement, image_agreement
from data.vpt.content import recording_digest
from data.vpt.cursor import draw_cursor
from data.vpt.file_slice import VideoAndLog
from data.vpt.video import TICKS_PER_SECOND, read_frames, read_video_info, shrink
from data.vpt.vpt_actions import INPUT_COLUMN, INPUT_NAMES, CameraQuantizer, action_spec, encode
from data.vpt.vpt_log import VptLog, read_log

MAX_TICKS = 6000  # length of a recording, at most
BYTES_PER_SHARD = 128 * 2**20  # of frames
MAX_LENGTH_MISMATCH = 0.1  # fraction by which the numbers of frames and lines may differ
GAP_TICKS = TICKS_PER_SECOND  # skipped between two segments, whose frames would look alike
MIN_EPISODE_FRAMES = 2
SKIP_FLAG = "--skip-invalid"
NOT_FETCHED = "was not downloaded"


@dataclass(frozen=True)
class FrameFormat(CheckedConfig):
    """How recordings become frames and actions."""

    resolution: Annotated[int, Range(MIN_SIDE, MAX_SIDE)] = 64
    """Height of a frame in pixels, and its width unless --keep-aspect."""
    keep_aspect: bool = False
    """Keep 16 : 9, to the nearest 16 pixels of width; else frames are square, as in VPT."""
    frameskip: Annotated[int, Range(1, MAX_TICKS // MIN_EPISODE_FRAMES)] = 1
    """Ticks from one frame to the next; turns are summed, and a key counts if held half of them."""
    gui: bool = True
    """Keep segments with a GUI open."""
    cursor: bool = False
    """Draw the mouse cursor where a GUI is open."""
    camera_maxval: Annotated[float, Range(above=0, high=180)] = 10.0
    """Degrees of the outermost camera bins."""
    camera_mu: Annotated[float, Range(0, 10**6)] = 10.0
    """Mu of the camera's mu-law bins; 0 makes them uniform."""

    def check(self) -> None:
        super().check()
        self.camera_quantizer.check()

    @property
    def image_size(self) -> tuple[int, int]:
        width = round(self.resolution * 16 / 9 / 16) * 16 if self.keep_aspect else self.resolution
        return self.resolution, width

    @property
    def camera_quantizer(self) -> CameraQuantizer:
        return CameraQuantizer(maxval=self.camera_maxval, mu=self.camera_mu)


@dataclass(frozen=True)
class VptSource:
    """A source of episodes. `names` are all recordings; `pairs` those on this machine: the others
    are skipped (`skip_invalid`), or another rank's."""

    names: tuple[str, ...]
    pairs: tuple[VideoAndLog, ...]
    frame_format: FrameFormat
    skip_invalid: bool = False

    @property
    def shards_per_recording(self) -> int:
        """Number of shards of each recording."""
        height, width = self.frame_format.image_size
        frames = BYTES_PER_SHARD // (height * width * 3)
        return -(-(MAX_TICKS // self.frame_format.frameskip) // frames)

    @property
    def num_shards(self) -> int:
        return len(self.names) * self.shards_per_recording

    @property
    def split_by_segment(self) -> bool:
        """Whether segments of each recording are held out, as there are too few recordings."""
        return len(self.names) < 3

    @property
    def num_sources(self) -> int:
        return len(self.names) * (SEGMENTS if self.split_by_segment else 1)

    def description(self) -> dict[str, Any]:
        return {
            "source": "minecraft",
            "image_size": list(self.frame_format.image_size),
            "actions": action_spec(self.frame_format.camera_quantizer).as_dict(),
            "input_names": list(INPUT_NAMES),
            "steps_per_second": TICKS_PER_SECOND / self.frame_format.frameskip,
            "held_out": "segments" if self.split_by_segment else "recordings",
            "recordings": {"recordings": len(self.names), "sha256": _digest(self.names)},
            # earlier versions remembered the names here: their shards stay valid
            "settings": asdict(self.frame_format) | {"recordings": _digest(self.names)},
        }

    def make_shard(self, index: int) -> list[Episode]:
        recording, part = divmod(index, self.shards_per_recording)
        pair = next((p for p in self.pairs if p.name == self.names[recording]), None)
        if pair is None:
            raise SkipShard(f"{self.names[recording]} {NOT_FETCHED}")
        try:
            return self._episodes(pair, recording, part)
        except ValueError as problem:
            if self.skip_invalid or isinstance(problem, SkipShard):
                raise SkipShard(str(problem)) from None
            if SKIP_FLAG in str(problem):
                raise
            raise ValueError(f"{problem}, or skip it with {SKIP_FLAG}") from None

    def _episodes(self, pair: VideoAndLog, number: int, part: int) -> list[Episode]:
        log = read_log(pair.log.read(), str(pair.log), self.skip_invalid)
        info = read_video_info(pair.video)
        _check_video(pair, info.rate, info.width / info.height)
        num_frames, num_ticks = len(info.ticks), int(info.ticks[-1]) + 1
        count = min(num_ticks, len(log))
        longer = max(num_ticks, len(log))
        if longer - min(num_frames, count) > MAX_LENGTH_MISMATCH * longer:
            during = f" in {num_ticks} ticks" if num_ticks > num_frames else ""
            raise ValueError(
                f"{pair.video} has {num_frames} frames{during}, but {pair.log} {len(log)} lines; "
                f"they may differ by {MAX_LENGTH_MISMATCH:.0%} at most: get the pair again"
            )
        frameskip = self.frame_format.frameskip
        steps = count // frameskip
        begin, end = (
            steps * part // self.shards_per_recording,
            steps * (part + 1) // self.shards_per_recording,
        )
        shown = np.isin(np.arange(begin, end) * frameskip, info.ticks)  # not where one is missing
        frames = self._frames(pair, log, info.ticks, begin, end)
        inputs = sum_inputs(log.inputs[begin * frameskip : end * frameskip], frameskip)
        actions = encode(inputs, self.frame_format.camera_quantizer)
        notes = {
            "recording": pair.name,
            "content": recording_digest(pair),
            "frames": num_frames,
            "missing_frames": num_ticks - num_frames,
            "lines": len(log),
            "broken_lines": list(log.invalid_lines),
            "angles": angle_agreement(log),
            "images": image_agreement(frames, inputs, shown) if frameskip == 1 else None,
        }
        episodes = []
        usable = shown if self.frame_format.gui else shown & (inputs[:, INPUT_COLUMN["gui"]] == 0)
        for first, last, source in self._ranges(usable, number, begin, end, steps):
            rows = slice(first - begin, last - begin)
            episode = Episode(frames[rows], actions[rows], source=source, inputs=inputs[rows])
            episode.notes = notes | {"first": first * frameskip, "last": last * frameskip}
            episodes.append(episode)
        if not episodes:
            without = "" if self.frame_format.gui else " without an open GUI"
            raise SkipShard(
                f"{pair.name}: part {part + 1} of {self.shards_per_recording} has no "
                f"{MIN_EPISODE_FRAMES} frames in a row{without} ({count} ticks, --frameskip "
                f"{frameskip})"
            )
        return episodes

    def _frames(
        self, pair: VideoAndLog, log: VptLog, ticks: np.ndarray, begin: int, end: int
    ) -> np.ndarray:
        """Read the frames of steps [begin, end) at the requested size: (T, H, W, 3) uint8.

        ticks: that of each frame of the video. A frame that it lacks stays black.
        """
        frame_format = self.frame_format
        height, width = frame_format.image_size
        frames = np.zeros((end - begin, height, width, 3), np.uint8)
        gui = log.inputs[:, INPUT_COLUMN["gui"]] > 0
        edges = (begin * frame_format.frameskip, end * frame_format.frameskip)
        first, last = np.searchsorted(ticks, edges).tolist()
        wanted = read_frames(pair.video, first, last)
        for tick, frame in zip(ticks[first:last].tolist(), wanted, strict=True):
            if tick % frame_format.frameskip:
                continue
            if frame_format.cursor and gui[tick]:
                image = frame.to_ndarray(format="rgb24")
                draw_cursor(image, *log.cursor[tick].tolist())
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frames[tick // frame_format.frameskip - begin] = shrink(frame, height, width)
        return frames

    def _ranges(
        self, usable: np.ndarray, number: int, begin: int, end: int, steps: int
    ) -> list[tuple[int, int, int]]:
        """List (first, last, source) of each episode within steps [begin, end); last exclusive.

        usable: (end - begin,) bool; an episode ends before a step that is not.
        """
        ranges = [(begin, end, number)]
        if self.split_by_segment:
            gap = -(-GAP_TICKS // self.frame_format.frameskip)
            ranges = [
                (max(begin, low), min(end, high), number * SEGMENTS + i)
                for i, (low, high) in enumerate(segment_bounds(steps, gap))
            ]
        if not usable.all():
            kept = np.flatnonzero(usable) + begin
            runs = np.split(kept, np.flatnonzero(np.diff(kept) > 1) + 1)
            ranges = [
                (max(low, int(run[0])), min(high, int(run[-1]) + 1), source)
                for low, high, source in ranges
                for run in runs
                if len(run)
            ]
        return [cut for cut in ranges if cut[1] - cut[0] >= MIN_EPISODE_FRAMES]


def sum_inputs(inputs: np.ndarray, frameskip: int) -> np.ndarray:
    """Combine the inputs of `frameskip` ticks into one step: (T * frameskip, I) -> (T, I)."""
    groups = inputs.reshape(-1, frameskip, inputs.shape[1])
    camera_columns = [INPUT_COLUMN["pitch_degrees"], INPUT_COLUMN["yaw_degrees"]]
    steps = (groups.mean(1) >= 0.5).astype(np.float32)
    steps[:, camera_columns] = groups[:, :, camera_columns].sum(1)
    return steps


def _check_video(pair: VideoAndLog, rate: float, aspect: float) -> None:
    if abs(rate - TICKS_PER_SECOND) > 0.01 * TICKS_PER_SECOND:
        raise ValueError(
            f"{pair.video} has {rate:.4g} frames per second, but recordings of this kind have "
            f"{TICKS_PER_SECOND}, one per line of the log; get the original"
        )
    if abs(aspect - 16 / 9) > 0.01:
        raise ValueError(
            f"{pair.video} has an aspect ratio of {aspect:.3f}, but recordings of this kind are "
            f"16 : 9 ({16 / 9:.3f}); get the original"
        )


def _digest(names: tuple[str, ...]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
