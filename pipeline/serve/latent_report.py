"""What was measured of a run's predictions (python -m evaluation.latents): MRR, and quantiles of
distances, by which one distance is said as a percentile.

Letters: k steps ahead.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1
FILE = Path("report") / "latents.json"
QUANTILES = 101  # 0% to 100%

Quantiles = Mapping[str, Sequence[float]]
"""By the number of steps, as text."""


@dataclass(frozen=True)
class Measured:
    model_id: str
    """The run that was measured."""
    n: int
    """Held-out transitions."""
    mrr: float | None = None
    """Of predictions from all patches."""
    mrr_pooled: float | None = None
    """Of predictions from z_cls alone, where that is a mean over patches."""
    surprise: Quantiles = field(default_factory=dict)
    """Of the distance between a predicted z_cls and the true one."""
    uncertainty: Quantiles = field(default_factory=dict)
    """Of the distance between two predictions, the second of a start that is moved by noise."""
    noise_std: float = 0.0
    """Of that noise: the model's own error after one step, a number of a patch."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def percentile(value: float, quantiles: Quantiles, steps: int) -> float | None:
    """The share, in percent, of held-out distances after `steps` that are smaller; None where none
    were measured so far ahead."""
    found = quantiles.get(str(steps))
    if not found:
        return None
    return float(np.interp(value, found, np.linspace(0, 100, len(found))))


def read_measured(run: Path, model_id: str) -> tuple[Measured | None, str]:
    """Return what was measured of this very model, and a line that says what was found."""
    path = run / FILE
    measure = f"python -m evaluation.latents --run {run}"
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        return None, f"no MRR and no percentiles: {path} is not there; {measure} writes it"
    except (OSError, ValueError) as problem:
        return None, f"no MRR and no percentiles: {path} cannot be read ({problem}); {measure}"
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        return None, f"no MRR and no percentiles: {path} has another format; {measure}"
    names = Measured.__dataclass_fields__
    measured = Measured(**{"model_id": "", "n": 0} | {n: values[n] for n in names if n in values})
    if wrong := _wrong_field(measured):
        return None, f"no MRR and no percentiles: {path} has no {wrong} that can be read; {measure}"
    if measured.model_id != model_id:
        return None, (
            f"no MRR and no percentiles: {path} is of another checkpoint ({measured.model_id}, and "
            f"this is {model_id}); {measure} measures this one"
        )
    return measured, f"MRR and percentiles of {path}, {measured.n} held-out transitions"


def _wrong_field(found: Measured) -> str | None:
    """Name the first field that is missing, or no value of its kind."""
    if not isinstance(found.model_id, str) or not found.model_id:
        return "model_id"
    if type(found.n) is not int or found.n < 0:
        return "n"
    for name in ("mrr", "mrr_pooled", "noise_std"):
        value = getattr(found, name)
        if not _is_number(value) and not (value is None and name != "noise_std"):
            return name
    for name in ("surprise", "uncertainty"):
        quantiles = getattr(found, name)
        if not isinstance(quantiles, dict) or not all(map(_are_numbers, quantiles.values())):
            return name
    return None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(map(_is_number, values))
