"""Recordings of Minecraft as a source of episodes.

One shard is a part of one recording, so that shards stay small whatever their resolution, and a
recording that cannot be used takes no other with it.  Letters: T frames, H W pixels, I inputs.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import av
import numpy as np

from data.build_shards import LeftOut
from data.episodes import Episode
from data.vpt.alignment import angles_agree, images_agree
from data.vpt.cursor import draw_cursor
from data.vpt.file_slice import Pair
from data.vpt.video import read_facts, read_frames, shrink
from data.vpt.vpt_actions import COLUMN, INPUT_NAMES, Binning, action_spec, encode
from data.vpt.vpt_log import Log, read_log

TICKS_PER_SECOND = 20
SEGMENT = 6000  # ticks that a recording lasts at most
BYTES_PER_SHARD = 128 * 2**20  # of frames
GAP = 0.1  # share by which the numbers of frames and lines may differ; 3% was seen
STRETCHES = 10  # that each recording is cut into, where there are too few to hold one out
REST = TICKS_PER_SECOND  # ticks left out between two stretches, which would look alike
LEAST = 2  # frames of an episode
NOT_FETCHED = "was not fetched"


@dataclass(frozen=True)
class Look:
    """What becomes of a recording."""

    resolution: int = 64
    """Height of a frame in pixels, and its width unless --keep-aspect."""
    keep_aspect: bool = False
    """Keep 16 : 9, to the nearest 16 pixels of width; else frames are squares, as VPT's own."""
    frame_skip: int = 1
    """Ticks from one frame to the next; turns add up, and a key counts if held half the time."""
    gui: bool = True
    """Keep stretches with a GUI open."""
    cursor: bool = False
    """Draw the mouse cursor where a GUI is open."""
    camera_limit: float = 10.0
    """Degrees of the outermost camera bins."""
    camera_mu: float = 10.0
    """Mu of the camera's mu-law bins; 0 makes them even."""

    def __post_init__(self) -> None:
        if self.resolution < 16 or self.frame_skip < 1:
            raise ValueError(
                f"--resolution {self.resolution} and --frame-skip {self.frame_skip} show "
                f"nothing; they begin at 16 and 1"
            )

    @property
    def size(self) -> tuple[int, int]:
        width = round(self.resolution * 16 / 9 / 16) * 16 if self.keep_aspect else self.resolution
        return self.resolution, width

    @property
    def binning(self) -> Binning:
        return Binning(limit=self.camera_limit, mu=self.camera_mu)


