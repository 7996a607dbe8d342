"""Metrics as cells and rows of HTML."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

OWN = (
    "planner", "policy_prior", "goal_policy", "best_of_n", "distilled_policy", "actor_critic",
)  # fmt: skip
"""Policies that search in imagination, or have learned there."""


def own_rows(policies: Iterable[str]) -> set[int]:
    """Where the policies are that act by the world model."""
    return {at for at, name in enumerate(policies) if name in OWN}


def number(value: Any, digits: int = 2) -> str:
    """Format a value, or a dash where there is none."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def interval(row: dict[str, Any], low: str = "low", high: str = "high", digits: int = 2) -> str:
    """Format an interval; nothing where there is none."""
    if row.get(low) is None or row.get(high) is None:
        return ""
    return f" <small>[{number(row[low], digits)}, {number(row[high], digits)}]</small>"


def table(head: list[str], rows: list[list[str]], highlight: set[int] | None = None) -> str:
    """Build a table of cells that are HTML already; rows in `highlight` are bold."""
    highlight = highlight or set()
    lines = ["<div class=wide><table><tr>", *(f"<th>{cell}</th>" for cell in head), "</tr>"]
    for at, row in enumerate(rows):
        cells = "".join(f"<td>{cell}</td>" for cell in row)
        lines.append(f"<tr{' class=own' if at in highlight else ''}>{cells}</tr>")
    return "".join([*lines, "</table></div>"])
