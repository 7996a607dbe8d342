"""Tiny recordings whose alignment can be read off: frame t is filled with t."""

import numpy as np

from data.formats.raw_episodes import RawEpisodes, ReadOptions
from data.formats.read_raw import read_raw
from data.formats.step_alignment import Alignment


def frames(*times: int) -> np.ndarray:
    """(T, 8, 8, 3) uint8; each frame is filled with its time."""
    return np.tile(np.array(times, np.uint8)[:, None, None, None], (1, 8, 8, 3))


def episodes(path, frames_key="", rename=(), alignment: Alignment = "next") -> RawEpisodes:
    return read_raw(path, ReadOptions(frames_key, tuple(rename), alignment))


def times(raw: RawEpisodes, episode: int) -> list[int]:
    """The times that an episode's frames are filled with."""
    return raw.read(episode, "frames")[:, 0, 0, 0].tolist()


def values(raw: RawEpisodes, episode: int, field: str) -> list:
    return raw.read(episode, field).tolist()