@dataclass(frozen=True)
class VptRecordings:
    """A source of episodes. `names` are all recordings; `pairs` those that are here: the others
    are left out (`skip_bad`), or another rank's."""

    names: tuple[str, ...]
    pairs: tuple[Pair, ...]
    look: Look
    skip_bad: bool = False

    @property
    def parts(self) -> int:
        """Shards of each recording."""
        height, width = self.look.size
        frames = BYTES_PER_SHARD // (height * width * 3)
        return -(-(SEGMENT // self.look.frame_skip) // frames)

    @property
    def shards(self) -> int:
        return len(self.names) * self.parts

    @property
    def by_stretch(self) -> bool:
        """Too few recordings to hold one out: stretches of each are."""
        return len(self.names) < 3

    @property
    def sources(self) -> int:
        return len(self.names) * (STRETCHES if self.by_stretch else 1)

    def description(self) -> dict[str, Any]:
        return {
            "source": "minecraft",
            "image_size": list(self.look.size),
            "actions": action_spec(self.look.binning).as_dict(),
            "input_names": list(INPUT_NAMES),
            "steps_per_second": TICKS_PER_SECOND / self.look.frame_skip,
            "held_out": "stretches" if self.by_stretch else "recordings",
            "settings": asdict(self.look) | {"recordings": _digest(self.names)},
        }

    def make(self, index: int) -> list[Episode]:
        number, part = divmod(index, self.parts)
        pair = next((p for p in self.pairs if p.name == self.names[number]), None)
        if pair is None:
            raise LeftOut(f"{self.names[number]} {NOT_FETCHED}")
        try:
            return self._episodes(pair, number, part)
        except ValueError as problem:
            if self.skip_bad:
                raise LeftOut(str(problem)) from None
            raise

    def _episodes(self, pair: Pair, number: int, part: int) -> list[Episode]:
        log = read_log(pair.log.read(), str(pair.log), self.skip_bad)
        facts = read_facts(pair.video)
        _check(pair, facts.rate, facts.width / facts.height)
        count = min(facts.frames, len(log))
        longer = max(facts.frames, len(log))
        if longer - count > GAP * longer:
            raise ValueError(
                f"{pair.video} has {facts.frames} frames, but {pair.log} {len(log)} lines; more "
                f"than {GAP:.0%} apart they do not belong together: get the pair again"
            )
        skip = self.look.frame_skip
        steps = count // skip
        begin, end = steps * part // self.parts, steps * (part + 1) // self.parts
        frames = self._frames(pair, log, begin, end)
        inputs = summed(log.inputs[begin * skip : end * skip], skip)
        actions = encode(inputs, self.look.binning)
        notes = {
            "recording": pair.name,
            "frames": facts.frames,
            "lines": len(log),
            "broken_lines": list(log.bad),
            "angles": angles_agree(log),
            "images": images_agree(frames, inputs) if skip == 1 else None,
        }
        episodes = []
        for first, last, source in self._ranges(inputs, number, begin, end, steps):
            rows = slice(first - begin, last - begin)
            episode = Episode(frames[rows], actions[rows], source=source, inputs=inputs[rows])
            episode.notes = notes | {"first": first * skip, "last": last * skip}
            episodes.append(episode)
        if not episodes:
            raise LeftOut(f"{pair.name}: a GUI is open in all of part {part + 1}")
        return episodes

    def _frames(self, pair: Pair, log: Log, begin: int, end: int) -> np.ndarray:
        """Frames [begin, end) at the size asked for: (T, H, W, 3) uint8."""
        look = self.look
        height, width = look.size
        frames = np.empty((end - begin, height, width, 3), np.uint8)
        gui = log.inputs[:, COLUMN["gui"]] > 0
        wanted = read_frames(pair.video, begin * look.frame_skip, end * look.frame_skip)
        for tick, frame in enumerate(wanted, begin * look.frame_skip):
            if tick % look.frame_skip:
                continue
            if look.cursor and gui[tick]:
                whole = frame.to_ndarray(format="rgb24")
                draw_cursor(whole, *log.cursor[tick].tolist())
                frame = av.VideoFrame.from_ndarray(whole, format="rgb24")
            frames[tick // look.frame_skip - begin] = shrink(frame, height, width)
        return frames

    def _ranges(
        self, inputs: np.ndarray, number: int, begin: int, end: int, steps: int
    ) -> list[tuple[int, int, int]]:
        """Episodes within steps [begin, end): first, last (exclusive) and source of each."""
        cuts = [(begin, end, number)]
        if self.by_stretch:
            edges = [steps * i // STRETCHES for i in range(STRETCHES + 1)]
            rest = -(-REST // self.look.frame_skip)
            cuts = [
                (max(begin, low + (rest if i else 0)), min(end, high), number * STRETCHES + i)
                for i, (low, high) in enumerate(pairwise(edges))
            ]
        if not self.look.gui:
            closed = np.flatnonzero(inputs[:, COLUMN["gui"]] == 0) + begin
            runs = np.split(closed, np.flatnonzero(np.diff(closed) > 1) + 1)
            cuts = [
                (max(low, int(run[0])), min(high, int(run[-1]) + 1), source)
                for low, high, source in cuts
                for run in runs
                if len(run)
            ]
        return [cut for cut in cuts if cut[1] - cut[0] >= LEAST]


def summed(inputs: np.ndarray, skip: int) -> np.ndarray:
    """Inputs of `skip` ticks as those of one step: (T * skip, I) -> (T, I)."""
    groups = inputs.reshape(-1, skip, inputs.shape[1])
    turned = [COLUMN["pitch_degrees"], COLUMN["yaw_degrees"]]
    steps = (groups.mean(1) >= 0.5).astype(np.float32)
    steps[:, turned] = groups[:, :, turned].sum(1)
    return steps


def _check(pair: Pair, rate: float, aspect: float) -> None:
    if abs(rate - TICKS_PER_SECOND) > 0.01 * TICKS_PER_SECOND:
        raise ValueError(
            f"{pair.video} has {rate:.4g} frames a second, but recordings of this kind have "
            f"{TICKS_PER_SECOND}, one for each line of the log; get the original"
        )
    if abs(aspect - 16 / 9) > 0.01:
        raise ValueError(
            f"{pair.video} has frames {aspect:.3f} times as wide as high, but recordings of this "
            f"kind are 16 : 9 ({16 / 9:.3f}); get the original"
        )


def _digest(names: tuple[str, ...]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
