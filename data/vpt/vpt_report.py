"""Report on Minecraft shards: printed by preprocess, and by check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data.io.messages import first_few
from data.shards.build_info import skip_reason, skipped_shards
from data.shards.episode_dataset import EpisodeDataset
from data.vpt.alignment import SHIFTS, warnings
from data.vpt.recordings import NOT_FETCHED
from data.vpt.vpt_actions import INPUT_COLUMN

GIB = 2**30
MAX_NAMED = 10  # recordings named individually, at most


def report(folder: Path, missing: list[str], seconds: float) -> list[str]:
    """Report what was written, how fast, what was skipped, and how well it is aligned."""
    skip_reasons = {skip_reason(path) for path in skipped_shards(folder).values()}
    reasons = missing + sorted(
        reason for reason in skip_reasons if not reason.endswith(NOT_FETCHED)
    )
    lines = [f"skipped: {reason}" for reason in reasons[:MAX_NAMED]]
    if len(reasons) > MAX_NAMED:
        lines.append(f"skipped: {len(reasons)} in all")
    try:
        dataset = EpisodeDataset(folder)
    except ValueError:  # another rank is still writing
        return lines
    size = sum(header.path.stat().st_size for header in dataset.headers) / GIB
    lines.append(
        f"minecraft: {dataset.num_frames} frames in {size:.3f} GiB, written in {seconds:.1f} s "
        f"({dataset.num_frames / max(seconds, 1e-3):.0f} frames/s)"
    )
    return lines + describe_agreement(dataset)


def describe_agreement(dataset: EpisodeDataset) -> list[str]:
    """Report whether frames and lines agree in number and motion, and how often a GUI is open."""
    by_name: dict[str, dict[str, Any]] = {}
    for note in dataset.notes:
        if "recording" in note:  # of its parts, one with a measurement of images
            known = by_name.setdefault(note["recording"], note)
            by_name[note["recording"]] = known if known["images"] else note
    notes = list(by_name.values())
    if not notes:
        return []
    gaps = {n["recording"]: n.get("missing_frames", 0) for n in notes}  # absent in old shards
    unequal = [n for n in notes if n["frames"] + gaps[n["recording"]] != n["lines"]]
    broken = sum(len(n["broken_lines"]) for n in notes)
    lines = []
    if unequal:
        summary = first_few(
            (f"{n['recording']} {n['frames']} frames and {n['lines']} lines" for n in unequal),
            MAX_NAMED,
        )
        lines.append(
            f"  {len(unequal)} of {len(notes)} recordings were truncated to the shorter: {summary}"
        )
    if any(gaps.values()):
        summary = first_few((f"{name} {count}" for name, count in gaps.items() if count), MAX_NAMED)
        lines.append(f"  frames are missing, by their times, and episodes end there: {summary}")
    if broken:
        lines.append(f"  {broken} invalid lines repeat the tick before them")
    for key, what in (
        ("angles", "fraction of turns of the logged view that equal the mouse's"),
        ("images", "correlation of the image's motion with the mouse's"),
    ):
        found = [n[key] for n in notes if n.get(key)]
        if found:
            means = [np.mean([f[f"{s:+d}"] for f in found]) for s in SHIFTS]
            summary = ", ".join(f"{m:.3f} at {s:+d}" for s, m in zip(SHIFTS, means, strict=True))
            lines.append(f"  {what}: {summary} ticks (n = {len(found)} recordings)")
    unmeasured = [n["recording"] for n in notes if not n.get("angles") and not n.get("images")]
    if unmeasured:
        lines.append(
            f"  too few turns to measure whether frames and lines are aligned: "
            f"{first_few(unmeasured, MAX_NAMED)}"
        )
    gui = dataset.read_rows("inputs", 0, dataset.num_frames)[:, INPUT_COLUMN["gui"]]
    lines.append(f"  a GUI is open in {gui.mean():.1%} of the frames")
    if dataset.description.get("held_out") == "segments":
        lines.append(
            "  too few recordings to hold one out: segments of each are held out instead, which "
            "show the same places"
        )
    found = [line for n in notes for line in warnings(n)]
    lines += [f"warning: {line}" for line in found[:MAX_NAMED]]
    if len(found) > MAX_NAMED:
        lines.append(f"warning: {len(found)} such in all")
    return lines
