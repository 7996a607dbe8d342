"""Which stored array is which field: by its name, by a flag, or asked about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from data.formats.recording import Column
from data.io.messages import first_few

FIELDS = ("frames", "actions", "rewards", "terminals", "truncations", "states", "contacts")

# Names that others use, with or without a trailing s. They are asked about, never taken in
# silence: only the one who recorded knows whether a reward is that of the frame or of the action.
NEAR: dict[str, tuple[str, ...]] = {
    "frames": ("frame", "image", "img", "pixel", "observation", "obs", "rgb", "pov", "video"),
    "actions": ("action", "act", "control"),
    "rewards": ("reward", "rew"),
    "terminals": ("terminal", "terminated", "termination", "done", "is_terminal"),
    "truncations": ("truncation", "truncated", "timeout", "is_last"),
    "states": ("state",),
    "contacts": ("contact",),
}
EITHER_END = ("done", "dones")  # true ends alone, or time limits too


@dataclass(frozen=True)
class Names:
    """The outcome: the stored name of each field that is there, and what nobody reads."""

    stored: Mapping[str, str]  # field -> stored name
    left: tuple[str, ...]  # stored names that are not read
    question: str = ""  # which of them may be the actions, where there are none


def resolve(
    columns: Mapping[str, Column],
    known: Mapping[str, str],
    frames_key: str,
    rename: tuple[str, ...],
    where: str,
) -> Names:
    """Find the fields among the arrays of a recording.

    known: stored name -> field, as the format fixes it. frames_key and rename are the flags.
    ValueError where frames are not found, may be one of several arrays, or where a name is near
    to a field that is missing.
    """
    asked = _parse(rename, columns, where)
    if frames_key:
        _check_stored(frames_key, columns, where, "--frames-key")
        asked[frames_key] = "frames"
    stored = {new: old for old, new in asked.items() if new}
    free = [name for name in columns if name not in asked]
    for name in free:
        exact = known.get(name, name if name in FIELDS and not known.get(name) else "")
        if exact and exact not in stored:
            stored[exact] = name
    free = [name for name in columns if name not in stored.values() and asked.get(name) != ""]
    if "frames" not in stored:
        stored["frames"] = _only_images(columns, free, bool(known), where)
        free.remove(stored["frames"])
    shape = columns[stored["frames"]].shape
    if len(shape) == 2:
        raise ValueError(
            f"{where} has frames ({stored['frames']}) of {shape}, which are vectors; a world of "
            f"images needs images: render the episodes, or choose another array with --frames-key"
        )
    _ask_about_near(stored, columns, free, known, where)
    _ask_about_actions(stored, free, where)
    left = [name for name in columns if name not in stored.values()]
    question = "" if "actions" in stored else _maybe_actions(columns, left, shape[0])
    return Names(stored, tuple(left), question)


def _parse(rename: tuple[str, ...], columns: Mapping[str, Column], where: str) -> dict[str, str]:
    asked: dict[str, str] = {}
    for pair in rename:
        old, equals, new = pair.partition("=")
        if not equals or (new and new not in FIELDS):
            raise ValueError(
                f"--rename {pair} must be STORED=FIELD, or STORED= to leave an array aside; fields "
                f"are {', '.join(FIELDS)}"
            )
        _check_stored(old, columns, where, "--rename")
        if new and new in asked.values():
            raise ValueError(f"--rename names two arrays {new}; give one")
        asked[old] = new
    return asked


def _check_stored(name: str, columns: Mapping[str, Column], where: str, flag: str) -> None:
    if name not in columns:
        raise ValueError(f"{flag}: {where} has no array {name!r}, but {_listed(columns)}")


def looks_like_images(column: Column) -> bool:
    """Say whether an array is of RGB frames: (T, H, W, 3) or (T, 3, H, W), numbers."""
    shape = column.shape
    return len(shape) == 4 and 3 in (shape[1], shape[3]) and column.dtype.kind in "buif"


def _only_images(columns: Mapping[str, Column], free: list[str], known: bool, where: str) -> str:
    """Choose the frames where nothing is called frames: the only images of a known format."""
    images = [name for name in free if looks_like_images(columns[name])]
    # robomimic's next_obs repeats its obs, a step later
    images = [name for name in images if not name.startswith("next_")] or images
    if len(images) == 1 and known:
        return images[0]
    if images:
        several = "one of several arrays of images" if len(images) > 1 else "an array of images"
        choices = first_few(f"--frames-key {name}" for name in images)
        near = {} if known else _near({"frames": ""}, free)
        also = f" --rename {_flags(near)}{_time_limits(near)}" if near and len(images) == 1 else ""
        if "actions" not in near.values():
            rows = len(columns[images[0]])
            question = "" if known else _maybe_actions(columns, free, rows)
            also += f"; {question}" if question else ""
        raise ValueError(f"{where} has no frames, but {several}; choose it with {choices}{also}")
    raise ValueError(
        f"{where} has no frames (it holds {_listed(columns)}); an array of that name is needed, "
        f"(T, H, W, 3) or (T, 3, H, W), or --frames-key NAME"
    )


def _ask_about_near(
    stored: Mapping[str, str],
    columns: Mapping[str, Column],
    free: list[str],
    known: Mapping[str, str],
    where: str,
) -> None:
    """Refuse arrays with a name near to a field that is missing, unless the format is known."""
    near = {} if known else _near(stored, free)
    if not near:
        return
    question = ""
    if "actions" not in {*stored, *near.values()}:
        question = _maybe_actions(columns, free, len(columns[stored["frames"]]))
    raise ValueError(
        f"{where} holds {first_few(near)}, which may be {first_few(near.values())}; say so with "
        f"--rename {_flags(near)}{_time_limits(near)}, or leave it aside with --rename "
        f"{next(iter(near))}={f'; {question}' if question else ''}"
    )


def _ask_about_actions(stored: Mapping[str, str], free: list[str], where: str) -> None:
    """Refuse an episode without actions where an array looks like a part of them."""
    parts = [n for n in free if any(p.lower().startswith("action") for p in n.split("/"))]
    if parts and "actions" not in stored:
        raise ValueError(
            f"{where} has no actions, but {first_few(parts)}; choose one with --rename "
            f"{parts[0]}=actions (parts of an action must be joined into one array), or leave them "
            f"aside with --rename {first_few((f'{n}=' for n in parts), separator=' ')}"
        )


def _time_limits(near: Mapping[str, str]) -> str:
    """Say what only the user knows of an end that is called done."""
    either = next((name for name in near if name.rpartition("/")[2] in EITHER_END), "")
    return f" ({either}=truncations if time limits count as {either})" if either else ""


def _maybe_actions(columns: Mapping[str, Column], free: list[str], rows: int) -> str:
    """Ask about arrays of numbers with a row for each of `rows` frames, or one less, whose names
    are near to no field; empty if there is none."""
    found = [
        name
        for name in free
        if len(columns[name].shape) in (1, 2)
        and len(columns[name]) in (rows, rows - 1)
        and columns[name].dtype.kind in "buif"
        and not near_field(name)
    ]
    if not found:
        return ""
    listed = (f"{name} {columns[name].shape} {columns[name].dtype}" for name in found)
    return f"{first_few(listed)} may be actions: --rename {found[0]}=actions"


def _near(stored: Mapping[str, str], free: list[str]) -> dict[str, str]:
    """Return the first stored name that is near to each missing field."""
    found: dict[str, str] = {}
    for name in free:
        new = near_field(name)
        if new and new not in stored and new not in found.values():
            found[name] = new
    return found


def _flags(near: Mapping[str, str]) -> str:
    return " ".join(f"{name}={new}" for name, new in near.items())


def near_field(name: str) -> str:
    """Return the field that a name is near to; empty if none."""
    last = name.rpartition("/")[2].lower()
    for new, words in NEAR.items():
        if last.removesuffix("s") in words or last in words or last == new:
            return new
    return ""


def _listed(columns: Mapping[str, Column]) -> str:
    return first_few(f"{name} {column.shape}" for name, column in sorted(columns.items())) or (
        "nothing"
    )
