"""What actions made of choices press and how far they turn, and how well two lists of them agree.

A key is a word of a label: "forward left" presses two. The first label of a factor presses none,
and a factor whose labels stand for numbers turns instead.  Letters: n actions, F factors, K keys.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from data.actions import ActionSpec, Factor


def as_choices(spec: ActionSpec) -> ActionSpec:
    """Give the same codes with factors: those that are simply named are one choice among all."""
    return spec if spec.factors else replace(spec, factors=(Factor("action", spec.names),))


def turning(spec: ActionSpec) -> dict[str, int]:
    """Factors that stand for numbers, and their places among the choices."""
    return {factor.name: at for at, factor in enumerate(spec.factors) if factor.values}


def keys_of(spec: ActionSpec) -> tuple[str, ...]:
    """Every key that an action can press, in the order of the labels."""
    labels = [label for f in spec.factors if not f.values for label in f.labels[1:]]
    return tuple(dict.fromkeys(word for label in labels for word in label.split()))


def pressed(spec: ActionSpec, choices: Tensor) -> Tensor:
    """(n, F) choices -> (n, K) bool."""
    keys = keys_of(spec)
    down = torch.zeros(len(choices), len(keys), dtype=torch.bool, device=choices.device)
    for factor, chosen in zip(spec.factors, choices.unbind(1), strict=True):
        if not factor.values:
            words = [[], *(label.split() for label in factor.labels[1:])]
            table = torch.tensor([[key in said for key in keys] for said in words])
            down |= table.to(choices.device)[chosen]
    return down


def nothing(spec: ActionSpec) -> Tensor:
    """The choices of doing nothing: the number nearest to 0, the first label: (F,) int64."""
    resting = [min(range(len(f.values)), key=lambda i: abs(f.values[i])) if f.values else 0
               for f in spec.factors]  # fmt: skip
    return torch.tensor(resting)


def key_scores(spec: ActionSpec, truth: Tensor, read: Tensor) -> dict[str, Any]:
    """Two (n, F) choices -> F1 of each key and how often it truly is pressed.

    F1 is 2 hits / (2 hits + false alarms + misses); None for a key that never is pressed.
    """
    true, found = pressed(spec, truth), pressed(spec, read)
    hits = (true & found).sum(0).tolist()
    wrong = (true ^ found).sum(0).tolist()
    presses = dict(zip(keys_of(spec), true.sum(0).tolist(), strict=True))
    f1 = {
        key: 2 * hit / (2 * hit + miss) if presses[key] else None
        for key, hit, miss in zip(presses, hits, wrong, strict=True)
    }
    return {"f1": f1, "presses": presses}


def correlation(a: Tensor, b: Tensor) -> float | None:
    """Pearson's r of two (n,); None where one of them does not vary."""
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    lengths = float(a.norm() * b.norm())
    return float(a @ b) / lengths if lengths > 1e-9 else None
