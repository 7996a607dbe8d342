"""The report's tables of actions that are codes."""

from __future__ import annotations

from html import escape
from typing import Any

from evaluation.report.tables import interval, number, table

READ_FROM = {
    "real": "true frames",
    "reconstructed": "true frames through the tokenizer",
    "imagined": "imagined frames",
    "other_actions": "imagined frames, actions of another window",
}


def controllability(figures: dict[str, Any]) -> list[str]:
    if not figures["n"]:
        return []
    rows = []
    for key, label in READ_FROM.items():
        group = figures[key]
        values = [*group["correlation"].values(), *group["f1"].values()]
        rows.append([label, *(number(value, 3) for value in values), number(group["n"])])
    turns = [f"r of {escape(name)}" for name in figures["real"]["correlation"]]
    presses = figures["real"]["presses"]
    keys = [f"F1 of {escape(key)}<br><small>{n} pressed</small>" for key, n in presses.items()]
    return [
        "<h2>Controllability: the actions that an inverse model reads from films</h2>",
        f"<p>{figures['n']} windows from {figures['sources']} sources, {figures['steps']} steps "
        "each. True frames say how well it reads; another window's actions, what agrees by "
        "chance.</p>",
        table(["read from", *turns, *keys, "pairs"], rows, {list(READ_FROM).index("imagined")}),
    ]


def imitation(policies: dict[str, Any]) -> list[str]:
    measured = {name: row for name, row in policies.items() if row["n"]}
    if not measured:
        return []
    rows = []
    for name, row in measured.items():
        nats = interval(row, "log_likelihood_low", "log_likelihood_high", 3)
        shares = [row["agreement"], *row["by_factor"].values(), *row["f1"].values()]
        rows.append(
            [
                name.replace("_", " "),
                number(row["log_likelihood"], 3) + nats,
                *(number(share, 3) for share in shares),
                number(row["n"]),
            ]
        )
    first = next(iter(measured.values()))
    factors = [f"same {escape(name)}" for name in first["by_factor"]]
    keys = [
        f"F1 of {escape(key)}<br><small>{n} pressed</small>" for key, n in first["presses"].items()
    ]
    head = ["policy", "log-likelihood (nats)", "same action", *factors, *keys, "frames"]
    own = {at for at, name in enumerate(measured) if name == "controller"}
    return ["<h2>Imitation: the actions recorded on held-out frames</h2>", table(head, rows, own)]
