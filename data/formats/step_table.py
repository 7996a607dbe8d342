"""A table of steps next to frames: actions, and what else there is, as CSV, JSON or .npy."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.formats.numpy_files import load_npy
from data.formats.recording import reading
from data.io.folders import has_suffix
from data.io.messages import first_few

SUFFIXES = (".csv", ".json", ".npy")
# count the rows; pandas writes its index under no name
COUNTERS = ("step", "frame", "index", "t", "frame_index", "step_idx", "")
IGNORED = ("time", "timestamp", "image", "file", "filename", "path")
WHOLE = re.compile(r"[+-]?\d+")
TRUTH = {"true": "1", "false": "0"}
BLANK = ("", " ", None)  # in the last row


def find_table(folder: Path, *names: str) -> Path | None:
    """Find the first of `names` that is a table in a folder: NAME.csv, .json or .npy."""
    found = [f for f in sorted(folder.iterdir()) if has_suffix(f, SUFFIXES) and f.is_file()]
    for name in names:
        named = [file for file in found if file.stem == name]
        if len(named) > 1:
            raise ValueError(f"{first_few(named)} may each hold the actions; keep one")
        if named:
            return named[0]
    return None


def read_table(file: Path) -> dict[str, np.ndarray]:
    """Read the columns of a table: "actions" (T,) or (T, A), and the others by their names.

    Columns whose names begin with "action" are the actions, in their order. Whole numbers stay
    whole.
    """
    if file.suffix.lower() == ".npy":
        values = np.asarray(load_npy(file))
        return {"actions": values}
    if file.suffix.lower() == ".csv":
        return _grouped(_csv_columns(file), file)
    with reading(str(file)):
        content = json.loads(file.read_bytes())
    if isinstance(content, list) and content and all(isinstance(row, dict) for row in content):
        keys = list(content[0])
        if any(list(row) != keys for row in content):
            raise ValueError(f"{file} has rows with other keys than {first_few(keys)}")
        content = {key: [row[key] for row in content] for key in keys}
    elif isinstance(content, list):
        content = {"actions": content}
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no list of actions; give [0, 3, 1] or [[0.1, 0.2], ...]")
    return _grouped({str(key): value for key, value in content.items()}, file)


def _csv_columns(file: Path) -> dict[str, list[str]]:
    with reading(str(file)), open(file, newline="", encoding="utf-8-sig") as lines:
        rows = [row for row in csv.reader(lines) if row]
    if not rows or not any(re.search("[A-Za-z]", cell) for cell in rows[0]):
        raise ValueError(
            f"{file} begins without names of columns; a first line such as step,action is needed"
        )
    names = [name.strip() for name in rows[0]]
    if len(names) == 1 and re.search("[;\t]", names[0]):
        raise ValueError(
            f"{file} has no commas between its cells ({rows[0][0]!r}); save it with them"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"{file} names two columns alike: {first_few(names)}")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(names):
            raise ValueError(f"{file}: row {number} has {len(row)} cells, and row 1 {len(names)}")
    return {name: [row[i].strip() for row in rows[1:]] for i, name in enumerate(names)}


def _grouped(columns: Mapping[str, Sequence[Any]], file: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    actions: list[np.ndarray] = []
    for name, cells in columns.items():
        low = name.lower()
        if low in IGNORED or not (isinstance(cells, list) or low.startswith("action")):
            continue  # a fact about the whole episode
        if low.startswith("action") and isinstance(cells, list) and cells and cells[-1] in BLANK:
            cells = cells[:-1]  # the last action leads nowhere
        values = _numbers(cells, name, file)
        if low in COUNTERS:
            _check_counter(values, name, file)
        elif low.startswith("action"):
            actions.append(values)
        else:
            found[name] = values
    if not actions:
        raise ValueError(
            f"{file} has no column of actions ({first_few(columns) or 'it is empty'}); call it "
            f"action, or action_x, action_y and so on"
        )
    if len(actions) > 1 and any(values.ndim != 1 for values in actions):
        raise ValueError(f"{file} has several arrays of actions; give one, (T, A)")
    return {"actions": actions[0] if len(actions) == 1 else np.stack(actions, axis=1)} | found


def _numbers(cells: Sequence[Any], name: str, file: Path) -> np.ndarray:
    if isinstance(cells, list) and all(isinstance(cell, str) for cell in cells):
        cells = [TRUTH.get(cell.strip().lower(), cell) for cell in cells]
        whole = all(WHOLE.fullmatch(cell) for cell in cells)
        for row, cell in enumerate(cells, 2):
            try:
                int(cell) if whole else float(cell)
            except ValueError:
                raise ValueError(
                    f"{file}: row {row} has {name} {cell[:20]!r}, which is no number; "
                    f"number them (0, 1, 2 and so on), or remove that column or row"
                ) from None
        cells = [int(cell) if whole else float(cell) for cell in cells]
    try:
        values = np.asarray(cells)
    except (ValueError, OverflowError):
        values = np.empty(0, object)
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{file}: {name} is no array of numbers, one row a step; correct it")
    return values


def _check_counter(values: np.ndarray, name: str, file: Path) -> None:
    steps = np.diff(values)
    wrong = (steps != steps[:1]) | (steps <= 0)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"{file}: {name} goes from {values[row]} to {values[row + 1]} at row {row + 3}, so "
            f"rows are missing or out of order; each step needs one"
        )
