"""Episodes of a gymnasium environment: a source that grows, round after round."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.actions import ActionSpec
from data.gym import env_spec, rounds
from data.gym.env_group import open_group
from data.gym.env_spec import EnvSpec
from data.gym.record import record_episodes, record_steps
from data.gym.recording_policies import PolicyChoice
from data.gym.rounds import Plan
from data.shards.build_info import shard_name
from data.shards.episodes import Episode
from data.shards.splits import LONG_ENOUGH, split_sources

SOURCES_PER_SHARD = 10**5  # numbers of episodes that a shard has for itself
SOURCE = "gym"


@dataclass(frozen=True)
class GymEpisodes:
    """One round of episodes, after those of earlier rounds.

    An episode depends on the seed of its round, its shard and its number there; where a trained
    controller acts, also on how many act together.
    """

    spec: EnvSpec
    policy: PolicyChoice
    plan: Plan
    actions: ActionSpec = field(hash=False)
    num_envs: int = 1
    """Environments that are stepped together."""
    state_dim: int = 0

    @staticmethod
    def open(spec: EnvSpec, policy: PolicyChoice, plan: Plan, num_envs: int) -> GymEpisodes:
        """Open the environment and the policy once: what cannot be recorded is refused now."""
        envs = open_group(spec, 1)
        try:
            policy.open(envs)
            return GymEpisodes(spec, policy, plan, envs.actions, num_envs, envs.state_dim)
        finally:
            envs.close()

    @property
    def num_shards(self) -> int:
        return self.plan.num_shards

    @property
    def num_sources(self) -> int:
        return self.num_shards * SOURCES_PER_SHARD

    def description(self) -> dict[str, Any]:
        """Return what all rounds share; who acted stands in build.json and in the notes."""
        names = {"state_names": [f"observation_{i}" for i in range(self.state_dim)]}
        return {
            "source": SOURCE,
            "image_size": [self.spec.image_size] * 2,
            "actions": self.actions.as_dict(),
            **(names if self.state_dim else {}),
            env_spec.KEY: self.spec.as_dict(),
        }

    def build_info(self) -> dict[str, Any]:
        """Return what build.json keeps of the rounds, with the last one's command."""
        each = self.plan.rounds
        return {rounds.KEY: rounds.as_plain(each), "command": each[-1].command}

    def split_shard(self, index: int, lengths: list[int], seed: int) -> list[int]:
        """Split a shard's episodes by themselves, so that later rounds change no split."""
        shard_seed = seed * 10**6 + index
        return split_sources(len(lengths), shard_seed, lengths, LONG_ENOUGH).tolist()

    def make_shard(self, index: int) -> list[Episode]:
        """Record one shard of the active round; ValueError for those of others."""
        number, shard = self.plan.locate(index)
        own = self.plan.rounds[number]
        if number != self.plan.active:
            raise ValueError(
                f"{shard_name(index)} is not there or damaged, and was recorded by round {number} "
                f"({own.policy}); this makes it again: {own.command}"
            )
        count = own.count(shard)
        envs = open_group(self.spec, min(self.num_envs, count))
        try:
            policy = self.policy.open(envs)
            record = record_steps if own.steps else record_episodes
            made = record(envs, policy, lambda k: episode_seed(own.seed, index, k), count)
            episodes = []
            for place, recorder in enumerate(made):
                episode = recorder.to_episode(envs.actions, index * SOURCES_PER_SHARD + place)
                seed = recorder.seed if envs.seeds_each else None
                episode.notes = {"round": number, "policy": self.policy.name, "seed": seed}
                if recorder.cut:
                    episode.notes["cut"] = True
                episodes.append(episode)
            return episodes
        finally:
            envs.close()


def episode_seed(seed: int, shard: int, number: int) -> int:
    """Return the seed of an episode, below 2**31, which every environment takes."""
    return int(np.random.SeedSequence((seed, shard, number)).generate_state(1)[0] >> 1)
