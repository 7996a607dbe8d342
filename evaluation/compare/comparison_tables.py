"""A comparison as a table: of pandas, for a terminal, as CSV, Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch

import pandas as pd

from evaluation.compare.comparison import Comparison, FigureRow
from pipeline.hub.figures import Figure

MARKS = {True: "+", False: "-"}
NOTE = (
    "+ better and - worse than the first run of the row, by more than chance (Holm, 5% over all "
    "differences)"
)
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}


def selected(rows: Sequence[FigureRow], patterns: Sequence[str]) -> list[FigureRow]:
    """The rows whose key matches one of the patterns, as task.* does; all but those of a horizon
    that is not the longest, where there is none."""
    if patterns:
        return [row for row in rows if any(fnmatch(row.key, pattern) for pattern in patterns)]
    longest: dict[str, int] = {}
    for row in rows:
        name, horizon = _horizon(row.key)
        longest[name] = max(horizon, longest.get(name, 0))
    return [row for row in rows if _horizon(row.key)[1] == longest[_horizon(row.key)[0]]]


def frame(rows: Iterable[FigureRow]) -> pd.DataFrame:
    """One line for each figure of each run: tidy, as pandas and CSV like it."""
    lines = [
        {
            "figure": row.key,
            "protocol": ", ".join(f"{name} {value}" for name, value in row.facts),
            "run": name,
            "value": figure.value,
            "low": figure.low,
            "high": figure.high,
            "n": figure.n,
            "reference": row.reference,
            "larger_than_chance": name in row.beyond_chance if name in row.tested else None,
        }
        for row in rows
        for name, figure in row.cells.items()
    ]
    columns = ("figure", "protocol", "run", "value", "low", "high", "n", "reference",
               "larger_than_chance")  # fmt: skip
    return pd.DataFrame(lines, columns=list(columns))


def for_terminal(comparison: Comparison, rows: Sequence[FigureRow], width: int) -> str:
    """Runs as columns, in blocks of as many as fit into `width` characters."""
    names = [run.name for run in comparison.runs]
    label_width = max([len(row.label) for row in rows], default=0)
    column = max([len(name) for name in names] + [_cell_width(rows)]) + 2
    fits = max(1, (width - label_width) // column)
    blocks = []
    for first in range(0, len(names), fits):
        block = names[first : first + fits]
        lines = ["figure".ljust(label_width) + "".join(name.rjust(column) for name in block)]
        for row in rows:
            cells = "".join(cell_text(row, name).rjust(column) for name in block)
            lines.append(row.label.ljust(label_width) + cells)
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def as_markdown(comparison: Comparison, rows: Sequence[FigureRow]) -> str:
    head = ["figure", *(run.name for run in comparison.runs)]
    lines = [head, ["---"] * len(head)]
    lines += [[row.label, *(cell_text(row, n, True) for n in head[1:])] for row in rows]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    table = "\n".join(f"| {' | '.join(line)} |" for line in escaped)
    told = (*comparison.refusals, *comparison.not_shared())
    return "\n\n".join([table, *told, f"Brackets: 95% intervals. {NOTE}."]) + "\n"


def as_latex(comparison: Comparison, rows: Sequence[FigureRow]) -> str:
    """A tabular of the package booktabs."""
    head = ["figure", *(run.name for run in comparison.runs)]
    body = [[row.label, *(cell_text(row, n, True) for n in head[1:])] for row in rows]
    lines = [f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", "\\toprule"]
    lines += [_latex_row(head), "\\midrule", *map(_latex_row, body), "\\bottomrule"]
    told = (*comparison.refusals, *comparison.not_shared(), NOTE)
    notes = [f"% {line}" for line in told]
    return "\n".join([*notes, *lines, "\\end{tabular}"]) + "\n"


def cell_text(row: FigureRow, name: str, with_n: bool = False) -> str:
    """Format "0.953 [0.91, 0.98] +"; a dash where the run has no such figure."""
    figure = row.cells.get(name)
    if figure is None:
        return "-"
    mark = f" {MARKS[row.is_better(name)]}" if name in row.beyond_chance else ""
    n = f" (n {figure.n})" if with_n else ""
    return f"{_with_interval(figure)}{n}{mark}"


def _with_interval(figure: Figure) -> str:
    digits = 2 if abs(figure.value) >= 2 else 3
    text = f"{figure.value:.{digits}f}"
    if figure.low is None or figure.high is None:
        return text
    return f"{text} [{figure.low:.{digits}f}, {figure.high:.{digits}f}]"


def _cell_width(rows: Sequence[FigureRow]) -> int:
    return max((len(cell_text(row, name)) for row in rows for name in row.cells), default=1)


def _horizon(key: str) -> tuple[str, int]:
    """ "open_loop.psnr at 16 steps" -> its name and 16."""
    found = re.fullmatch(r"(.*) at (\d+) steps", key)
    return (found[1], int(found[2])) if found else (key, 0)


def _latex_row(cells: Sequence[str]) -> str:
    escaped = ("".join(LATEX.get(c, c) for c in cell) for cell in cells)
    return " & ".join(escaped) + r" \\"
