"""The first screen of a report: what was found in words, and up to five numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from evaluation.protocols.goals import PROTOCOLS
from evaluation.report.tables import number

MOST = 5
PLANNING = ("policy_prior", "planner", "goal_policy")
ACTING = (
    "best_of_n", "distilled_policy", "canonical_policy", "flow_policy", *PLANNING, "actor_critic",
    "bc",
)  # fmt: skip
BASELINES = ("goal_agent_position", "random", "noop")
PARTS = {
    "tokenizer": "reconstruction",
    "open_loop": "prediction",
    "rewards": "rewards",
    "task": "the task",
    "goal": "goals",
    "returns": "returns in the environment",
    "play": "speed",
}

Rows = Mapping[str, Mapping[str, Any] | None]


@dataclass(frozen=True)
class Finding:
    value: str
    """With its unit."""
    about: str
    sentence: str
    """As it stands in the words above the numbers."""
    details: str
    """Interval and n."""


def summary(metrics: Mapping[str, Any]) -> list[str]:
    """Give the HTML of the first screen."""
    findings = [*_goals(metrics["goal"]), *_task(metrics["task"]), *_returns(metrics["returns"]),
                *_open_loop(metrics["open_loop"]), *_tokenizer(metrics["tokenizer"]),
                *_play(metrics["play"])][:MOST]  # fmt: skip
    missing = [words for part, words in PARTS.items() if not _is_measured(metrics[part])]
    words = [finding.sentence for finding in findings]
    if missing:
        words.append(f"Not measured: {', '.join(missing)}.")
    tiles = "".join(
        f"<li><b>{escape(f.value)}</b><span>{escape(f.about)}</span>"
        f"<small>{escape(f.details)}</small></li>"
        for f in findings
    )
    return [
        f"<p class=words>{escape(' '.join(words))}</p>",
        f"<ul class=tiles>{tiles}</ul>" if tiles else "",
    ]


def _goals(protocols: Mapping[str, Rows]) -> list[Finding]:
    for name, rows in protocols.items():
        best = _best(rows, PLANNING, "success")
        if best is None:
            continue
        policy, row = best
        offset = PROTOCOLS[name].goal_offset
        return [
            Finding(
                f"{100 * row['success']:.1f}%",
                f"of goals {offset} steps away reached",
                f"{policy} reaches {100 * row['success']:.1f}% of goals {offset} steps away "
                f"(protocol {name}){_compared(rows, 'success')}.",
                _details(row, "goals", 100, "%"),
            )
        ]
    return []


def _task(rows: Rows) -> list[Finding]:
    best = _best(rows, ACTING, "success")
    if best is None:
        return []
    policy, row = best
    ends = {"low": row.get("success_low"), "high": row.get("success_high"), "n": row["n"]}
    return [
        Finding(
            f"{100 * row['success']:.1f}%",
            "of episodes of the task solved",
            f"{policy} solves {100 * row['success']:.1f}% of the task's episodes"
            f"{_compared(rows, 'success')}.",
            _details(ends, "episodes", 100, "%"),
        )
    ]


def _returns(rows: Rows) -> list[Finding]:
    best = _best(rows, ("actor_critic", "bc"), "return")
    if best is None:
        return []
    policy, row = best
    random = (rows.get("random") or {}).get("return")
    against = f", and random actions {number(float(random), 1)}" if random is not None else ""
    value = number(float(row["return"]), 1)
    return [
        Finding(
            value,
            "mean return",
            f"{policy} has a mean return of {value}{against}.",
            _details(row, "episodes"),
        )
    ]


def _open_loop(metrics: Mapping[str, Any]) -> list[Finding]:
    if not metrics["horizons"] or not metrics["psnr"]:
        return []
    horizon, psnr = metrics["horizons"][-1], metrics["psnr"][-1]
    copied = (metrics.get("copy_last_psnr") or [None])[-1]
    against = f", and a copy of the last true frame {number(copied)} dB" if copied else ""
    ends = {
        end: (metrics.get(f"psnr_{end}") or [None])[-1] for end in ("low", "high")
    } | {"n": metrics["n"]}  # fmt: skip
    return [
        Finding(
            f"{number(psnr)} dB",
            f"PSNR {horizon} steps ahead",
            f"{horizon} steps ahead the predicted frames have {number(psnr)} dB{against}.",
            _details(ends, "clips", unit=" dB", digits=2),
        )
    ]


def _tokenizer(metrics: Mapping[str, Any]) -> list[Finding]:
    if not metrics["n"] or metrics["psnr"] is None:
        return []
    value, ends = f"{number(metrics['psnr'])} dB", {
        end: metrics.get(f"psnr_{end}") for end in ("low", "high")
    } | {"n": metrics["n"]}  # fmt: skip
    sentence = f"Frames that are encoded and decoded have {value}."
    return [
        Finding(
            value,
            "PSNR of reconstructed frames",
            sentence,
            _details(ends, "frames", unit=" dB", digits=2),
        )
    ]


def _play(metrics: Mapping[str, Any]) -> list[Finding]:
    if not metrics["n"]:
        return []
    speed = number(float(metrics["frames_per_second"]), 0)
    return [
        Finding(
            f"{speed} frames/s", "of play", f"It plays {speed} frames a second here.",
            f"{metrics['n']} steps",
        )
    ]  # fmt: skip


def _best(
    rows: Rows, policies: tuple[str, ...], measure: str
) -> tuple[str, Mapping[str, Any]] | None:
    measured = [
        (name, row) for name in policies if (row := rows.get(name)) and row.get(measure) is not None
    ]
    return max(measured, key=lambda found: found[1][measure], default=None)


def _compared(rows: Rows, measure: str) -> str:
    """The baseline without a model that was measured, the best one first."""
    found = _best(rows, BASELINES, measure)
    return "" if found is None else f", and {found[0]} {100 * found[1][measure]:.1f}%"


def _details(
    row: Mapping[str, Any], cases: str, scale: float = 1.0, unit: str = "", digits: int = 1
) -> str:
    """Give the interval, with as many digits as its value is told with, and how many cases."""
    parts = []
    if row.get("low") is not None and row.get("high") is not None:
        low, high = (number(scale * row[end], digits) for end in ("low", "high"))
        parts.append(f"[{low}, {high}]{unit}")
    if row.get("n"):
        parts.append(f"{row['n']} {cases}")
    return ", ".join(parts)


def _is_measured(part: Any) -> bool:
    """Whether anything in a part of the metrics has cases."""
    if not isinstance(part, Mapping):
        return False
    return bool(part.get("n")) or any(_is_measured(inner) for inner in part.values())
