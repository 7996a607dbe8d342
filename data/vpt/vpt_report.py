"""What became of Minecraft recordings: said when they are made, and when shards are checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data.shards import SKIPPED, EpisodeDataset
from data.vpt.alignment import SHIFTS, warnings
from data.vpt.recordings import NOT_FETCHED
from data.vpt.vpt_actions import INPUT_COLUMN

GIB = 2**30
MAX_NAMED = 10  # recordings named one by one, at most


def report(folder: Path, missing: list[str], seconds: float) -> list[str]:
    """Say what was made, how fast, what was left out, and whether it fits together."""
    skip_reasons = {path.read_text().strip() for path in folder.glob(f"*{SKIPPED}")}
    reasons = missing + sorted(
        reason for reason in skip_reasons if not reason.endswith(NOT_FETCHED)
    )
    lines = [f"left out: {reason}" for reason in reasons[:MAX_NAMED]]
    if len(reasons) > MAX_NAMED:
        lines.append(f"left out: {len(reasons)} in all")
    try:
        dataset = EpisodeDataset(folder)
    except ValueError:  # another rank is still at work
        return lines
    size = sum(header.path.stat().st_size for header in dataset.headers) / GIB
    lines.append(
        f"minecraft: {dataset.num_frames} frames in {size:.3f} GiB, made in {seconds:.1f} s "
        f"({dataset.num_frames / max(seconds, 1e-3):.0f} frames/s)"
    )
    return lines + describe_agreement(dataset)


def describe_agreement(dataset: EpisodeDataset) -> list[str]:
    """Say whether frames, lines and what both show agree, and how often a GUI is open."""
    by_name: dict[str, dict[str, Any]] = {}
    for note in dataset.notes:
        if "recording" in note:  # of its parts, one whose pictures tell something
            known = by_name.setdefault(note["recording"], note)
            by_name[note["recording"]] = known if known["images"] else note
    notes = list(by_name.values())
    if not notes:
        return []
    unequal = [n for n in notes if n["frames"] != n["lines"]]
    broken = sum(len(n["broken_lines"]) for n in notes)
    lines = []
    if unequal:
        summary = ", ".join(
            f"{n['recording']} {n['frames']} frames and {n['lines']} lines"
            for n in unequal[:MAX_NAMED]
        )
        lines.append(
            f"  {len(unequal)} of {len(notes)} recordings were cut to the shorter: {summary}"
        )
    if broken:
        lines.append(f"  {broken} broken lines stand for the tick before them")
    for key, what in (
        ("angles", "turns of the recorded view that are exactly the mouse's"),
        ("images", "ways in which the picture slides that are the mouse's, less the others"),
    ):
        found = [n[key] for n in notes if n.get(key)]
        if found:
            means = [np.mean([f[f"{s:+d}"] for f in found]) for s in SHIFTS]
            summary = ", ".join(f"{m:.3f} at {s:+d}" for s, m in zip(SHIFTS, means, strict=True))
            lines.append(f"  {what}: {summary} ticks (n = {len(found)} recordings)")
    gui = dataset.read_rows("inputs", 0, dataset.num_frames)[:, INPUT_COLUMN["gui"]]
    lines.append(f"  a GUI is open in {gui.mean():.1%} of the frames")
    if dataset.description.get("held_out") == "stretches":
        lines.append(
            "  too few recordings to hold one out: stretches of each are held out instead, which "
            "show the same places"
        )
    return lines + [f"warning: {line}" for n in notes for line in warnings(n)]
