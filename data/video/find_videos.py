"""Find videos and folders of numbered images, and leave out what cannot be opened."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from data.formats import image_folders
from data.io.folders import has_suffix, visible_files
from data.io.messages import first_few
from data.io.sniff import describe_content
from data.video.video_file import VideoFile

VIDEOS = (".mp4", ".mkv", ".webm", ".gif")
NUM_READERS = 8  # threads that open files: most of that is waiting
READ = "videos (.mp4, .mkv, .webm, .gif), or folders of them or of numbered images"


def find_videos(paths: Sequence[Path]) -> tuple[list[VideoFile], list[str]]:
    """Return what lies at or below `paths`, by name, and a line for each that is left out.

    ValueError where a path does not exist, or holds nothing of the kind.
    """
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path} does not exist; give {READ}")
        if path.is_file() and not has_suffix(path, VIDEOS):
            raise ValueError(f"{path} is {describe_content(path)}; give {READ}")
    found: dict[Path, tuple[Path, ...]] = {}  # a video, or a folder with its images
    left_out: list[str] = []

    def note(file: Path, problem: str) -> None:
        left_out.append(f"{file} {problem}")

    for path in (path.resolve() for path in paths):
        # what is linked to is one file, under whatever names: else it were in several splits
        listed_files = [path] if path.is_file() else visible_files(path, note)
        files = list(dict.fromkeys(file.resolve() for file in listed_files))
        videos = dict(_videos(files, left_out))
        if not videos and not left_out:
            kinds = Counter(file.suffix.lower() or "no suffix" for file in files)
            listed = first_few(f"{count} of {kind}" for kind, count in kinds.most_common())
            raise ValueError(f"{path} holds no video ({listed or 'it is empty'}); give {READ}")
        found |= videos
    base = os.path.commonpath([path.parent for path in found]) if found else ""
    named = ((os.path.relpath(path, base).replace(os.sep, "/"), path) for path in found)
    return [VideoFile(name, path, found[path]) for name, path in sorted(named)], left_out


def count_frames(videos: Sequence[VideoFile], left_out: list[str]) -> list[tuple[VideoFile, int]]:
    """Return those that can be opened, each with its number of frames; a line for each of the
    others is added to `left_out`."""

    def count(video: VideoFile) -> int | str:
        try:
            return video.count_frames()
        except (ValueError, OSError) as problem:
            return str(problem)

    counted = []
    with ThreadPoolExecutor(NUM_READERS) as pool:
        counts = tqdm(pool.map(count, videos), "opening", len(videos), leave=False, unit="file")
        for video, frames in zip(videos, counts, strict=True):
            if isinstance(frames, str):
                left_out.append(frames)
            else:
                counted.append((video, frames))
    return counted


def _videos(files: Iterable[Path], left_out: list[str]) -> Iterator[tuple[Path, tuple[Path, ...]]]:
    by_folder: dict[Path, list[Path]] = {}
    for file in files:
        if has_suffix(file, VIDEOS):
            yield file, ()
        elif has_suffix(file, image_folders.SUFFIXES):
            by_folder.setdefault(file.parent, []).append(file)
    for folder, images in by_folder.items():
        try:
            yield folder, tuple(image_folders.in_order(images))
        except ValueError as problem:
            left_out.append(str(problem))
