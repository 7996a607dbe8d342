"""The return protocol: whole episodes of the environment that the shards were recorded in.

The return of an episode is the sum of its rewards, without a discount.  Every policy starts from
the same seeds.  Letters: E episodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from data.gym.env_group import EnvGroup
from data.gym.record import play_together
from data.gym.recording_policies import RecordingPolicy
from evaluation.measures.intervals import bootstrap

MAX_STEPS = 27_000  # of an episode, as in Atari's protocol: half an hour, four frames a step


@dataclass(frozen=True)
class Returns:
    """What each episode earned, how long it was, and whether it truly ended."""

    returns: np.ndarray  # (E,) float64
    lengths: np.ndarray  # (E,) int64, steps
    terminated: np.ndarray  # (E,) bool


def play_returns(
    policy: RecordingPolicy, envs: EnvGroup, seeds: list[int], name: str = "return"
) -> Returns:
    """Play an episode from each seed, N at a time, until it ends."""
    count = len(seeds)
    played = Returns(np.zeros(count), np.zeros(count, np.int64), np.zeros(count, bool))
    with tqdm(total=count, desc=name, leave=False, unit="episode") as progress:
        for first in range(0, count, envs.num_envs):
            own = seeds[first : first + envs.num_envs]
            for number, action, result in play_together(envs, policy, own):
                episode = first + number
                played.returns[episode] += result.reward
                played.lengths[episode] += action is not None
                played.terminated[episode] |= result.terminated
                progress.update(int(result.done))
    return played


def summarize(played: Returns) -> dict[str, Any]:
    """Give the mean return with its 95% interval, which one episode does not have, and more."""
    returns, count = played.returns, len(played.returns)
    low, high = bootstrap(returns) if count > 1 else (None, None)
    return {
        "return": float(returns.mean()),
        "low": low,
        "high": high,
        "median": float(np.median(returns)),
        "length": float(played.lengths.mean()),
        "terminated": float(played.terminated.mean()),
        "n": count,
    }
