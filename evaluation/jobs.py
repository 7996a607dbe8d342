"""What is measured on recordings: each a job, whose result belongs somewhere in the metrics."""

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
from evaluation.measures.sample_clips import sample_clips
from evaluation.measures.speed import measure_play
from evaluation.readers.fit_estimator import measure_estimator
from evaluation.report import plots
from evaluation.report.drawing import MAX_FRAMES, draw_videos
from evaluation.session import Session
from models.controllers.discrete_goal_policy import DiscreteGoalPolicy


@dataclass(frozen=True)
class Job:
    """One thing to measure, saved under its name when done."""

    part: Part
    name: str
    cache_key: dict[str, Any]
    measure_estimator: Callable[[], dict[str, Any]]
    merge: Callable[[dict[str, Any], dict[str, Any]], None]
    """Where the result belongs in the metrics."""
    protocols: tuple[str, ...] = ()
    """The simulator's protocols that it is part of, as --protocol names them."""
    policy: str = ""
    """Who is measured in the simulator, as --policies names them."""


def jobs_on_dataset(session: Session, config: Config) -> Iterator[Job]:
    """All of them, those of the tokenizer first."""
    for jobs in (
        tokenizer_jobs, probe_jobs, open_loop_jobs, controllability_jobs, imitation_jobs, play_jobs,
    ):  # fmt: skip
        yield from jobs(session, config)


def tokenizer_jobs(session: Session, config: Config) -> Iterator[Job]:
    """Reconstruction, codebook use and flicker on held-out frames."""
    clip_length = session.world.context + max(config.horizons)

    def make() -> dict[str, Any]:
        clips = session.clips(clip_length)
        indices, _ = sample_clips(clips, MAX_FRAMES // 2, config.seed)
        truth = clips.batch(indices).frames[:, 0].to(session.device)
        tokenizer = session.world.tokenizer
        with torch.inference_mode():
            reconstructed = tokenizer.decode(tokenizer.encode(truth))
        plots.draw_reconstructions(truth, reconstructed, session.plots / "reconstructions.png")
        return measure_tokenizer(tokenizer, clips, config.num_clips, session.device, config.seed)

    cache_key = session.cache_key(
        "tokenizer", windows=config.num_clips, frames=clip_length, seed=config.seed
    )
    yield Job("tokenizer", "tokenizer", cache_key, make, lambda m, r: m["tokenizer"].update(r))


def probe_jobs(session: Session, config: Config) -> Iterator[Job]:
    """What the latents know of the simulator's state."""
    if not session.has_goals or not session.dataset.episodes("train"):
        return

    def make() -> dict[str, Any]:
        return probe(session.world, session.dataset, seed=config.seed)

    cache_key = session.cache_key("tokenizer", seed=config.seed)
    yield Job("probe", "probe", cache_key, make, lambda m, r: m["probe"].update(r))


def open_loop_jobs(session: Session, config: Config) -> Iterator[Job]:
    """Imagination against the truth by horizon, in pictures and in states."""

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
        windows=config.num_clips,
        estimator_steps=config.estimator_steps,
        films=config.num_videos,
        seed=config.seed,
    )
    yield Job("open_loop", "open_loop", cache_key, make, lambda m, r: m["open_loop"].update(r))


def controllability_jobs(session: Session, config: Config) -> Iterator[Job]:
    """The actions that an inverse model reads from imagined films, where codes have factors."""
    if not session.dataset.actions.factors:
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
        windows=config.num_clips,
        idm_steps=config.idm_steps,
        seed=config.seed,
    )
    name: Part = "controllability"
    yield Job(name, name, cache_key, make, lambda m, r: m[name].update(r))


def imitation_jobs(session: Session, config: Config) -> Iterator[Job]:
    """What controllers would have done on held-out frames, where actions are codes."""
    if session.dataset.actions.kind != "discrete":
        return

    def make() -> dict[str, Any]:
        policies, goal_offset = session.controllers | marginal_baselines(session.train_dataset), 1
        if isinstance(session.goal_policy, DiscreteGoalPolicy):
            policies, goal_offset = (
                policies | {"goals": session.goal_policy},
                session.goal_policy.max_goal_offset,
            )
        frames, seed = config.imitation_frames, config.seed
        return imitation(session.world, policies, session.clips(1 + goal_offset), frames, seed=seed)

    controllers = ("controller", "cloning", "amortised")
    cache_key = session.cache_key(
        "tokenizer", *controllers, frames=config.imitation_frames, seed=config.seed
    )
    yield Job("imitation", "imitation", cache_key, make, lambda m, r: m["imitation"].update(r))


def play_jobs(session: Session, config: Config) -> Iterator[Job]:
    """Frames a second of one stream."""

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
    yield Job("play", "play", cache_key, make, lambda m, r: m["play"].update(r))
