"""What is measured of the actions that a world infers: a job, and the maps that it leaves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from evaluation.evaluate_config import Config
from evaluation.jobs import Job
from evaluation.latent_maps import action_map_of
from evaluation.measures.latent_action_measures import measure_latent_actions
from evaluation.session import Session
from models.action_map import ActionMap


def latent_action_jobs(session: Session, config: Config) -> Iterator[Job]:
    """Agreement with true actions, probes, consistency, delta-PSNR, and maps from few labels."""
    world = session.world
    if not world.infers_actions or world.actions.kind != "discrete":
        return

    def make() -> dict[str, Any]:
        return measure_latent_actions(
            world,
            session.dataset,
            session.train_dataset,
            config.num_clips,
            config.estimator_steps,
            session.estimator(config.estimator_steps, config.seed),
            action_maps(session, config),
            config.seed,
        )

    cache_key = session.cache_key(
        "tokenizer",
        "dynamics",
        num_clips=config.num_clips,
        estimator_steps=config.estimator_steps,
        label_budgets=config.label_budgets,
        seed=config.seed,
    )
    name = "latent_actions"
    yield Job(name, name, cache_key, make, lambda m, r: m[name].update(r))


def action_maps(session: Session, config: Config) -> dict[int, ActionMap]:
    """Give the maps between latent and true actions by their budget of labels, learned and saved
    where they are not there; none where the data has no true actions."""
    found = {budget: action_map_of(session, budget, config.seed) for budget in config.label_budgets}
    return {budget: each for budget, each in found.items() if each is not None}
