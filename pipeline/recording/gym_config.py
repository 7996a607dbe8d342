"""What `preprocess.py gym` asks for, and the source of episodes that it becomes."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from data.gym.env_spec import EnvSpec, env_spec_of, parse_kwargs
from data.gym.gym_episodes import SOURCE, GymEpisodes
from data.gym.recording_policies import (
    RANDOM,
    STICKY_RANDOM,
    CallableChoice,
    PolicyChoice,
    RandomChoice,
    load_callable,
)
from data.gym.rounds import Round, is_recorded, plan_round, read_rounds
from data.ranges import MAX_SEED, MAX_SIDE, MAX_WORKERS, MIN_SIDE, CheckedConfig, Range
from data.shards.build_info import read_build_info, shard_name
from data.shards.build_shards import available_cpus
from pipeline.flags import repeatable

VectorizationMode = Literal["none", "sync", "async", "vector_entry_point"]


@dataclass(frozen=True)
class GymConfig(CheckedConfig):
    run: Path = Path("runs/gym")
    """Run folder; shards are written to RUN/shards, or added to those that are there."""
    env: str = ""
    """Environment, as gymnasium.make takes it: ID, or module:ID; that of the run's shards, with its
    view, if none is given."""
    env_kwargs: tuple[str, ...] = ()
    """NAME=VALUE for gymnasium.make, such as continuous=true."""
    policy: str = RANDOM
    """Who acts: `random`; `sticky-random`, which holds each action; a run folder, whose controller
    acts; or module:callable, of an observation, giving an action."""
    sticky_steps: Annotated[int, Range(2, 1000)] = 8
    """Steps that sticky-random holds an action."""
    episodes: Annotated[int, Range(1, 10**6, or_zero=True)] = 0
    """Episodes to record now, whole ones."""
    steps: Annotated[int, Range(1, 10**9, or_zero=True)] = 0
    """Steps to record now, in place of --episodes; the last episodes are cut."""
    default_episodes: Annotated[int, Range(1, 10**6)] = 100
    """Episodes to record where neither --episodes nor --steps says how many."""
    round: Annotated[int | None, Range(0, 10**6)] = None
    """Number of the round to record, from 0, which is left as it is where it is recorded; by
    default one more, where none with these settings and this controller is there."""
    max_episode_steps: Annotated[int, Range(1, 10**6, or_zero=True)] = 0
    """Steps after which an episode is truncated; 0 leaves that to the environment."""
    pixels: str = "auto"
    """`observation`, `render` (rgb_array), or the key of a Dict observation; by default what is
    observed, or else drawn."""
    resolution: Annotated[int, Range(MIN_SIDE, MAX_SIDE)] = 64
    """Height and width of a frame, in pixels."""
    grayscale: bool = False
    """Record brightness, in three equal colors."""
    frame_skip: Annotated[int, Range(1, 1000)] = 1
    """Times that the environment takes an action in one step; rewards are added up."""
    max_pool: bool = False
    """A frame is the maximum of the last two of a step, since Atari's sprites flicker."""
    noop_max: Annotated[int, Range(0, 1000)] = 0
    """An episode begins with 0 to so many no-ops."""
    num_envs: Annotated[int, Range(1, 1024)] = 10
    """Environments of a process that are stepped together."""
    vectorization_mode: VectorizationMode = "none"
    """Step each environment on its own, or all as gymnasium.make_vec does."""
    seed: Annotated[int, Range(0, MAX_SEED)] = 0
    """Seed of the episodes, and at first of the splits."""
    num_workers: Annotated[int, Range(1, MAX_WORKERS)] = available_cpus()
    """Processes; the shards do not depend on it."""
    live: Annotated[int, Range(0, 65535)] = 0
    """Port of a page that follows it at 127.0.0.1; 0 is no page."""
    restart: bool = False
    """Delete existing shards and start over."""

    def check(self) -> None:
        super().check()
        if self.episodes and self.steps:
            raise ValueError("--episodes and --steps both say how much to record; give one")
        if self.max_pool and self.frame_skip < 2:
            raise ValueError(
                f"--max-pool needs the last two frames of a step, and --frame-skip is "
                f"{self.frame_skip}; give 2 or more, or leave it out"
            )

    def env_spec(self) -> EnvSpec:
        return EnvSpec(
            self.env,
            parse_kwargs(self.env_kwargs),
            self.pixels,
            self.resolution,
            self.grayscale,
            self.frame_skip,
            self.max_pool,
            self.noop_max,
            self.max_episode_steps,
            self.vectorization_mode,
        )


