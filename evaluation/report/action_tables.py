"""The report's tables of actions that are codes."""

from __future__ import annotations

from html import escape
from typing import Any

from evaluation.report.tables import interval, number, table

SOURCE_LABELS = {
    "real": "true frames",
    "reconstructed": "true frames through the tokenizer",
    "imagined": "imagined frames",
    "other_actions": "imagined frames, actions of another window",
}


def controllability(metrics: dict[str, Any]) -> list[str]:
    if not metrics["n"]:
        return []
    rows = []
    for key, label in SOURCE_LABELS.items():
        source = metrics[key]
        values = [*source["correlation"].values(), *source["f1"].values()]
        rows.append([label, *(number(value, 3) for value in values), number(source["n"])])
    correlations = [f"r of {escape(name)}" for name in metrics["real"]["correlation"]]
    support = metrics["real"]["presses"]
    key_columns = [
        f"F1 of {escape(key)}<br><small>{n} pressed</small>" for key, n in support.items()
    ]
    return [
        "<h2>Controllability: the actions that an inverse model reads from films</h2>",
        f"<p>{metrics['n']} windows from {metrics['sources']} sources, {metrics['steps']} steps "
        "each. True frames say how well it reads; another window's actions, what agrees by "
        "chance.</p>",
        table(
            ["read from", *correlations, *key_columns, "pairs"],
            rows,
            {list(SOURCE_LABELS).index("imagined")},
        ),
    ]


def imitation(policies: dict[str, Any]) -> list[str]:
    measured = {name: row for name, row in policies.items() if row["n"]}
    if not measured:
        return []
    rows = []
    for name, row in measured.items():
        interval_text = interval(row, "log_likelihood_low", "log_likelihood_high", 3)
        scores = [row["agreement"], *row["by_factor"].values(), *row["f1"].values()]
        rows.append(
            [
                name.replace("_", " "),
                number(row["log_likelihood"], 3) + interval_text,
                *(number(share, 3) for share in scores),
                number(row["n"]),
            ]
        )
    first = next(iter(measured.values()))
    factors = [f"same {escape(name)}" for name in first["by_factor"]]
    keys = [
        f"F1 of {escape(key)}<br><small>{n} pressed</small>" for key, n in first["presses"].items()
    ]
    head = ["policy", "log-likelihood (nats)", "same action", *factors, *keys, "frames"]
    highlight = {at for at, name in enumerate(measured) if name == "controller"}
    return [
        "<h2>Imitation: the actions recorded on held-out frames</h2>",
        table(head, rows, highlight),
    ]
