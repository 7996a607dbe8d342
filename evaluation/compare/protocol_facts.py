"""What a figure was measured on and how: only figures of one protocol stand in one row."""

from __future__ import annotations

from typing import Any

Facts = tuple[tuple[str, str], ...]
"""Names and values of what two figures must share to be compared."""


def facts_of(key: str, metrics: dict[str, Any]) -> Facts:
    """Give the protocol of the figure with this key of a report.

    The number of cases is none of it: intervals tell what it is worth.  Nor is what belongs to a
    method, as how many frames it is given before a rollout, or how it searches.
    """
    group, *rest = key.split(".")
    provenance = metrics["provenance"]
    seeds = provenance.get("seeds") or {}
    dataset = ("dataset", provenance["fingerprints"].get("shards"))
    clips = ("seed of clips", seeds.get("clips"))
    if group in ("open_loop", "rewards"):
        horizons = metrics[group].get("horizons") or [None]
        facts = [dataset, clips, ("longest horizon", horizons[-1])]
        # what a world infers from the frames that follow says more than what was recorded
        inferred = bool((metrics.get("latent_actions") or {}).get("n"))
        facts.append(("actions", "inferred" if inferred else "recorded"))
    elif group == "task":
        goal = provenance.get("task_goal")
        facts = [("first seed", seeds.get("task")), ("goal", goal or "the task's own")]
        facts.append(("steps", provenance.get("task_max_steps")))
    elif group == "goal":
        facts = [dataset, ("seeds of pairs", seeds.get("pairs"))]
    elif group == "returns" and rest[0] != "recorded":  # those were recorded, not played
        facts = [("environment", provenance.get("environment")), ("first seed", seeds.get("task"))]
        facts.append(("steps", provenance.get("return_max_steps")))
    else:
        facts = [dataset, clips]
    return tuple((name, "unknown" if value is None else _text(value)) for name, value in facts)


def _text(value: Any) -> str:
    return " ".join(f"{x:g}" for x in value) if isinstance(value, list | tuple) else str(value)
