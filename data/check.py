"""Look at shards: are they whole, what is in them, and what does it look like."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from data.shards import Recordings, redo_command, write_whole
from data.splits import SPLITS
from data.vpt.vpt_report import fitting

COLUMNS, ROWS = 8, 12  # times and episodes on the contact sheet
LEAST_SIDE = 64  # pixels of a frame on it
ROWS_AT_ONCE = 1024  # frames in memory while they are read
ALIGNED = 50  # episodes that the alignment is told from
OFTEN = 6  # codes of many that are named


def main_check(shards: Path) -> None:
    """Check a folder of shards, say what it holds, and write SHARDS/sheet.png."""
    sheet = shards / "sheet.png"
    for line in check(shards, sheet):
        print(line)
    print(f"all shards are whole; contact sheet: {sheet}")


def check(folder: Path, sheet: Path) -> list[str]:
    """Validate every shard, draw `sheet`, and give the report's lines.

    ValueError names each shard that is not whole, and the command that makes just those again.
    """
    recordings = Recordings(folder)
    validate(recordings)
    report = describe(recordings)
    whole, picture = cv2.imencode(".png", contact_sheet(recordings)[..., ::-1])
    assert whole
    write_whole(sheet, picture.tobytes())
    return report


def validate(recordings: Recordings) -> None:
    """Read every value of every shard; the headers were checked when they were opened."""
    faults: dict[Path, str] = {}
    first = 0
    with tqdm(total=recordings.total, desc="reading every frame") as bar:
        for header in recordings.headers:
            last = first + int(header.ends[-1])
            for start in range(first, last, ROWS_AT_ONCE):
                stop = min(start + ROWS_AT_ONCE, last)
                bar.update(stop - start)
                if header.path in faults:
                    continue
                try:
                    if fault := _fault(recordings, sorted(header.fields), start, stop, first):
                        faults[header.path] = f"{header.path} is damaged: {fault}"
                except ValueError as damage:
                    faults[header.path] = str(damage).partition("; delete")[0]
            first = last
    if faults:
        paths = list(faults)
        also = f", and so are {', '.join(p.name for p in paths[1:])}" if len(paths) > 1 else ""
        files, them = ("those files", "them") if also else ("that one file", "it")
        raise ValueError(
            f"{faults[paths[0]]}{also}; delete {files} and run again, which makes {them} anew and "
            f"keeps the others: {redo_command(recordings.folder)}"
        )


def _fault(recordings: Recordings, fields: list[str], start: int, stop: int, first: int) -> str:
    """Say what cannot be in rows [start, stop) of the shard that begins at row `first`."""
    for field in fields:
        values = recordings.read_rows(field, start, stop)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            row = start - first + int(np.argwhere(~np.isfinite(values))[0][0])
            return f"{field} at its frame {row} are NaN or infinite"
        if field == "actions" and recordings.actions.kind == "discrete":
            outside = (values < 0) | (values >= recordings.actions.size)
            if outside.any():
                row = int(np.argmax(outside))
                return (
                    f"the action code at its frame {start - first + row} is {values[row]}, and "
                    f"codes go from 0 to {recordings.actions.size - 1}"
                )
    return ""


def describe(recordings: Recordings) -> list[str]:
    """Say what the recordings hold, a line each."""
    size, total, lengths = recordings.image_size, recordings.total, recordings.lengths
    source = recordings.description.get("source", "unknown")
    used = sum(header.path.stat().st_size for header in recordings.headers)
    lines = [
        f"{recordings.folder}: {source}, {total} frames of {size[0]} x {size[1]}, "
        f"{len(recordings)} episodes of {lengths.min()} to {lengths.max()} "
        f"(median {int(np.median(lengths))}) frames, {len(recordings.headers)} shards of "
        f"{used / 2**20:.1f} MiB together"
    ]
    for split in SPLITS:
        episodes = np.array(recordings.episodes(split), int)
        sources = len(set(recordings.sources[episodes].tolist()))
        frames = int(lengths[episodes].sum())
        lines.append(f"  {split}: {len(episodes)} episodes, {frames} frames, {sources} sources")
    lines += _actions(recordings)
    if recordings.has("contacts"):
        contacts = recordings.read_rows("contacts", 0, total)
        lines.append(f"  in contact in {(contacts > 0).mean():.1%} of the frames")
    if recordings.has("rewards"):
        rewards = recordings.read_rows("rewards", 0, total)
        best = np.maximum.reduceat(rewards, recordings.first_rows)
        lines.append(
            f"  rewards: mean {rewards.mean():.3f}, greatest {rewards.max():.3f}; "
            f"best reward of an episode: mean {best.mean():.3f}"
        )
    names = recordings.state_names[:2]
    if recordings.has("states") and recordings.actions.pointer and names == ("agent_x", "agent_y"):
        lines.append(f"  {_alignment(recordings)}")
    return lines + fitting(recordings)


def _actions(recordings: Recordings) -> list[str]:
    spec = recordings.actions
    actions = recordings.read_rows("actions", 0, recordings.total)
    if spec.factors:
        choices = spec.split(actions)
        lines = [
            f"  {factor.name}: {_shares(choices[:, i], factor.labels)}"
            for i, factor in enumerate(spec.factors)
        ]
        codes, counts = np.unique(actions, return_counts=True)
        often = codes[np.argsort(-counts)[:OFTEN]]
        shown = ", ".join(f"{spec.say(int(code))} {(actions == code).mean():.1%}" for code in often)
        return [*lines, f"  {len(codes)} of {spec.size} codes occur, most often: {shown}"]
    if spec.kind == "discrete":
        return [f"  actions: {_shares(actions, spec.names)}"]
    lines = []
    for axis, name in enumerate(spec.names):
        values = actions[:, axis].astype(np.float64)
        outside = ((values < spec.low[axis]) | (values > spec.high[axis])).mean()
        lines.append(
            f"  {name}: mean {values.mean():.4g}, deviation {values.std():.4g}, from "
            f"{values.min():.4g} to {values.max():.4g}, {outside:.2%} outside of "
            f"{spec.low[axis]:g} to {spec.high[axis]:g}"
        )
    return lines


def _shares(choices: np.ndarray, labels: tuple[str, ...]) -> str:
    counts = np.bincount(choices, minlength=len(labels)) / len(choices)
    return ", ".join(f"{label} {share:.1%}" for label, share in zip(labels, counts, strict=True))


def _alignment(recordings: Recordings) -> str:
    """Does action t move what it points at between frames t and t + 1?"""
    count = len(recordings)
    chosen = np.unique(np.linspace(0, count - 1, min(ALIGNED, count)).astype(int))
    moves: list[np.ndarray] = []
    ways: dict[int, list[np.ndarray]] = {-1: [], 0: [], 1: []}
    for episode in chosen.tolist():
        where = recordings.read(episode, "states")[:, :2]
        target = recordings.read(episode, "actions")[:, :2]
        if len(where) < 4:
            continue
        moves.append((where[2:-1] - where[1:-2]).ravel())  # from t to t + 1
        for shift, found in ways.items():
            found.append((target[1 + shift : len(where) - 2 + shift] - where[1:-2]).ravel())
    if not moves or np.ptp(moved := np.concatenate(moves)) == 0:
        return "too little moves to tell whether actions and frames are aligned"
    agreement = {
        shift: float(np.corrcoef(moved, np.concatenate(found))[0, 1])
        for shift, found in ways.items()
    }
    says = [f"{r:.3f} with actions[t{s:+d}]".replace("+0", "") for s, r in agreement.items()]
    line = f"moves from t to t + 1 go with the way to the target: r = {', '.join(says)}"
    if agreement[0] < max(agreement.values()):
        line += "; mind: actions seem to be shifted against the frames"
    return line


def contact_sheet(recordings: Recordings) -> np.ndarray:
    """Episodes as rows, eight times of each as columns: (height, width, 3) uint8."""
    chosen = np.unique(np.linspace(0, len(recordings) - 1, min(ROWS, len(recordings))).astype(int))
    scale = max(1, -(-LEAST_SIDE // min(recordings.image_size)))
    rows = []
    for episode in chosen.tolist():
        times = np.linspace(0, recordings.length(episode) - 1, COLUMNS).astype(int)
        frames = [recordings.read(episode, "frames", int(t), int(t) + 1)[0] for t in times]
        padded = [np.pad(f, ((0, 2), (0, 2), (0, 0)), constant_values=128) for f in frames]
        rows.append(np.concatenate(padded, axis=1))
    return np.concatenate(rows).repeat(scale, axis=0).repeat(scale, axis=1)
