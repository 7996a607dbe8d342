"""A run as its report and its logs tell it: nothing of it is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from data.io.files import check_regular
from data.io.messages import command
from pipeline.hub.figures import Figure, figures_of, read_metrics

METRICS, LOG = "metrics.json", "log.jsonl"
Curve = list[tuple[int, float]]
"""Steps and values, in the order of the log."""


@dataclass(frozen=True)
class ReportedRun:
    name: str
    """The shortest end of its path that no other run of the comparison has."""
    folder: Path
    metrics: dict[str, Any]
    figures: dict[str, Figure]
    """By their keys, in the order of the report."""
    curves: dict[str, Curve]
    """By stage and name: "dynamics validation/psnr"."""
    skipped: int = 0
    """Lines of logs that cannot be read."""

    @property
    def provenance(self) -> dict[str, Any]:
        return self.metrics["provenance"]

    @property
    def settings(self) -> dict[str, Any]:
        """What the run was trained and measured with, flat: "dynamics.config.kind" and so on."""
        given = self.provenance.get("settings") or {"methods": self.provenance.get("methods")}
        found = dict(_flat(given, ""))
        found |= _flat({"search": self.provenance.get("search")}, "")
        return found | {"flags": " ".join(self.provenance.get("flags") or ())}


def read_runs(folders: Sequence[Path]) -> list[ReportedRun]:
    """Read runs, or folders of reports; ValueError names the first that is not there, or damaged,
    or given twice."""
    places = [folder.resolve() for folder in folders]
    for at, place in enumerate(places):
        if place in places[:at]:
            raise ValueError(f"{folders[at]} is given twice; name each run once")
    names = _short_names(places)
    return [_read(folder, name) for folder, name in zip(folders, names, strict=True)]


def _read(folder: Path, name: str) -> ReportedRun:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not there; name folders of runs, or of reports")
    run, path = folder, folder / "report" / METRICS
    if not path.exists() and (folder / METRICS).exists():  # RUN/report, or RUN/report/on-NAME
        path = folder / METRICS
        run = next((p.parent for p in path.parents if p.name == "report"), folder)
    metrics = read_metrics(path, f"{command('evaluate.py', '--run', run)} measures it")
    figures = {figure.key: figure for figure in figures_of(metrics)}
    curves: dict[str, Curve] = {}
    skipped = 0
    for log in sorted(run.glob(f"*/{LOG}")) + sorted(run.glob(f"controller/*/{LOG}")):
        stage = log.parent.relative_to(run).as_posix()
        found, unread = read_log(log)
        curves |= {f"{stage} {key}": curve for key, curve in found.items()}
        skipped += unread
    return ReportedRun(name, folder, metrics, figures, curves, skipped)


def read_log(path: Path) -> tuple[dict[str, Curve], int]:
    """Read a log.jsonl: the curve of each name, and the number of lines that cannot be read, as
    one that a crash cut short."""
    check_regular(path)
    curves: dict[str, Curve] = {}
    decode, unread = msgspec.json.decode, 0
    for line in path.read_bytes().splitlines():
        try:
            record = decode(line)
            step = record["step"]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError):
            unread += 1
            continue
        for key, value in record.items():
            if key not in ("step", "time") and isinstance(value, int | float):
                curves.setdefault(key, []).append((step, value))
    return curves, unread


def _short_names(places: Sequence[Path]) -> list[str]:
    """Name each place by as many of its last folders as tell it from the others."""
    depth = 1
    while True:
        names = ["/".join(place.parts[-depth:]) for place in places]
        if len({*names}) == len(names) or depth > max(len(place.parts) for place in places):
            return names
        depth += 1


def _flat(value: Any, prefix: str) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(prefix, value)]
    return [
        pair
        for key, inner in value.items()
        for pair in _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    ]
