"""Videos without actions as a source of episodes: each scene of each file is one.

Letters: T frames, H W pixels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from data.actions import ActionSpec
from data.io.messages import first_few
from data.shards.build_shards import SkipShard
from data.shards.episodes import Episode
from data.shards.identity import digest_of
from data.shards.segments import SEGMENTS, segment_bounds
from data.shards.splits import LONG_ENOUGH
from data.video.find_videos import count_frames, find_videos
from data.video.scenes import SCENE_THRESHOLD, scene_bounds
from data.video.video_file import FrameSize, VideoFile

BYTES_PER_SHARD = 64 * 2**20
MIN_EPISODE_FRAMES = 2
SEGMENT_GAP = 8  # frames that are skipped between two segments, which would look alike


@dataclass(frozen=True)
class Span:
    """A part of a file that is decoded at once, in frames after the frameskip."""

    file: int
    start: int
    stop: int
    source: int


@dataclass(frozen=True)
class VideoSource:
    """A source of episodes. Each file is a source of its own; of fewer than three long ones, each
    of their segments is."""

    videos: tuple[VideoFile, ...]
    lengths: tuple[int, ...]
    """Frames of each file after the frameskip."""
    size: FrameSize
    frameskip: int = 1
    scene_threshold: float = SCENE_THRESHOLD

    @property
    def split_by_segment(self) -> bool:
        """Whether segments of each file are held out, as there are too few files."""
        return len(self.videos) < 3 and min(self.lengths) >= SEGMENTS * LONG_ENOUGH

    @property
    def num_sources(self) -> int:
        return len(self.videos) * (SEGMENTS if self.split_by_segment else 1)

    @property
    def source_lengths(self) -> tuple[int, ...]:
        """Frames of each source, before it is cut into scenes."""
        spans = self._sources()
        return tuple(span.stop - span.start for span in spans)

    @property
    def num_shards(self) -> int:
        return len(self._spans_by_shard())

    def description(self) -> dict[str, Any]:
        files = [file for video in self.videos for file in video.files]
        base = Path(os.path.commonpath([os.path.abspath(file.parent) for file in files]))
        return {
            "source": "video",
            "image_size": [self.size.height, self.size.width],
            "actions": ActionSpec("none", ()).as_dict(),
            "held_out": "segments" if self.split_by_segment else "files",
            "settings": {
                "stretch": self.size.stretch,
                "frameskip": self.frameskip,
                "scene_threshold": self.scene_threshold,
            },
            "recordings": {
                "recordings": len(self.videos),
                **digest_of(base, map(Path, map(os.path.abspath, files))),
            },
        }

    def make_shard(self, index: int) -> list[Episode]:
        """Decode a shard's spans, and cut them into scenes.

        What is damaged is left out, as a whole span, and what is shorter than MIN_EPISODE_FRAMES:
        the notes of the shard's first episode say so.
        """
        episodes: list[Episode] = []
        left_out: list[str] = []
        cuts = short_scenes = 0
        for span in self._spans_by_shard()[index]:
            try:
                frames = self._read(span)
            except (ValueError, OSError) as problem:
                left_out.append(self._damage(span, problem))
                continue
            bounds = scene_bounds(frames, self.scene_threshold)
            cuts += len(bounds) - 1
            for start, stop in bounds:
                if stop - start < MIN_EPISODE_FRAMES:
                    short_scenes += 1
                    continue
                first = (span.start + start) * self.frameskip
                notes = {"video": self.videos[span.file].name, "first": first}
                scene = np.ascontiguousarray(frames[start:stop])
                episodes.append(Episode(scene, None, source=span.source, notes=notes))
        if not episodes:
            raise SkipShard(first_few(left_out) or "no scene has two frames")
        episodes[0].notes |= {"left_out": left_out, "cuts": cuts, "short_scenes": short_scenes}
        return episodes

    def _read(self, span: Span) -> np.ndarray:
        video, count = self.videos[span.file], span.stop - span.start
        return video.read(span.start * self.frameskip, count, self.frameskip, self.size)

    def _damage(self, span: Span, problem: Exception) -> str:
        if (span.start, span.stop) == (0, self.lengths[span.file]):
            return str(problem)
        first, last = span.start * self.frameskip, (span.stop - 1) * self.frameskip
        return f"{problem} (only its frames {first} to {last} are left out)"

    def _sources(self) -> list[Span]:
        """Return the whole of each source."""
        if not self.split_by_segment:
            return [Span(file, 0, length, file) for file, length in enumerate(self.lengths)]
        return [
            Span(file, start, stop, file * SEGMENTS + number)
            for file, length in enumerate(self.lengths)
            for number, (start, stop) in enumerate(segment_bounds(length, SEGMENT_GAP))
        ]

    def _spans_by_shard(self) -> list[list[Span]]:
        """Group sources into shards of at most BYTES_PER_SHARD; longer ones are divided."""
        most = max(MIN_EPISODE_FRAMES, BYTES_PER_SHARD // (self.size.height * self.size.width * 3))
        groups: list[list[Span]] = [[]]
        total = 0
        for source in self._sources():
            length = source.stop - source.start
            parts = max(1, -(-length // most))
            edges = [source.start + length * part // parts for part in range(parts + 1)]
            for start, stop in pairwise(edges):
                if groups[-1] and total + stop - start > most:
                    groups.append([])
                    total = 0
                groups[-1].append(Span(source.file, start, stop, source.source))
                total += stop - start
        return groups


def open_videos(
    paths: Sequence[Path], size: FrameSize, frameskip: int, scene_threshold: float
) -> tuple[VideoSource, list[str]]:
    """Open all videos at `paths`, and return those that can be used, with a line for each that is
    left out; ValueError where none is left."""
    videos, left_out = find_videos(paths)
    usable = []
    for video, frames in count_frames(videos, left_out):
        kept = -(-frames // frameskip)
        if kept < MIN_EPISODE_FRAMES:
            skipped = f", of which every {frameskip}th is taken" if frameskip > 1 else ""
            left_out.append(f"{video.path} has {frames} frame(s){skipped}: no step")
        else:
            usable.append((video, kept))
    if not usable:
        raise ValueError(f"no video can be used: {first_few(left_out)}")
    found, lengths = zip(*usable, strict=True)
    return VideoSource(found, lengths, size, frameskip, scene_threshold), left_out
