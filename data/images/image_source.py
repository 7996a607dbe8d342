"""Import of still images: folders of PNG, JPEG and WebP files, without order or actions.

Each crop of an image is an episode of one frame; the crops of one image share a split.

Letters: H W pixels, S side of a frame.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.actions import ActionSpec
from data.formats.decode_image import decode_image
from data.io.folders import has_suffix, visible_files
from data.opencv import resize_area
from data.processes import map_in_processes
from data.shards.episodes import Episode
from data.shards.identity import digest_of, readable_digest

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FRAMES_PER_SHARD = 4096
MIN_IMAGE_SIDE = 8  # pixels; less is no image, but a marker of something
ASPECT = 4 / 3  # of a crop, at most, before it is resized to a square (Inception's crops)


@dataclass(frozen=True)
class ImageSource:
    """A source of crops of images; each image is a source of its own."""

    files: tuple[str, ...]
    """Files that can be decoded (`find_images`)."""
    root: str
    """Folder that they lie below, by which they are named."""
    resolution: int
    crops: int = 1
    """Crops of an image; 1 takes the largest square in its middle."""
    min_area: float = 0.2
    """Least share of the image's largest square that a crop covers."""
    seed: int = 0

    @property
    def num_sources(self) -> int:
        return len(self.files)

    @property
    def num_shards(self) -> int:
        return -(-len(self.files) // self._images_per_shard)

    @property
    def _images_per_shard(self) -> int:
        return max(1, FRAMES_PER_SHARD // self.crops)

    def description(self) -> dict[str, Any]:
        files = [Path(file) for file in self.files]
        return {
            "source": "images",
            "image_size": [self.resolution, self.resolution],
            "actions": ActionSpec("none", ()).as_dict(),
            "settings": {"crops": self.crops, "min_area": self.min_area, "seed": self.seed},
            "recordings": {
                "name": Path(self.root).name,
                "recordings": len(files),
                **digest_of(Path(self.root), files),
            },
        }

    def make_shard(self, index: int) -> list[Episode]:
        size = self._images_per_shard
        numbers = range(index * size, min((index + 1) * size, len(self.files)))
        return [episode for number in numbers for episode in self._episodes(number)]

    def _episodes(self, number: int) -> list[Episode]:
        image = read_image(Path(self.files[number]))
        rng = np.random.default_rng((self.seed, number))
        boxes = [_middle(image)]
        if self.crops > 1:
            boxes = [_random_box(image, self.min_area, rng) for _ in range(self.crops)]
        episodes = []
        for top, left, height, width in boxes:
            crop = np.ascontiguousarray(image[top : top + height, left : left + width])
            frame = resize_area(crop, self.resolution)
            notes = {"image": str(Path(self.files[number]).relative_to(self.root))}
            episodes.append(Episode(frame[None], None, source=number, notes=notes))
        return episodes


def find_images(
    folders: Sequence[Path], num_workers: int
) -> tuple[tuple[str, ...], str, list[str]]:
    """Find the images in files and folders, also nested ones, and decode each once.

    Returns those that can be decoded, the folder that all are below, and a line for each that
    cannot.  ValueError where there is none.
    """
    files: list[Path] = []
    left_out: list[str] = []
    for folder in folders:
        if not folder.exists():
            raise ValueError(f"{folder} is not there; give a folder of images, or image files")
        found = [folder] if folder.is_file() else list(_below(folder, left_out))
        files += (file.resolve() for file in found if has_suffix(file, SUFFIXES))
    files = list(dict.fromkeys(files))  # a folder and one inside it may both be given
    if not files:
        raise ValueError(
            f"no {', '.join(s.removeprefix('.') for s in SUFFIXES)} files in "
            f"{', '.join(map(str, folders))}; give a folder of images"
        )
    problems: dict[int, str] = {}
    digests: dict[int, str] = {}
    advice = f"lower --num-workers, now {num_workers}"
    jobs = [(number, file) for number, file in enumerate(files)]
    with tqdm(total=len(files), desc="images") as progress:
        for number, problem, digest in map_in_processes(_decoded, jobs, num_workers, advice):
            if problem:
                problems[number] = problem
            digests[number] = digest
            progress.update()
    first: dict[str, Path] = {}
    for number in (n for n in range(len(files)) if n not in problems):
        same = first.setdefault(digests[number], files[number])
        if same != files[number]:  # else one image were in several splits
            problems[number] = f"{files[number]} has the content of {same}"
    left_out += [problems[number] for number in sorted(problems)]
    good = tuple(str(file) for number, file in enumerate(files) if number not in problems)
    if not good:
        raise ValueError(f"none of {len(files)} images can be decoded: {left_out[0]}")
    return good, str(_common_folder([Path(file) for file in good])), left_out


def read_image(file: Path) -> np.ndarray:
    """Read an image: (H, W, 3) uint8, RGB; ValueError names what cannot be decoded."""
    try:
        content = file.read_bytes()
    except OSError as problem:
        raise ValueError(f"{file} cannot be read ({problem.strerror or problem})") from None
    if not content:
        raise ValueError(f"{file} is empty")
    image = decode_image(content, str(file))
    if min(image.shape[:2]) < MIN_IMAGE_SIDE:
        raise ValueError(
            f"{file} has {image.shape[0]} x {image.shape[1]} pixels, and a side of an image has "
            f"at least {MIN_IMAGE_SIDE}"
        )
    return image


def _below(folder: Path, left_out: list[str]) -> Sequence[Path]:
    def report(file: Path, problem: str) -> None:
        left_out.append(f"{file} {problem}")

    return list(visible_files(folder, report))


def _decoded(number: int, file: Path) -> tuple[int, str, str]:
    """Return the image's number, what is wrong with it, and the digest of its content."""
    try:
        read_image(file)
        return number, "", readable_digest(file)
    except ValueError as problem:
        return number, str(problem), ""


def _common_folder(files: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([str(file.parent) for file in files]))


def _middle(image: np.ndarray) -> tuple[int, int, int, int]:
    """Return the largest square in the middle: top, left, height, width."""
    height, width = image.shape[:2]
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def _random_box(
    image: np.ndarray, min_area: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw a box: its share of the largest square's area, aspect ratio and place are uniform."""
    height, width = image.shape[:2]
    side = min(height, width) * np.sqrt(rng.uniform(min_area, 1))
    low, high = (np.log(s / side) for s in (max(side * side / width, 1), height))
    limit = np.log(ASPECT) / 2
    # no side is longer than the image's, so that none is cut
    stretch = np.exp(rng.uniform(max(low, -limit), min(high, limit)))
    rows = int(np.clip(round(side * stretch), 1, height))
    columns = int(np.clip(round(side / stretch), 1, width))
    top = int(rng.integers(0, height - rows + 1))
    left = int(rng.integers(0, width - columns + 1))
    return top, left, rows, columns
