"""Answers of the service, checked: sizes that fit, and numbers that are finite.

Letters: k steps, P patches, D width, E numbers of z_cls, A action numbers, T actions.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.client.errors import BadAnswer


@dataclass(frozen=True)
class Encoded:
    """An image as latents: pooled, and by patches where they were asked for."""

    z_cls: np.ndarray  # (E,) float32
    z_patches: np.ndarray | None  # (P, D) float32
    timestamp: float
    model_variant: str
    latent_spec: str
    """Of the run that made them; sent along with what is asked of them."""


@dataclass(frozen=True)
class Predicted:
    """Latents after one step."""

    z_cls: np.ndarray  # (E,) float32
    z_patches: np.ndarray | None  # (P, D) float32
    mrr: float | None
    uncertainty: float | None  # percentile
    timestamp: float
    latent_spec: str


@dataclass(frozen=True)
class RolledOut:
    """Latents after each of k steps."""

    z_cls: np.ndarray  # (k, E) float32
    z_patches: np.ndarray | None  # (k, P, D) float32
    mrr: list[float | None]
    uncertainty: list[float | None]
    timestamp: float
    latent_spec: str


@dataclass(frozen=True)
class Planned:
    """Actions towards a goal, and what they and the start cost."""

    actions: np.ndarray  # (T, A) float32
    cost: float
    start_cost: float | None
    timestamp: float


@dataclass(frozen=True)
class Health:
    """Whether the service lives, and how often it was asked."""

    status: str
    model_loaded: bool
    model_variant: str | None
    device: str | None
    uptime_seconds: float
    total_encodes: int
    total_predicts: int
    total_rollouts: int


@dataclass(frozen=True)
class Spec:
    """What the run has, and what was measured of it."""

    spec: Mapping[str, Any]
    """Sizes, actions, what the run cannot do (pipeline/serve/run_spec.py)."""
    measured: Mapping[str, Any] | None = field(default=None)
    """MRR and quantiles (pipeline/serve/latent_report.py); None where they were not measured."""

    @property
    def latent_spec(self) -> str:
        return str(self.spec["latent_spec"])


def array(value: Any, name: str, ndim: int) -> np.ndarray:
    """Numbers of an answer, or base64 of them, as float32; BadAnswer where they are none."""
    try:
        found = np.asarray(_numbers(value), np.float32)
    except (TypeError, ValueError):
        raise BadAnswer(f"{name} of the answer is no array of numbers") from None
    if found.ndim != ndim or not found.size or not np.isfinite(found).all():
        raise BadAnswer(f"{name} of the answer has shape {found.shape}, or is not finite")
    return found


def array_or_none(value: Any, name: str, ndim: int) -> np.ndarray | None:
    return None if value is None else array(value, name, ndim)


def _numbers(value: Any) -> Any:
    """A string is a vector, and a list of them several."""
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value, validate=True), "<f4")
    if isinstance(value, list) and value and isinstance(value[0], (str, list)):
        return [_numbers(part) for part in value]
    return value
