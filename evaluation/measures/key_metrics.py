"""Keys that factored actions press, and how well two lists of actions agree.

A key is a word of a label: "forward left" presses two. The first label of a factor presses none; a
factor whose labels stand for numbers has no keys.  Letters: n actions, F factors, K keys.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from data.actions import ActionSpec, Factor
from models.layers.precision import to_float64


def as_factored(spec: ActionSpec) -> ActionSpec:
    """Give the same codes with factors: codes without factors become one factor, `action`."""
    return spec if spec.factors else replace(spec, factors=(Factor("action", spec.names),))


def numeric_factors(spec: ActionSpec) -> dict[str, int]:
    """Give the factors that stand for numbers, and their index among the choices."""
    return {factor.name: index for index, factor in enumerate(spec.factors) if factor.values}


def key_names(spec: ActionSpec) -> tuple[str, ...]:
    """Give every key that an action can press, in the order of the labels."""
    labels = [label for f in spec.factors if not f.values for label in f.labels[1:]]
    return tuple(dict.fromkeys(word for label in labels for word in label.split()))


def pressed_keys(spec: ActionSpec, choices: Tensor) -> Tensor:
    """Give the keys that are pressed: (n, F) choices -> (n, K) bool."""
    keys = key_names(spec)
    is_pressed = torch.zeros(len(choices), len(keys), dtype=torch.bool, device=choices.device)
    for factor, chosen in zip(spec.factors, choices.unbind(1), strict=True):
        if not factor.values:
            words = [[], *(label.split() for label in factor.labels[1:])]
            # a dtype, since an action space of one code has no keys
            table = torch.tensor(
                [[key in label_words for key in keys] for label_words in words], dtype=torch.bool
            )
            is_pressed |= table.to(choices.device)[chosen]
    return is_pressed


def noop_choices(spec: ActionSpec) -> Tensor:
    """Give the choices of the no-op, (F,) int64: the number nearest to 0, else the first label."""
    labels = [min(range(len(f.values)), key=lambda i: abs(f.values[i])) if f.values else 0
               for f in spec.factors]  # fmt: skip
    return torch.tensor(labels)


def key_scores(spec: ActionSpec, truth: Tensor, predicted: Tensor) -> dict[str, Any]:
    """Score two (n, F) choices: F1 of each key, and its support, how often it truly is pressed.

    F1 is 2 hits / (2 hits + false alarms + misses); None for a key that is never pressed.
    """
    true_keys, predicted_keys = pressed_keys(spec, truth), pressed_keys(spec, predicted)
    hits = (true_keys & predicted_keys).sum(0).tolist()
    errors = (true_keys ^ predicted_keys).sum(0).tolist()
    support = dict(zip(key_names(spec), true_keys.sum(0).tolist(), strict=True))
    f1 = {
        key: 2 * hit / (2 * hit + miss) if support[key] else None
        for key, hit, miss in zip(support, hits, errors, strict=True)
    }
    return {"f1": f1, "support": support}


def correlation(a: Tensor, b: Tensor) -> float | None:
    """Compute Pearson's r of two (n,); None where one of them does not vary."""
    a, b = to_float64(a), to_float64(b)
    a, b = a - a.mean(), b - b.mean()
    norms = float(a.norm() * b.norm())
    return float(a @ b) / norms if norms > 1e-9 else None