def gym_source(config: GymConfig, folder: Path) -> GymEpisodes | None:
    """Choose what is recorded: the environment, who acts, and whether it is one more round.

    None where --round is recorded already.  ValueError, before anything is written, for what cannot
    be recorded.
    """
    spec = config.env_spec() if config.restart else _same_view(config, folder)
    if not spec.id:
        raise ValueError("--env is not given; name an environment, such as --env CartPole-v1")
    known = () if config.restart else read_rounds(folder)
    if config.round is not None and is_recorded(folder, known, config.round):
        return None
    policy = _find_policy(config)
    episodes = config.episodes or (0 if config.steps else config.default_episodes)
    fingerprint = getattr(policy, "fingerprint", "")
    # how many act together changes what a controller samples, and nothing else
    num_envs = config.num_envs if fingerprint or spec.vectorization_mode != "none" else 0
    words = shlex.join(repeatable(sys.argv[1:]))
    wanted = Round(
        policy.name, fingerprint, config.seed, num_envs, episodes, config.steps,
        f"python preprocess.py {words}",
    )  # fmt: skip
    plan = plan_round(folder, known, wanted, config.round)
    source = GymEpisodes.open(spec, policy, plan, config.num_envs)
    if plan.replaced:
        print(f"gym: round {plan.active} was begun by another controller, and is recorded anew")
        for index in range(plan.first_shard, plan.num_shards):
            (folder / shard_name(index)).unlink(missing_ok=True)
    return source


def split_seed(source: GymEpisodes) -> int:
    """Return the seed of the splits: that of the first round."""
    return source.plan.rounds[0].seed


def _same_view(config: GymConfig, folder: Path) -> EnvSpec:
    """Return the environment of the shards that are there, where none is named."""
    info = read_build_info(folder)
    wanted = config.env_spec()
    if info is None or config.env:
        return wanted
    known = env_spec_of(info["description"])
    if known is None:
        source = info["description"].get("source")
        raise ValueError(
            f"{folder} holds shards of {source!r}, not of {SOURCE}, so there is no environment to "
            f"go on with; give --env and another --run"
        )
    same_id = replace(wanted, id=known.id)
    if same_id not in (known, replace(EnvSpec(known.id))):
        name = next(k for k, v in known.as_dict().items() if same_id.as_dict()[k] != v)
        raise ValueError(
            f"{folder} holds shards with env {name} {known.as_dict()[name]!s:.60}, but now it is "
            f"{same_id.as_dict()[name]!s:.60}; leave it out, or give another --run"
        )
    return known


def _find_policy(config: GymConfig) -> PolicyChoice:
    name = config.policy
    if name == RANDOM:
        return RandomChoice()
    if name == STICKY_RANDOM:
        return RandomChoice(config.sticky_steps)
    path = Path(name).expanduser()
    if path.is_dir():
        from pipeline.recording.run_policy import RunChoice  # torch, which no other policy needs

        return RunChoice.find(path)
    if ":" in name:
        sys.path[:0] = [] if "" in sys.path or "." in sys.path else ["."]
        load_callable(name)
        return CallableChoice(name)
    raise ValueError(
        f"--policy {name} is neither {RANDOM}, {STICKY_RANDOM}, module:callable, nor a run folder "
        f"that is there"
    )
