"""What is measured on a dataset: each a job, whose result is merged into the metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from evaluation.evaluate_config import Config, Part
from evaluation.measures.controllability import controllability
from evaluation.measures.imitation import imitation, marginal_baselines
from evaluation.measures.open_loop import open_loop
from evaluation.measures.probe import probe
from evaluation.measures.reconstruction import measure_tokenizer
from evaluation.measures.reward_prediction import reward_prediction
from evaluation.measures.sample_clips import sample_clips
from evaluation.measures.speed import measure_play
from evaluation.readers.fit_estimator import measure_estimator
from evaluation.report import plots
from evaluation.report.drawing import MAX_FRAMES, draw_videos
from evaluation.session import Session
from models.controllers.discrete_goal_policy import DiscreteGoalPolicy


@dataclass(frozen=True)
class Job:
    """One thing to measure; its result is cached under its name."""

    part: Part
    name: str
    cache_key: dict[str, Any]
    measure: Callable[[], dict[str, Any]]
    merge: Callable[[dict[str, Any], dict[str, Any]], None]
    """Put the result into the metrics."""
    protocols: tuple[str, ...] = ()
    """The simulator's protocols that it belongs to, as --protocol names them."""
    policy: str = ""
    """The policy that is measured in the simulator, as --policies names it."""
    on_request: bool = False
    """It is measured only where --protocol names it."""
    alone: bool = False
    """It is a time, and nothing else is measured beside it."""


def jobs_on_dataset(session: Session, config: Config) -> Iterator[Job]:
    """Give all jobs, those of the tokenizer first."""
    for jobs in (
        tokenizer_jobs, probe_jobs, open_loop_jobs, reward_jobs, controllability_jobs,
        imitation_jobs, play_jobs,
    ):  # fmt: skip
        yield from jobs(session, config)


def tokenizer_jobs(session: Session, config: Config) -> Iterator[Job]:
    """Reconstruction, codebook use and flicker on held-out frames."""
    if not session.world.has_decoder:
        return
    clip_length = session.world.context + max(config.horizons)

    def make() -> dict[str, Any]:
        clips = session.clips(clip_length)
        indices, _ = sample_clips(clips, MAX_FRAMES // 2, config.seed)
        truth = clips.batch(indices).frames[:, 0].to(session.device)
        with torch.inference_mode():
            reconstructed = session.world.reconstruct(truth)
        plots.draw_reconstructions(truth, reconstructed, session.plots / "reconstructions.png")
        return measure_tokenizer(session.world, clips, config.num_clips, config.seed)

    cache_key = session.cache_key(
        "tokenizer", num_clips=config.num_clips, frames=clip_length, seed=config.seed
    )
    yield Job("tokenizer", "tokenizer", cache_key, make, lambda m, r: m["tokenizer"].update(r))


def probe_jobs(session: Session, config: Config) -> Iterator[Job]:
    """The simulator's state in the latents."""
    if not session.has_goals or not session.dataset.episodes("train"):
        return

    def make() -> dict[str, Any]:
        return probe(session.world, session.dataset, seed=config.seed)

    cache_key = session.cache_key(*session.embedding_stages, seed=config.seed)
    yield Job("probe", "probe", cache_key, make, lambda m, r: m["probe"].update(r))


def open_loop_jobs(session: Session, config: Config) -> Iterator[Job]:
    """Model rollouts against the true frames by horizon, in pixels and in states."""
    if not session.world.has_decoder:
        return

    def make() -> dict[str, Any]:
        estimator = session.estimator(config.estimator_steps, config.seed)
        clips = session.clips(session.world.context + max(config.horizons))
        metrics = open_loop(
            session.world,
            clips,
            config.horizons,
            num_clips=config.num_clips,
            estimator=estimator,
            intervals=True,
            seed=config.seed,
            progress=True,
        )
        if estimator is not None:
            metrics["estimator_error"] = measure_estimator(estimator, session.dataset)
        draw_videos(session, clips, config.horizons, config.num_videos, config.seed)
        return metrics

    cache_key = session.cache_key(
        "tokenizer",
        "dynamics",
        horizons=config.horizons,
        num_clips=config.num_clips,
        estimator_steps=config.estimator_steps,
        num_videos=config.num_videos,
        seed=config.seed,
    )
    yield Job("open_loop", "open_loop", cache_key, make, lambda m, r: m["open_loop"].update(r))


def reward_jobs(session: Session, config: Config) -> Iterator[Job]:
    """Rewards and ends that the world predicts along its rollouts, where it learned to."""
    if not session.world.has_rewards or not session.dataset.has("rewards"):
        return

    def make() -> dict[str, Any]:
        clips = session.clips(session.world.context + max(config.horizons))
        return reward_prediction(
            session.world, clips, config.horizons, config.num_clips, config.seed
        )

    cache_key = session.cache_key(
        "dynamics", horizons=config.horizons, num_clips=config.num_clips, seed=config.seed
    )
    yield Job("rewards", "rewards", cache_key, make, lambda m, r: m["rewards"].update(r))


def controllability_jobs(session: Session, config: Config) -> Iterator[Job]:
    """Actions that inverse dynamics predicts from model rollouts, for codes with factors."""
    if not session.dataset.actions.factors or not session.world.has_decoder:
        return
    steps = max(config.horizons)

    def make() -> dict[str, Any]:
        idm = session.idm(config.idm_steps, config.seed)
        clips = session.clips(session.world.context + steps)
        return controllability(
            session.world, clips, idm, steps, config.num_clips, seed=config.seed, progress=True
        )

    cache_key = session.cache_key(
        "tokenizer",
        "dynamics",
        steps=steps,
        num_clips=config.num_clips,
        idm_steps=config.idm_steps,
        seed=config.seed,
    )
    name: Part = "controllability"
    yield Job(name, name, cache_key, make, lambda m, r: m[name].update(r))


def imitation_jobs(session: Session, config: Config) -> Iterator[Job]:
    """Accuracy of the controllers' actions on held-out frames, where actions are codes."""
    if session.dataset.actions.kind != "discrete":
        return

    def make() -> dict[str, Any]:
        policies: dict[str, Any] = {**session.controllers}
        policies |= marginal_baselines(session.train_dataset)
        goal_offset = 1
        if isinstance(session.goal_policy, DiscreteGoalPolicy):
            policies = policies | {"goal_policy": session.goal_policy}
            longest = max(session.dataset.length(e) for e in session.dataset.episodes("test"))
            goal_offset = min(session.goal_policy.max_goal_offset, longest - 1)
        frames, seed = config.imitation_frames, config.seed
        return imitation(session.world, policies, session.clips(1 + goal_offset), frames, seed=seed)

    controllers = ("actor_critic", "bc", "goal_policy")
    cache_key = session.cache_key(
        *session.embedding_stages, *controllers, frames=config.imitation_frames, seed=config.seed
    )
    yield Job("imitation", "imitation", cache_key, make, lambda m, r: m["imitation"].update(r))


def play_jobs(session: Session, config: Config) -> Iterator[Job]:
    """Frames per second of one stream."""
    if not session.world.has_decoder:
        return

    def make() -> dict[str, Any]:
        clip = session.clips(session.world.context + 1).batch(np.array([0]))
        actions = clip.actions[0]
        return measure_play(
            session.world, clip.frames[0, :-1], actions, num_steps=config.play_frames
        )

    cache_key = session.cache_key(
        "tokenizer", "dynamics", frames=config.play_frames, device=str(session.device),
        kernels=session.kernels,
    )  # fmt: skip
    yield Job("play", "play", cache_key, make, lambda m, r: m["play"].update(r), alone=True)
