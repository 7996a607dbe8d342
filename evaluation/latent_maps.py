"""The maps between latent and true actions that an evaluation uses, learned where they are not
there."""

from __future__ import annotations

from typing import Any

from evaluation.evaluate_config import Config
from evaluation.readers.label_budget import cached_action_map
from evaluation.session import Session
from models.action_map import ActionMap


def map_settings(session: Session, config: Config) -> dict[str, Any]:
    """What figures depend on where true actions are taken through a map; empty elsewhere."""
    if not session.world.infers_actions:
        return {}
    return {"labels": config.planner_labels, "map_seed": config.seed}


def action_map_of(session: Session, budget: int, seed: int) -> ActionMap | None:
    """Give the map of a run from `budget` labeled steps; None where its world infers no actions, or
    the data has no true ones."""
    if not session.world.infers_actions:
        return None
    fingerprint = session.fingerprints["dynamics"]
    data = session.train_dataset
    return cached_action_map(session.run, session.world, data, budget, fingerprint, seed)
