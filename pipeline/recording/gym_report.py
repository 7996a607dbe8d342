"""What a run's rounds of episodes earned, for the end of stage 1 and the curve of the returns.

Letters: E episodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.gym.rounds import read_rounds
from data.shards.episode_dataset import EpisodeDataset


@dataclass(frozen=True)
class RoundReturns:
    """The episodes of one round."""

    policy: str
    first_step: int  # steps of all rounds before it
    steps: int
    returns: np.ndarray  # (E,) float64, of the episodes that were not cut by a budget of steps


def returns_of(dataset: EpisodeDataset, episodes: np.ndarray) -> np.ndarray:
    """Add up the rewards of each episode: (E,) float64."""
    return np.array([float(dataset.read(int(e), "rewards").sum()) for e in episodes])


def episodes_by_round(dataset: EpisodeDataset) -> dict[int, np.ndarray]:
    """Return the episodes of each round, by its number."""
    numbers = np.array([int(note.get("round", 0)) for note in dataset.notes])
    return {int(n): np.flatnonzero(numbers == n) for n in np.unique(numbers)}


def round_returns(dataset: EpisodeDataset) -> list[RoundReturns]:
    """Return what each round of a gymnasium dataset earned, in the order of recording."""
    rounds, done, found = read_rounds(dataset.folder), 0, []
    for number, episodes in episodes_by_round(dataset).items():
        steps = int((dataset.lengths[episodes] - 1).sum())
        whole = [e for e in episodes if not dataset.notes[e].get("cut")]
        policy = rounds[number].policy if number < len(rounds) else "unknown"
        found.append(RoundReturns(policy, done, steps, returns_of(dataset, np.array(whole, int))))
        done += steps
    return found


def describe_rounds(folder: Path) -> list[str]:
    """Say in a line what each round earned."""
    lines = []
    for number, each in enumerate(round_returns(EpisodeDataset(folder))):
        returns = each.returns
        earned = "no whole episode"
        if len(returns):
            earned = f"mean return {returns.mean():.4g} of {len(returns)} episodes"
        lines.append(f"gym: round {number}, {each.policy}: {each.steps} steps, {earned}")
    return lines
