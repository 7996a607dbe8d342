"""The report's tables of latent actions."""

from __future__ import annotations

import math
from typing import Any

from data.io.messages import counted
from evaluation.report.tables import interval, number, table

ARROWS = "→↘↓↙←↖↑↗"  # y is down
CLIPS = {
    "same_code": "in another episode",
    "own_clip": "where it was inferred",
    "other_code": "another code, in another episode",
}


def latent_actions(metrics: dict[str, Any]) -> list[str]:
    """Tabulate what latent actions mean; nothing where the world infers none."""
    if not metrics["n"]:
        return []
    return [
        "<h2>Latent actions</h2>",
        f"<p>{metrics['n']} held-out steps from {counted(metrics['sources'], 'source')}. "
        "True actions are used to measure by, and never to train.</p>",
        *_measures(metrics),
        *_consistency(metrics["consistency"]),
        *_effects(metrics),
        *_budget(metrics["label_budget"]),
    ]


def _measures(metrics: dict[str, Any]) -> list[str]:
    found, probe = metrics["clustering"] or {}, metrics["probe"] or {}
    delta = metrics["delta_psnr"] or {}
    key, label = ("accuracy", "accuracy") if probe.get("of") == "codes" else ("r2", "R2")
    used = f"{metrics['used']} of {metrics['num_codes']}"
    rows = [
        ["normalized mutual information", *_scored(found, "nmi"), "permuted codes",
         number(found.get("nmi_permuted"), 3)],
        ["accuracy, codes matched to labels", *_scored(found, "accuracy"), "permuted; commonest",
         f"{number(found.get('accuracy_permuted'), 3)}; {number(found.get('accuracy_chance'), 3)}"],
        [f"linear probe, {label}", *_scored(probe, key), "first frame alone; both frames",
         f"{number(probe.get(f'floor_{key}'), 3)}; {number(probe.get(f'ceiling_{key}'), 3)}"],
        [f"delta-PSNR({number(delta.get('steps'))}), dB", *_scored(delta, "delta_psnr", 2),
         "drawn by frequency, PSNR", number(delta.get("drawn_psnr"))],
        ["the same of mapped true actions", *_scored(delta, "mapped_delta_psnr", 2), "", ""],
        ["perplexity of the codes", number(metrics["perplexity"]), number(metrics["n"]),
         "codes used; share of the commonest", f"{used}; {number(metrics['top_share'], 3)}"],
    ]  # fmt: skip
    return [table(["", "", "n (steps)", "baseline", ""], rows, {0, 2, 3})]


def _scored(row: dict[str, Any], key: str, digits: int = 3) -> list[str]:
    low, high = f"{key}_low", f"{key}_high"
    return [number(row.get(key), digits) + interval(row, low, high, digits), number(row.get("n"))]


def _consistency(found: dict[str, Any] | None) -> list[str]:
    rows = []
    for name, row in (found or {}).items():
        if row is not None:
            cells = [_scored(row, key)[0] for key in CLIPS]
            rows.append([name.replace("_", " "), *cells, number(row["n"])])
    head = ["cosine of true and imagined motion", *CLIPS.values(), "n (steps)"]
    return [table(head, rows, set())] if rows else []


def _effects(metrics: dict[str, Any]) -> list[str]:
    effects = metrics["effects"]
    if effects is None:
        return []
    rows = []
    for code, (x, y) in enumerate(effects["motion"]):
        rows.append(
            [
                str(code + 1),
                number(metrics["frequencies"][code], 3),
                f"{arrow(x, y)} {number(100 * math.hypot(x, y), 1)}%",
                number(effects["consistency"][code], 2),
                number(effects["n"]),
            ]
        )
    head = ["action", "share", "mean motion, of the width", "cosine between starts", "n (starts)"]
    return [table(head, rows), "<p>One step from each start.</p>"]


def arrow(x: float, y: float, still: float = 0.002) -> str:
    """Point in a direction, as one character; a dot where the motion is shorter than `still`."""
    if math.hypot(x, y) < still:
        return "·"
    return ARROWS[round(math.atan2(y, x) / (math.pi / 4)) % 8]


def _budget(budgets: dict[str, Any] | None) -> list[str]:
    rows = []
    for labels, row in (budgets or {}).items():
        key = "to_true" if "to_true" in row else "to_true_r2"
        to_true = _scored(row, key)[0] + (" (R2)" if key == "to_true_r2" else "")
        rows.append([labels, _scored(row, "to_latent")[0], number(row["chance"], 3), to_true,
                     number(row["n"])])  # fmt: skip
    head = [
        "labeled steps",
        "true to latent, accuracy",
        "commonest code",
        "latent to true",
        "n (steps)",
    ]
    return [table(head, rows)] if rows else []
