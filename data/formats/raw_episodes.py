"""Episodes as stored in files: found, named, aligned and cut, but with values not yet looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.formats.episode_ends import episode_bounds
from data.formats.field_names import FIELDS, Names, resolve
from data.formats.recording import Recording, RecordingSet
from data.formats.size_limits import check_count, check_fits
from data.formats.step_alignment import Alignment, read_actions, read_outcomes, rows_lacking
from data.io.messages import first_few

OPTIONAL_KEYS = ("rewards", "terminals", "states", "contacts")


@dataclass(frozen=True)
class ReadOptions:
    """What only the user can know of the files."""

    frames_key: str = ""  # stored name of the frames
    rename: tuple[str, ...] = ()  # "stored=field", or "stored=" for an array to leave aside
    alignment: Alignment = "next"


@dataclass(frozen=True)
class RawEpisodes:
    """Episodes as stored in the files, not yet interpreted."""

    lengths: tuple[int, ...]
    keys: frozenset[str]
    read: Callable[[int, str], np.ndarray]  # (episode, field) -> (T, ...)
    location: Callable[[int], str]  # an episode and its file, for messages
    files: tuple[Path, ...] = ()  # all that was read, for the identity of the recordings
    remarks: tuple[str, ...] = ()  # lines for the user: what was taken for what, and left aside


@dataclass(frozen=True)
class _Span:
    """An episode: frames [start, stop) of a recording."""

    recording: int
    start: int
    stop: int
    where: str


def assemble(found: RecordingSet, options: ReadOptions) -> RawEpisodes:
    """Make episodes of recordings; ValueError names the first that does not fit the others."""
    recordings = found.recordings
    check_count(len(recordings), found.files[0].name if found.files else "the path")
    first = recordings[0]
    names = resolve(first.columns, found.names, options.frames_key, options.rename, first.where)
    lacks_row = rows_lacking(first, names)
    if options.alignment == "previous" and lacks_row.get("actions"):
        raise ValueError(
            f"--alignment previous needs as many actions as frames, but {first.where} has one "
            f"frame more"
        )
    spans: list[_Span] = []
    cut = 0  # recordings that hold more episodes than they said
    for number, recording in enumerate(recordings):
        _check_like_first(recording, first, names, lacks_row)
        parts = list(episode_bounds(recording, names, lacks_row))
        check_count(len(parts), recording.where)
        cut += len(parts) > max(1, len(recording.ends))
        part = "part" if recording.where.startswith("episode") else "episode"
        for index, (start, stop) in enumerate(parts):
            where = recording.where if len(parts) == 1 else f"{part} {index} of {recording.where}"
            for stored in names.stored.values():
                column = recording.columns[stored]
                check_fits((stop - start, *column.shape[1:]), column.dtype.itemsize, stored, where)
            spans.append(_Span(number, start, stop, where))

    def read(episode: int, field: str) -> np.ndarray:
        span = spans[episode]
        column = recordings[span.recording].columns[names.stored[field]]
        if field == "actions":
            return read_actions(
                column, span.start, span.stop, bool(lacks_row[field]), options.alignment
            )
        if field in ("rewards", "terminals"):
            return read_outcomes(
                column, span.start, span.stop, bool(lacks_row[field]), found.by_transition
            )
        return column.read(span.start, span.stop)

    return RawEpisodes(
        tuple(span.stop - span.start for span in spans),
        frozenset(names.stored) - {"truncations"},
        read,
        lambda episode: spans[episode].where,
        found.files,
        tuple(_remarks(found, names, lacks_row, cut, len(recordings), len(spans))),
    )


def _check_like_first(
    recording: Recording, first: Recording, names: Names, lacks_row: dict[str, int]
) -> None:
    """Refuse a recording with other arrays than the first, or aligned in another way."""
    expected = set(names.stored)
    present = {name for name, stored in names.stored.items() if stored in recording.columns}
    present |= {
        name
        for name in FIELDS
        if name in recording.columns and name not in first.columns and name not in expected
    }
    if present != expected:
        raise ValueError(
            f"{recording.where} holds {first_few(sorted(present)) or 'nothing known'}, but "
            f"{first.where} holds {first_few(sorted(expected))}; all need the same arrays"
        )
    lacking = rows_lacking(recording, names)
    for name, rows in lacking.items():
        if rows != lacks_row[name]:
            total = len(recording.columns[names.stored["frames"]])
            raise ValueError(
                f"{recording.where} has {total} frames but {total - rows} {name}, and in "
                f"{first.where} there are {'as many' if rows else 'one less'}; get it again"
            )


def _remarks(
    found: RecordingSet,
    names: Names,
    lacks_row: dict[str, int],
    cut: int,
    total: int,
    episodes: int,
) -> Iterator[str]:
    yield from found.remarks
    in_order = ((name, names.stored[name]) for name in FIELDS if name in names.stored)
    other = [f"{stored} as {name}" for name, stored in in_order if stored != name]
    if other:
        yield f"read {first_few(other, len(FIELDS))}"
    if names.left:
        yield f"left aside, not read: {first_few(names.left)}"
    if names.question:
        yield f"warning: there are no actions; {names.question}"
    if cut:
        yield (
            f"{cut} of {total} recordings go on after a terminal or a time limit: cut there into "
            f"{episodes} episodes in all"
        )
    if lacks_row.get("actions"):
        yield "one more frame than actions in each episode: the last action is repeated"
    if found.by_transition and {"rewards", "terminals"} & set(names.stored):
        yield (
            "rewards and ends are of the action before: each goes to the frame that the action "
            "leads to, and those of the last action to the last frame"
        )
