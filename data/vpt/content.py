"""What recordings hold: a digest of each, and those that changed since their shards were made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data.io.messages import first_few
from data.shards.shard_header import read_header
from data.vpt.file_slice import VideoAndLog

EDGE = 1 << 18  # bytes at either end of a video that are read: its tables of sizes lie there
NUM_READERS = 8


def recording_digest(pair: VideoAndLog) -> str:
    """Return 16 hex digits of a recording's content, wherever it lies.

    The log is read whole. Of the video, which may be of many GB in all, its size and its two ends
    are: other frames have other sizes, which are listed there. Bits that flip in between stay
    unnoticed here; most of them show when the video is decoded.
    """
    digest = hashlib.sha256(pair.log.read())
    with pair.video.open() as file:
        size = file.seek(0, 2)
        digest.update(f"\0{size}\0".encode())
        for start in (0, max(0, size - EDGE)):
            file.seek(start)
            digest.update(file.read(EDGE))
    return digest.hexdigest()[:16]


def check_unchanged(folder: Path, pairs: Iterable[VideoAndLog]) -> None:
    """Raise ValueError where a recording has other content than when its shards were made."""
    pair_by_name = {pair.name: pair for pair in pairs}
    made: list[tuple[str, str, str]] = []  # recording, its content then, shard
    for path in sorted(folder.glob("shard-*.h5")):
        try:
            note = read_header(path).notes[0]
        except ValueError:  # damaged: `build` makes it anew
            continue
        if note.get("recording") in pair_by_name and "content" in note:  # not of earlier versions
            made.append((note["recording"], note["content"], path.name))
    names = list(dict.fromkeys(name for name, _, _ in made))
    with ThreadPoolExecutor(NUM_READERS) as pool:  # hashlib frees the lock
        digests = pool.map(recording_digest, [pair_by_name[name] for name in names])
        content_now = dict(zip(names, digests, strict=True))
    changed = [(name, shard) for name, content, shard in made if content != content_now[name]]
    if changed:
        recordings = first_few(dict.fromkeys(name for name, _ in changed))
        raise ValueError(
            f"{recordings}: other content than when the shards in {folder} were made; --restart "
            f"makes all anew, another --run keeps both, and if you delete "
            f"{first_few(shard for _, shard in changed)}, these alone are made anew"
        )
