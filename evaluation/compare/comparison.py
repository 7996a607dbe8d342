"""The figures of runs in rows, each of one protocol, and the settings in which the runs differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from data.io.messages import command
from evaluation.compare.chance import holm, p_value
from evaluation.compare.protocol_facts import Facts, facts_of
from evaluation.compare.reported_run import ReportedRun
from pipeline.hub.figures import Figure

LOWER_IS_BETTER = ("_px", "_degrees")


@dataclass
class FigureRow:
    """One figure, by one protocol, of the runs that have it."""

    key: str
    facts: Facts
    letter: str = ""
    """Which of several protocols of this figure it is; empty where all runs share one."""
    cells: dict[str, Figure] = field(default_factory=dict)
    """By the name of the run, in the order in which they were named."""
    tested: set[str] = field(default_factory=set)
    """Runs whose difference from the first of the row was tested: both have an interval."""
    beyond_chance: set[str] = field(default_factory=set)
    """Runs whose difference from the first of the row is larger than chance."""

    @property
    def label(self) -> str:
        return f"{self.key} ({self.letter})" if self.letter else self.key

    @property
    def reference(self) -> str:
        return next(iter(self.cells))

    def is_better(self, name: str) -> bool:
        """Whether a run's figure is better than that of the first one."""
        lower = self.key.partition(" at ")[0].endswith(LOWER_IS_BETTER)
        difference = self.cells[name].value - self.cells[self.reference].value
        return difference < 0 if lower else difference > 0


@dataclass(frozen=True)
class Comparison:
    runs: Sequence[ReportedRun]
    rows: Sequence[FigureRow]
    refusals: Sequence[str]
    """Lines that say which runs stand in rows of their own, and why."""
    num_tests: int
    """Differences that were tested."""

    def settings(self) -> dict[str, dict[str, Any]]:
        """The settings that differ, by name, and their values by the name of the run."""
        each = {run.name: run.settings for run in self.runs}
        names = dict.fromkeys(name for settings in each.values() for name in settings)
        found = {n: {run: s.get(n) for run, s in each.items()} for n in names}
        return {n: values for n, values in found.items() if len({*map(repr, values.values())}) > 1}

    def not_shared(self) -> list[str]:
        """Lines that say which runs have no figure, or none that another run has."""
        lines = []
        for run in self.runs:
            own = [row for row in self.rows if run.name in row.cells]
            measure = command("evaluate.py", "--run", run.folder)
            if not own:
                lines.append(f"{run.name} has no figures; {measure} measures them")
            elif len(self.runs) > 1 and not any(len(row.cells) > 1 for row in own):
                lines.append(
                    f"{run.name} shares no figure with another run, so nothing is compared with "
                    f"it; {measure} with the flags of the others measures the same"
                )
        return lines

    def curves(self) -> list[str]:
        """The names of all curves, validations first within a stage."""
        names = {name for run in self.runs for name in run.curves}
        return sorted(names, key=lambda n: (n.split()[0], "validation/" not in n, n))


def compare(runs: Sequence[ReportedRun]) -> Comparison:
    """Put the figures into rows, and test each against that of the row's first run."""
    rows: dict[tuple[str, Facts], FigureRow] = {}
    for key in _keys(runs):
        for run in runs:
            if key in run.figures:
                facts = facts_of(key, run.metrics)
                row = rows.setdefault((key, facts), FigureRow(key, facts))
                row.cells[run.name] = run.figures[key]
    refusals = _tell_apart(list(rows.values()))
    tests = [
        (row, name, p)
        for row in rows.values()
        for name, figure in row.cells.items()
        if name != row.reference and (p := p_value(row.cells[row.reference], figure)) is not None
    ]
    fallen = holm([p for _, _, p in tests])
    for (row, name, _), falls in zip(tests, fallen, strict=True):
        row.tested.add(name)
        if falls:
            row.beyond_chance.add(name)
    return Comparison(runs, list(rows.values()), refusals, len(tests))


def _keys(runs: Sequence[ReportedRun]) -> list[str]:
    """All keys of figures, those of the first run in its order."""
    order = dict.fromkeys(key for run in runs for key in run.figures)
    groups = list(dict.fromkeys(key.split(".")[0] for key in order))
    return sorted(order, key=lambda key: groups.index(key.split(".")[0]))


def _tell_apart(rows: Sequence[FigureRow]) -> list[str]:
    """Name the protocols of figures that have several, A, B ..., and say how they differ, once for
    all figures that differ alike."""
    by_key: dict[str, list[FigureRow]] = {}
    for row in rows:
        by_key.setdefault(row.key, []).append(row)
    lines: dict[str, None] = {}
    for key, of_key in by_key.items():
        if len(of_key) < 2:
            continue
        differing = [
            name
            for at, (name, _) in enumerate(of_key[0].facts)
            if len({row.facts[at] for row in of_key}) > 1
        ]
        parts = []
        for number, row in enumerate(of_key):
            row.letter = chr(ord("A") + number) if number < 26 else str(number + 1)
            told = ", ".join(f"{name} {value}" for name, value in row.facts if name in differing)
            names = list(row.cells)
            few = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            parts.append(f"{row.letter} has {told} ({few})")
        group = key.split(".")[0]
        lines[f"{group}: not one row, as the protocols differ: {'; '.join(parts)}"] = None
    return list(lines)
