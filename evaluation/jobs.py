"""What is measured on recordings: each a job, whose result belongs somewhere in the metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from evaluation.evaluate_config import Config, Part
from evaluation.measures.controllability import controllability
from evaluation.measures.imitation import agreement, habits
from evaluation.measures.open_loop import open_loop
from evaluation.measures.probe import probe
from evaluation.measures.reconstruction import measure_tokenizer
from evaluation.measures.sample_clips import spread_windows
from evaluation.measures.speed import measure_play
from evaluation.readers.fit_estimator import measure
from evaluation.report import plots
from evaluation.report.drawing import FILM, draw_films
from evaluation.session import Session
from models.controllers.discrete_goal_policy import GoalCodes


@dataclass(frozen=True)
class Job:
    """One thing to measure, saved under its name when done."""

    part: Part
    name: str
    made_from: dict[str, Any]
    measure: Callable[[], dict[str, Any]]
    put: Callable[[dict[str, Any], dict[str, Any]], None]
    """Where the result belongs in the metrics."""
    protocols: tuple[str, ...] = ()
    """The simulator's protocols that it is part of, as --protocol names them."""
    policy: str = ""
    """Who is measured in the simulator, as --policies names them."""


def jobs_on_recordings(session: Session, config: Config) -> Iterator[Job]:
    """All of them, those of the tokenizer first."""
    for jobs in (
        tokenizer_jobs, probe_jobs, open_loop_jobs, controllability_jobs, imitation_jobs, play_jobs,
    ):  # fmt: skip
        yield from jobs(session, config)


def tokenizer_jobs(session: Session, config: Config) -> Iterator[Job]:
    """Reconstruction, codebook use and flicker on held-out frames."""
    frames = session.world.context + max(config.horizons)

    def make() -> dict[str, Any]:
        clips = session.clips(frames)
        chosen, _ = spread_windows(clips, FILM // 2, config.seed)
        truth = clips.batch(chosen).frames[:, 0].to(session.device)
        tokenizer = session.world.tokenizer
        with torch.inference_mode():
            given_back = tokenizer.decode(tokenizer.encode(truth))
        plots.reconstructions(truth, given_back, session.plots / "reconstructions.png")
        return measure_tokenizer(tokenizer, clips, config.windows, session.device, config.seed)

    made_from = session.made_from(
        "tokenizer", windows=config.windows, frames=frames, seed=config.seed
    )
    yield Job("tokenizer", "tokenizer", made_from, make, lambda m, r: m["tokenizer"].update(r))


def probe_jobs(session: Session, config: Config) -> Iterator[Job]:
    """What the latents know of the simulator's state."""
    if not session.has_goals or not session.recordings.episodes("train"):
        return

    def make() -> dict[str, Any]:
        return probe(session.world, session.recordings, seed=config.seed)

    made_from = session.made_from("tokenizer", seed=config.seed)
    yield Job("probe", "probe", made_from, make, lambda m, r: m["probe"].update(r))


def open_loop_jobs(session: Session, config: Config) -> Iterator[Job]:
    """Imagination against the truth by horizon, in pictures and in states."""

    def make() -> dict[str, Any]:
        ruler = session.estimator(config.estimator_steps, config.seed)
        clips = session.clips(session.world.context + max(config.horizons))
        figures = open_loop(
            session.world,
            clips,
            config.horizons,
            windows=config.windows,
            estimator=ruler,
            intervals=True,
            seed=config.seed,
            progress=True,
        )
        if ruler is not None:
            figures["estimator_error"] = measure(ruler, session.recordings)
        draw_films(session, clips, config.horizons, config.films, config.seed)
        return figures

    made_from = session.made_from(
        "tokenizer",
        "dynamics",
        horizons=config.horizons,
        windows=config.windows,
        estimator_steps=config.estimator_steps,
        films=config.films,
        seed=config.seed,
    )
    yield Job("open_loop", "open_loop", made_from, make, lambda m, r: m["open_loop"].update(r))


def controllability_jobs(session: Session, config: Config) -> Iterator[Job]:
    """The actions that an inverse model reads from imagined films, where codes have factors."""
    if not session.recordings.actions.factors:
        return
    steps = max(config.horizons)

    def make() -> dict[str, Any]:
        inverse = session.inverse(config.inverse_steps, config.seed)
        clips = session.clips(session.world.context + steps)
        return controllability(
            session.world, clips, inverse, steps, config.windows, seed=config.seed, progress=True
        )

    made_from = session.made_from(
        "tokenizer",
        "dynamics",
        steps=steps,
        windows=config.windows,
        inverse_steps=config.inverse_steps,
        seed=config.seed,
    )
    name: Part = "controllability"
    yield Job(name, name, made_from, make, lambda m, r: m[name].update(r))


def imitation_jobs(session: Session, config: Config) -> Iterator[Job]:
    """What controllers would have done on held-out frames, where actions are codes."""
    if session.recordings.actions.kind != "discrete":
        return

    def make() -> dict[str, Any]:
        asked, ahead = session.controllers | habits(session.to_learn_from), 1
        if isinstance(session.goal_policy, GoalCodes):
            asked, ahead = asked | {"goals": session.goal_policy}, session.goal_policy.horizon
        frames, seed = config.imitation_frames, config.seed
        return agreement(session.world, asked, session.clips(1 + ahead), frames, seed=seed)

    controllers = ("controller", "cloning", "amortised")
    made_from = session.made_from(
        "tokenizer", *controllers, frames=config.imitation_frames, seed=config.seed
    )
    yield Job("imitation", "imitation", made_from, make, lambda m, r: m["imitation"].update(r))


def play_jobs(session: Session, config: Config) -> Iterator[Job]:
    """Frames a second of one stream."""

    def make() -> dict[str, Any]:
        clip = session.clips(session.world.context + 1).batch(np.array([0]))
        actions = clip.actions[0]
        return measure_play(session.world, clip.frames[0, :-1], actions, steps=config.play_frames)

    made_from = session.made_from(
        "tokenizer", "dynamics", frames=config.play_frames, device=str(session.device),
        kernels=session.kernels,
    )  # fmt: skip
    yield Job("play", "play", made_from, make, lambda m, r: m["play"].update(r))
