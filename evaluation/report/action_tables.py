"""The report's tables of discrete actions."""

from __future__ import annotations

from html import escape
from typing import Any

from data.io.messages import counted
from evaluation.report.tables import interval, number, table

SOURCE_LABELS = {
    "real": "true frames",
    "reconstructed": "true frames through the tokenizer",
    "imagined": "model rollout",
    "shuffled_actions": "model rollout, actions of another clip",
}


def controllability(metrics: dict[str, Any]) -> list[str]:
    """Tabulate the actions that were predicted from videos."""
    if not metrics["n"]:
        return []
    rows = []
    for key, label in SOURCE_LABELS.items():
        source = metrics[key]
        values = [*source["correlation"].values(), *source["f1"].values()]
        rows.append([label, *(number(value, 3) for value in values), number(source["n"])])
    correlations = [f"r of {escape(name)}" for name in metrics["real"]["correlation"]]
    support = metrics["real"]["support"]
    key_columns = [
        f"F1 of {escape(key)}<br><small>support {n}</small>" for key, n in support.items()
    ]
    return [
        "<h2>Controllability: actions predicted from videos by inverse dynamics</h2>",
        f"<p>{metrics['n']} clips from {counted(metrics['sources'], 'source')}, "
        f"{metrics['steps']} steps "
        "each. On true frames it is the accuracy of the inverse dynamics model; with the actions "
        "of another clip, chance.</p>",
        table(
            ["predicted from", *correlations, *key_columns, "n (pairs)"],
            rows,
            {list(SOURCE_LABELS).index("imagined")},
        ),
    ]


def imitation(policies: dict[str, Any]) -> list[str]:
    """Tabulate the policies' agreement with the dataset's actions."""
    measured = {name: row for name, row in policies.items() if row["n"]}
    if not measured:
        return []
    rows = []
    for name, row in measured.items():
        interval_text = interval(row, "log_likelihood_low", "log_likelihood_high", 3)
        scores = [row["accuracy"], *row["by_factor"].values(), *row["f1"].values()]
        rows.append(
            [
                name.replace("_", " "),
                number(row["log_likelihood"], 3) + interval_text,
                *(number(share, 3) for share in scores),
                number(row["n"]),
            ]
        )
    first = next(iter(measured.values()))
    factors = [f"accuracy, {escape(name)}" for name in first["by_factor"]]
    keys = [
        f"F1 of {escape(key)}<br><small>support {n}</small>" for key, n in first["support"].items()
    ]
    head = ["policy", "log-likelihood (nats)", "accuracy", *factors, *keys, "n (frames)"]
    highlight = {at for at, name in enumerate(measured) if name == "actor_critic"}
    return [
        "<h2>Imitation: the dataset's actions on held-out frames</h2>",
        table(head, rows, highlight),
    ]
