"""The tables of a world in a gymnasium environment: events, and actions that were not taken."""

from __future__ import annotations

from html import escape
from typing import Any

from evaluation.report.tables import interval, number, table


def events(metrics: dict[str, Any]) -> list[str]:
    """Give the section; nothing where it was not measured."""
    if not metrics["n"]:
        return []
    head = ["", "value", "n (events)", "baseline"]
    ends = interval(metrics, "continue_auc_low", "continue_auc_high", 3)
    f1 = interval(metrics, "reward_f1_low", "reward_f1_high", 3)
    rows = [
        ["rewards, F1 at the exact step", number(metrics["reward_f1"], 3) + f1,
         number(metrics["rewards"]), f"one at every step: {number(metrics['always_f1'], 3)}"],
        ["true ends, AUC", number(metrics["continue_auc"], 3) + ends, number(metrics["ends"]),
         "0.5"],
    ]  # fmt: skip
    return [
        "<h2>Events along model rollouts</h2>",
        f"<p>{metrics['n']} rollouts of {metrics['steps']} steps from {metrics['sources']} "
        "episodes, of which half come to a reward or an end, where there are so many.</p>",
        table(head, rows, {0, 1}),
    ]


COUNTERFACTUALS = {
    "delta_psnr": "delta-PSNR (dB)",
    "explained": "difference that is predicted",
    "between_psnr": "PSNR of one true future to the other (dB)",
}


def counterfactuals(metrics: dict[str, Any]) -> list[str]:
    """Give the section; the reason where it was left out, nothing where it was not measured."""
    title = "<h2>Actions that were not taken</h2>"
    if metrics["left_out"]:
        return [title, f"<p>Left out: {escape(metrics['left_out'])}.</p>"]
    if not metrics["n"]:
        return []
    rows = []
    for key, label in COUNTERFACTUALS.items():
        cells = []
        for at, value in enumerate(metrics[key]):
            ends = {end: metrics[f"{key}_{end}"][at] for end in ("low", "high")}
            cells.append(f"{number(value)}<br>{interval(ends)}")
        rows.append([label, *cells, number(metrics["n"])])
    return [
        title,
        f"<p>Starts in {metrics['sources']} episodes. The environment itself, and "
        "the world, take the episode's actions and those of another episode; the world's frames "
        "are compared with those of their own actions, and with those of the other ones.</p>",
        table(["steps ahead", *map(str, metrics["horizons"]), "n (starts)"], rows, {0, 1}),
    ]
