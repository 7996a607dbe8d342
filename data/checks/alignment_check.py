"""Whether actions[t] leads from frames[t] to frames[t + 1], measured on any world.

An action is predicted, by ridge regression, from the change between two frames; the change that it
causes tells most of it. Where the change before or after tells clearly more, actions and frames
are shifted against each other. Where no change tells much, nothing is said.

Letters: N steps, F features of a change, A numbers of an action.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from data.actions import ActionSpec
from data.gym import env_spec
from data.shards.episode_dataset import EpisodeDataset

Shift = Literal[-1, 0, 1]
SHIFTS: tuple[Shift, ...] = (-1, 0, 1)  # actions[t + shift] beside the change from t to t + 1
MAX_EPISODES, MAX_STEPS = 40, 2000  # that are looked at
MAX_CODES = 64  # that get a number of their own
MIN_STEPS = 100  # below which nothing is said
SIDES = (32, 16)  # pixels of the images whose motion is measured: small and large steps
CELLS = 4  # a side, of the cells whose change is measured
RIDGE = 0.02  # times the number of steps, of standardized features
NUM_FOLDS = 4
MIN_SCORE = 0.1  # explained variance below which nothing is said
SURE = 0.15  # and below which nothing is warned of
CLEARLY, TWICE = 2.5, 2.0  # times as much as the other changes explain


def alignment_scores(dataset: EpisodeDataset) -> dict[Shift, float] | None:
    """Return the fraction of the actions' variance that the change from frames[t] to frames[t + 1]
    explains in actions[t + shift]; None where there is too little to tell, or a recorder of ours
    has put actions and frames together (what they change may show a step later, as a push does).

    It is the mean over the numbers of an action that any of the changes tells something of.
    """
    recorded_here = env_spec.KEY in dataset.description
    if not dataset.has("actions") or dataset.actions.kind == "none" or recorded_here:
        return None
    changes, actions = _sample(dataset)
    if sum(map(len, changes)) < MIN_STEPS:
        return None
    features, targets = np.concatenate(changes), np.concatenate(actions)  # (N, F), (N, 3, A)
    folds = np.arange(len(features)) * NUM_FOLDS // len(features)  # of whole runs of steps
    deviations = [targets[folds == fold].std(0).min(0) for fold in range(NUM_FOLDS)]
    varying = np.min(deviations, 0) > 1e-6  # everywhere, else a constant would be explained
    if not varying.any() or not (features.std(0) > 1e-9).any():
        return None
    explained = np.stack(
        [_explained(features, targets[:, index][:, varying], folds) for index in range(len(SHIFTS))]
    )
    shown = explained.max(0) >= MIN_SCORE  # the others, such as rare keys, would only dilute
    means = explained[:, shown if shown.any() else slice(None)].mean(1)
    return dict(zip(SHIFTS, means.tolist(), strict=True))


def describe_scores(scores: dict[Shift, float] | None) -> str:
    """Return the scores as a line for a report."""
    if scores is None or max(scores.values()) < MIN_SCORE:
        return "frames change too little with the actions to measure whether they are aligned"
    parts = (f"{scores[s]:z.0%} of actions[t{s:+d}]".replace("+0", "") for s in SHIFTS)
    return f"the change from frame t to t + 1 explains {', '.join(parts)}"


def alignment_warning(scores: dict[Shift, float] | None) -> str:
    """Return a warning where another shift explains clearly more, else an empty line."""
    if scores is None:
        return ""
    best = max(SHIFTS, key=lambda shift: scores[shift])
    # where the shift opposite explains as well, a policy reacts to what it sees in a slow world
    others = CLEARLY * scores[0], TWICE * scores[-1 if best == 1 else 1]
    if best == 0 or scores[best] < max(SURE, *others):
        return ""
    if best == 1:
        cause = (
            "actions seem to be stored with the frame that they led to; if so, preprocess.py "
            "arrays takes them with --alignment previous"
        )
    else:
        cause = "actions seem to be stored a step too early, or to act a step late"
    return f"warning: {describe_scores(scores)}: {cause}"


def _sample(dataset: EpisodeDataset) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Read changes (N, F) of some episodes, and the actions (N, 3, A) around each."""
    count = len(dataset)
    chosen = np.unique(np.linspace(0, count - 1, min(MAX_EPISODES, count)).astype(int))
    most = max(MAX_STEPS // len(chosen), MIN_STEPS)
    changes, actions = [], []
    for episode in chosen.tolist():
        stop = min(dataset.length(episode), most + 3)
        # the last action leads nowhere, so the last change with actions on both sides ends before
        if stop < 4:
            continue
        frames = dataset.read(episode, "frames", 1, stop - 1)
        values = _numbers(dataset.read(episode, "actions", 0, stop), dataset.actions)
        changes.append(_features(frames))
        steps = np.arange(1, 1 + len(changes[-1]))
        actions.append(np.stack([values[steps + shift] for shift in SHIFTS], axis=1))
    return changes, actions


def _numbers(actions: np.ndarray, spec: ActionSpec) -> np.ndarray:
    """Write actions as numbers: those that they are or mean, or a one for each choice:
    (T, A) float64."""
    if spec.kind == "continuous":
        return actions.astype(np.float64)
    if not spec.factors:
        return _one_hot(actions, spec.size)
    columns = []
    for factor, choices in zip(spec.factors, spec.unravel(actions).T, strict=True):
        if factor.values:
            columns.append(np.array(factor.values, np.float64)[choices][:, None])
        else:
            columns.append(_one_hot(choices, len(factor.labels)))
    return np.concatenate(columns, axis=1)


def _one_hot(codes: np.ndarray, size: int) -> np.ndarray:
    return (codes[:, None] == np.arange(min(size, MAX_CODES))).astype(np.float64)


def _features(frames: np.ndarray) -> np.ndarray:
    """Describe each change between frames (T, H, W, 3): its motion, and where it is: (T - 1, F).

    The motion is the correlation of the change with the gradient of the image, whose sign is the
    direction in which things move, wherever they are.
    """
    found, images = [], frames
    for side in SIDES:
        images = _shrink(images, side)  # (T, h, w, 3)
        change = np.diff(images, axis=0)
        middle = (images[1:] + images[:-1]) / 2
        energy = (change**2).sum((1, 2, 3)) + 1e-6
        found.append(np.sqrt(np.abs(change).mean((1, 2, 3)))[:, None])
        for axis in (1, 2):
            slope = np.gradient(middle, axis=axis)
            scale = np.sqrt(energy * (slope**2).sum((1, 2, 3)) + 1e-6)
            product = change * slope
            found.append(product.sum((1, 2, 3))[:, None] / scale[:, None])
            found.append(product.sum((1, 2)) / energy[:, None])  # of each color
    gray = _shrink(images, CELLS).mean(-1)
    change = np.diff(gray, axis=0).reshape(len(gray) - 1, -1)
    return np.concatenate([*found, change], axis=1)


def _shrink(frames: np.ndarray, side: int) -> np.ndarray:
    """Average over areas: (T, H, W, 3) -> (T, side, side, 3) float64, or less for small frames."""
    height, width = frames.shape[1:3]
    rows = np.unique(np.linspace(0, height, min(side, height) + 1).astype(int))
    columns = np.unique(np.linspace(0, width, min(side, width) + 1).astype(int))
    sums = np.add.reduceat(frames.astype(np.float64), rows[:-1], axis=1)
    sums = np.add.reduceat(sums, columns[:-1], axis=2)
    return sums / (np.diff(rows)[:, None, None] * np.diff(columns)[:, None])


def _explained(features: np.ndarray, targets: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Return the fraction of each target's variance that held-out features explain: (A,), 0 to 1.

    features: (N, F); targets: (N, A); folds: (N,), each of which is held out once.
    """
    errors = np.zeros(targets.shape[1])
    variance = np.zeros(targets.shape[1])
    for fold in range(NUM_FOLDS):
        train, test = folds != fold, folds == fold
        mean, std = features[train].mean(0), features[train].std(0) + 1e-9
        x = np.clip((features - mean) / std, -4, 4)
        center = targets[train].mean(0)
        gram = x[train].T @ x[train] + RIDGE * train.sum() * np.eye(x.shape[1])
        weights = np.linalg.solve(gram, x[train].T @ (targets[train] - center))
        errors += ((targets[test] - center - x[test] @ weights) ** 2).sum(0)
        variance += ((targets[test] - center) ** 2).sum(0)
    return np.clip(1 - errors / np.maximum(variance, 1e-12), 0, 1)
