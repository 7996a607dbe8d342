"""Validate shards, report statistics, and draw a contact sheet."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.checks.alignment_check import alignment_scores, alignment_warning, describe_scores
from data.checks.lengths import describe_lengths
from data.checks.pointer_alignment import describe_pointer, pointer_correlations, pointer_warning
from data.checks.suspicions import suspicions
from data.io.files import atomic_write, writable_folder
from data.io.messages import counted, first_few
from data.shards.build_info import rebuild_command
from data.shards.episode_dataset import EpisodeDataset
from data.shards.shard_header import SPLITS
from data.vpt.vpt_report import describe_agreement

COLUMNS, ROWS = 8, 12  # frames of an episode, and episodes, on the contact sheet
MIN_SIDE = 64  # pixels of a frame on it, at least
FRAMES_PER_READ = 1024  # frames in memory at once
TOP_CODES = 6  # most frequent codes that are named
MAX_LISTED = 32  # choices that are all named


def main_check(shards: Path) -> None:
    """Check a folder of shards, print its statistics, and write SHARDS/sheet.png."""
    sheet = shards / "sheet.png"
    report = check(shards, sheet)
    warned = sum("warning: " in line for line in report)
    found = f", with {counted(warned, 'warning')}" if warned else ""
    print("\n".join([*report, f"all shards are valid{found}; contact sheet: {sheet}"]))


def check(folder: Path, sheet: Path) -> list[str]:
    """Validate every shard, write the contact sheet, and return the lines of the report.

    ValueError names each damaged shard, and the command that rebuilds it.
    """
    dataset = EpisodeDataset(folder)
    writable_folder(sheet.parent, "copy of the shards")
    validate(dataset)
    report = describe(dataset) + suspicions(dataset)
    png = BytesIO()
    Image.fromarray(contact_sheet(dataset)).save(png, "PNG")
    atomic_write(sheet, png.getvalue())
    return report


def validate(dataset: EpisodeDataset) -> None:
    """Read every value of every shard; opening the dataset has checked the headers."""
    faults: dict[Path, str] = {}
    first = 0
    with tqdm(total=dataset.num_frames, desc="reading every frame") as progress:
        for header in dataset.headers:
            last = first + int(header.episode_ends[-1])
            for start in range(first, last, FRAMES_PER_READ):
                stop = min(start + FRAMES_PER_READ, last)
                progress.update(stop - start)
                if header.path in faults:
                    continue
                try:
                    if fault := _find_fault(dataset, sorted(header.fields), start, stop, first):
                        faults[header.path] = f"{header.path} is damaged: {fault}"
                except ValueError as damage:
                    faults[header.path] = str(damage).partition("; delete")[0]
            first = last
    if faults:
        paths = list(faults)
        also = f", and so are {first_few(p.name for p in paths[1:])}" if len(paths) > 1 else ""
        files, them = ("those files", "them") if also else ("that one file", "it")
        raise ValueError(
            f"{faults[paths[0]]}{also}; delete {files} and run again, which rebuilds {them} and "
            f"keeps the others: {rebuild_command(dataset.folder)}"
        )


def _find_fault(
    dataset: EpisodeDataset, fields: list[str], start: int, stop: int, first: int
) -> str:
    """Describe an invalid value in rows [start, stop) of the shard that starts at row `first`."""
    for field in fields:
        values = dataset.read_rows(field, start, stop)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            row = start - first + int(np.argwhere(~np.isfinite(values))[0][0])
            return f"{field} at its frame {row} are NaN or infinite"
        if field == "actions" and dataset.actions.kind == "discrete":
            outside = (values < 0) | (values >= dataset.actions.size)
            if outside.any():
                row = int(np.argmax(outside))
                return (
                    f"the action code at its frame {start - first + row} is {values[row]}, and "
                    f"codes go from 0 to {dataset.actions.size - 1}"
                )
    return ""


def describe(dataset: EpisodeDataset) -> list[str]:
    """Return statistics of the dataset, as lines."""
    size, total, lengths = dataset.image_size, dataset.num_frames, dataset.lengths
    source = dataset.description.get("source", "unknown")
    num_bytes = sum(header.path.stat().st_size for header in dataset.headers)
    lines = [
        f"{dataset.folder}: {source}, {total} frames of {size[0]} x {size[1]}, "
        f"{counted(len(dataset), 'episode')} of {lengths.min()} to {lengths.max()} "
        f"(median {int(np.median(lengths))}) frames, {counted(len(dataset.headers), 'shard')} of "
        f"{num_bytes / 2**20:.1f} MiB together"
    ]
    for split in SPLITS:
        episodes = np.array(dataset.episodes(split), int)
        sources = len(set(dataset.sources[episodes].tolist()))
        frames = int(lengths[episodes].sum())
        how_many = (len(episodes), "episode"), (frames, "frame"), (sources, "source")
        lines.append(f"  {split}: {', '.join(counted(*part) for part in how_many)}")
    lines += _describe_actions(dataset)
    if dataset.has("contacts"):
        contacts = dataset.read_rows("contacts", 0, total)
        lines.append(f"  in contact in {(contacts > 0).mean():.1%} of the frames")
    if dataset.has("rewards"):
        rewards = dataset.read_rows("rewards", 0, total)
        max_rewards = np.maximum.reduceat(rewards, dataset.first_rows)
        lines.append(
            f"  rewards: mean {rewards.mean():z.3f}, greatest {rewards.max():z.3f}; "
            f"best reward of an episode: mean {max_rewards.mean():z.3f}"
        )
    scores, agreement = alignment_scores(dataset), describe_agreement(dataset)
    pointer = pointer_correlations(dataset)
    if scores is not None and not (agreement or pointer):  # which know the actions, and say more
        lines.append(f"  {describe_scores(scores)}")
    found = (
        describe_lengths(dataset),
        alignment_warning(scores),
        describe_pointer(pointer),
        pointer_warning(pointer),
    )
    lines += [f"  {line}" for line in found if line]
    return lines + agreement


def _describe_actions(dataset: EpisodeDataset) -> list[str]:
    spec = dataset.actions
    if spec.kind == "none":
        return ["  no actions"]
    actions = dataset.read_rows("actions", 0, dataset.num_frames)
    if spec.factors:
        choices = spec.unravel(actions)
        lines = [
            f"  {factor.name}: {_frequencies(choices[:, i], factor.labels)}"
            for i, factor in enumerate(spec.factors)
        ]
        codes, counts = np.unique(actions, return_counts=True)
        most_frequent = codes[np.argsort(-counts)[:TOP_CODES]]
        summary = ", ".join(
            f"{spec.describe(int(code))} {(actions == code).mean():.1%}" for code in most_frequent
        )
        return [*lines, f"  {len(codes)} of {spec.size} codes occur, most often: {summary}"]
    if spec.kind == "discrete":
        return [f"  actions: {_frequencies(actions, spec.names)}"]
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


def _frequencies(choices: np.ndarray, labels: tuple[str, ...]) -> str:
    """List how often each choice occurs; of many, the most frequent first."""
    shares = np.bincount(choices, minlength=len(labels)) / len(choices)
    order = np.argsort(-shares, kind="stable") if len(labels) > MAX_LISTED else range(len(labels))
    listed = (f"{labels[index]} {shares[index]:.1%}" for index in order)
    return first_few(listed, TOP_CODES if len(labels) > MAX_LISTED else MAX_LISTED)


def contact_sheet(dataset: EpisodeDataset) -> np.ndarray:
    """Draw episodes as rows, eight frames of each as columns: (height, width, 3) uint8."""
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(ROWS, len(dataset))).astype(int))
    scale = max(1, -(-MIN_SIDE // min(dataset.image_size)))
    rows = []
    for episode in chosen.tolist():
        times = np.linspace(0, dataset.length(episode) - 1, COLUMNS).astype(int)
        frames = [dataset.read(episode, "frames", int(t), int(t) + 1)[0] for t in times]
        padded = [np.pad(f, ((0, 2), (0, 2), (0, 0)), constant_values=128) for f in frames]
        rows.append(np.concatenate(padded, axis=1))
    return np.concatenate(rows).repeat(scale, axis=0).repeat(scale, axis=1)
