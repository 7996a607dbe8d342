"""The table of returns in a gymnasium environment."""

from __future__ import annotations

from typing import Any

from evaluation.report.tables import interval, number, table

CONTROLLERS = ("actor_critic", "bc")


def returns(policies: dict[str, Any]) -> list[str]:
    """Give the section; nothing where no policy was measured."""
    if not any(row["n"] for row in policies.values()):
        return []
    rows = [
        [
            name,
            number(row["return"]) + interval(row),
            number(row["median"]),
            number(row["length"], 1),
            number(row["terminated"]),
            number(row["n"]),
        ]
        for name, row in policies.items()
    ]
    highlight = {at for at, name in enumerate(policies) if name in CONTROLLERS}
    head = ["policy", "return", "median", "steps", "share that terminates", "n (episodes)"]
    return [
        "<h2>Return in the environment</h2>",
        "<p>Sums of rewards of whole episodes in the environment that the shards were recorded in, "
        "from the same seeds for every policy; recorded: the episodes of the last round in the "
        "shards, whatever their split.</p>",
        table(head, rows, highlight),
    ]
