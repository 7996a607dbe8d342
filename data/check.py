"""Look at shards: are they whole, what is in them, and what does it look like."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from data.shards import Recordings
from data.splits import SPLITS

COLUMNS, ROWS = 8, 12  # times and episodes on the contact sheet
LEAST_SIDE = 64  # pixels of a frame on it


def main_check(folder: Path) -> None:
    """Validate every shard, print what there is, write FOLDER/sheet.png.

    ValueError names a shard that cannot be read, and the command that makes just that one again.
    """
    recordings = Recordings(folder)
    for start in tqdm(range(0, recordings.total, 1024), desc="reading every frame"):
        recordings.read_rows("frames", start, min(start + 1024, recordings.total))
    for line in describe(recordings):
        print(line)
    sheet = folder / "sheet.png"
    cv2.imwrite(str(sheet), contact_sheet(recordings)[..., ::-1])
    print(f"all shards are whole; contact sheet: {sheet}")


def describe(recordings: Recordings) -> list[str]:
    """Say what the recordings hold, a line each. ValueError where a value cannot be."""
    size, spec, total = recordings.image_size, recordings.actions, recordings.total
    lengths = recordings.lengths
    source = recordings.description.get("source", "unknown")
    lines = [
        f"{recordings.folder}: {source}, {total} frames of {size[0]} x {size[1]}, "
        f"{len(recordings)} episodes of {lengths.min()} to {lengths.max()} "
        f"(median {int(np.median(lengths))}) frames"
    ]
    for split in SPLITS:
        episodes = np.array(recordings.episodes(split), int)
        sources = len(set(recordings.sources[episodes].tolist()))
        frames = int(lengths[episodes].sum())
        lines.append(f"  {split}: {len(episodes)} episodes, {frames} frames, {sources} sources")
    actions = recordings.read_rows("actions", 0, total)
    if spec.kind == "discrete":
        counts = np.bincount(actions, minlength=spec.size)
        if actions.min() < 0 or len(counts) > spec.size:
            raise ValueError(
                f"{recordings.folder} has action code {actions.max()}, but its space has "
                f"{spec.size}; make the shards again"
            )
        shares = ", ".join(f"{n} {c / total:.1%}" for n, c in zip(spec.names, counts, strict=True))
        lines.append(f"  actions: {shares}")
    else:
        if not np.isfinite(actions).all():
            raise ValueError(f"{recordings.folder} has NaN in its actions; make the shards again")
        for axis, name in enumerate(spec.names):
            values = actions[:, axis]
            outside = ((values < spec.low[axis]) | (values > spec.high[axis])).mean()
            lines.append(
                f"  {name}: mean {values.mean():.4g}, deviation {values.std():.4g}, from "
                f"{values.min():.4g} to {values.max():.4g}, {outside:.2%} outside of "
                f"{spec.low[axis]:g} to {spec.high[axis]:g}"
            )
    if recordings.has("contacts"):
        contacts = recordings.read_rows("contacts", 0, total)
        lines.append(f"  in contact in {(contacts > 0).mean():.1%} of the frames")
    if recordings.has("rewards"):
        best = [recordings.read(e, "rewards").max() for e in range(len(recordings))]
        lines.append(
            f"  best reward of an episode: mean {np.mean(best):.3f}, greatest {np.max(best):.3f}"
        )
    if recordings.has("states") and spec.pointer:
        lines.append(f"  {_alignment(recordings)}")
    return lines


def _alignment(recordings: Recordings) -> str:
    """Does action t move what it points at between frames t and t + 1?"""
    agreements = {shift: [] for shift in (-1, 0, 1)}
    for episode in range(min(len(recordings), 50)):
        where = recordings.read(episode, "states")[:, :2]
        target = recordings.read(episode, "actions")[:, :2]
        moved = where[2:-1] - where[1:-2]  # from t to t + 1
        for shift, found in agreements.items():
            way = target[1 + shift : len(moved) + 1 + shift] - where[1:-2]
            found += [moved.ravel(), way.ravel()]
    says = []
    for shift, found in agreements.items():
        pair = np.concatenate(found[::2]), np.concatenate(found[1::2])
        says.append(f"{np.corrcoef(*pair)[0, 1]:.3f} with actions[t{shift:+d}]".replace("+0", ""))
    return f"moves from t to t + 1 go with the way to the target: r = {', '.join(says)}"


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
