"""What is measured of a world's rollouts where its environment is known, or earns and ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from data.gym.branching import BranchingEnv
from evaluation.evaluate_config import Config
from evaluation.jobs import Job
from evaluation.measures.counterfactuals import NotRepeatable, choose_starts, counterfactuals
from evaluation.measures.event_prediction import event_prediction
from evaluation.session import Session


def environment_jobs(session: Session, config: Config) -> Iterator[Job]:
    """Give the jobs of a gymnasium dataset: events along rollouts, and actions not taken."""
    if session.env_spec is not None:
        yield from event_jobs(session, config)
        yield from counterfactual_jobs(session, config)


def event_jobs(session: Session, config: Config) -> Iterator[Job]:
    """Rewards and true ends at their very step, where the world learned to predict them."""
    if not session.world.has_rewards:
        return
    steps = max(config.horizons)

    def make() -> dict[str, Any]:
        return event_prediction(
            session.world, session.dataset, "test", steps, config.num_clips, config.seed
        )

    key = session.cache_key("dynamics", steps=steps, num_clips=config.num_clips, seed=config.seed)
    yield Job("events", "events", key, make, lambda m, r: m["events"].update(r))


def counterfactual_jobs(session: Session, config: Config) -> Iterator[Job]:
    """Frames that other actions lead to, in the environment and in the world."""
    spec, dataset = session.env_spec, session.dataset
    has_seeds = any(dataset.notes[e].get("seed") is not None for e in dataset.episodes("test"))
    if spec is None or not has_seeds or not session.world.has_decoder:
        return
    name = "counterfactuals"

    def make() -> dict[str, Any]:
        steps, context = max(config.horizons), session.world.context
        starts = choose_starts(dataset, "test", context, steps, config.num_clips, config.seed)
        env = BranchingEnv(spec)
        try:
            return counterfactuals(
                session.world, dataset, env, starts, config.horizons, config.seed
            )
        except NotRepeatable as error:
            return {"left_out": str(error)}
        finally:
            env.close()

    def merge(metrics: dict[str, Any], result: dict[str, Any]) -> None:
        metrics[name].update(result)
        if result.get("left_out"):
            tqdm.write(f"evaluate: {name} are left out: {result['left_out']}")

    key = session.cache_key(
        "tokenizer", "dynamics", horizons=config.horizons, num_clips=config.num_clips,
        seed=config.seed,
    )  # fmt: skip
    yield Job(name, name, key, make, merge)
