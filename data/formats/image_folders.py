"""Folders of numbered images, an episode each, with a table of actions in or next to them.

Letters: T frames, H W pixels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from data.formats.decode_image import decode_image
from data.formats.numpy_files import open_file
from data.formats.recording import Column, Recording, RecordingSet, array_column
from data.formats.step_table import find_table, read_table
from data.io.folders import has_suffix
from data.io.messages import first_few

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def read_image_folders(files: Sequence[Path]) -> RecordingSet:
    """Read images; each folder that holds some is an episode, in the order of their numbers."""
    by_folder: dict[Path, list[Path]] = {}
    for file in files:
        if has_suffix(file, SUFFIXES):
            by_folder.setdefault(file.parent, []).append(file)
    tables = {folder: _table_of(folder) for folder in by_folder}
    recordings = [
        Recording(
            str(folder), {"frames": _frames(in_order(images))} | table_columns(tables[folder])
        )
        for folder, images in by_folder.items()
    ]
    read = [*(f for images in by_folder.values() for f in images), *filter(None, tables.values())]
    check_tables(tables)
    return RecordingSet(recordings, tuple(read))


def _table_of(folder: Path) -> Path | None:
    table = find_table(folder, folder.name, "actions", "action")
    if table := table or find_table(folder.parent, folder.name):
        return table
    other = next((f for f in sorted(folder.iterdir()) if has_suffix(f, (".csv", ".npy"))), None)
    if other:
        raise ValueError(
            f"{other} may hold the actions of the images next to it; call it "
            f"actions{other.suffix} if it does, or move it away"
        )
    return None


def check_tables(tables: Mapping[Path, Path | None]) -> None:
    """Refuse episodes of which some have a table, and others do not."""
    missing = [str(path) for path, table in tables.items() if table is None]
    if missing and len(missing) < len(tables):
        raise ValueError(
            f"{first_few(missing, 3)} without a table of actions, which "
            f"{len(tables) - len(missing)} others have: add STEM.csv or actions.csv (or .json, "
            f".npy), or remove them"
        )


def table_columns(table: Path | None) -> dict[str, Column]:
    if table is None:
        return {}
    values = read_table(table)
    return {name: array_column(array, f"{table}: its {name}") for name, array in values.items()}


def in_order(images: list[Path]) -> list[Path]:
    """Sort images by the last number in their names; each number once, none left out."""
    numbered: dict[int, Path] = {}
    for image in images:
        digits = re.findall(r"\d+", image.stem)
        if not digits:
            raise ValueError(
                f"{image} has no number in its name, so its place is unknown; number it"
            )
        number = int(digits[-1])
        if number in numbered:
            raise ValueError(
                f"{image} and {numbered[number].name} have the same number; give each camera and "
                f"each episode its own folder"
            )
        numbered[number] = image
    numbers = sorted(numbered)
    stride = numbers[1] - numbers[0] if len(numbers) > 1 else 1
    for before, after in pairwise(numbers):
        if after - before != stride:
            raise ValueError(
                f"{numbered[after]} follows {numbered[before].name}, so images are missing between "
                f"them, and steps would differ in length; add them, or cut the folder in two"
            )
    return [numbered[number] for number in numbers]


def _frames(images: list[Path]) -> Column:
    shape = read_image(images[0]).shape

    def read(start: int, stop: int) -> np.ndarray:
        frames = np.empty((stop - start, *shape), np.uint8)
        for index, image in enumerate(images[start:stop]):
            values = read_image(image)
            if values.shape != shape:
                raise ValueError(
                    f"{image} has {values.shape[0]} x {values.shape[1]} pixels, and "
                    f"{images[0].name} {shape[0]} x {shape[1]}; resize them to one size"
                )
            frames[index] = values
        return frames

    return Column((len(images), *shape), np.dtype(np.uint8), read)


def read_image(image: Path) -> np.ndarray:
    """Read an image: (H, W, 3) uint8, RGB."""
    with open_file(image) as file:
        return decode_image(file.read(), str(image))
