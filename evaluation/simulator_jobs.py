"""What is measured in the simulator: the task and goal reaching, each policy a job."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from evaluation.evaluate_config import Config
from evaluation.jobs import Job
from evaluation.protocols import goals, policies, task
from evaluation.protocols.mpc import Filmed, PlansInWorld
from evaluation.report.drawing import draw_attempts
from evaluation.result_cache import write_json
from evaluation.session import Session
from models.controllers.planner import Planner

FILMED = 32  # attempts at goals that are kept to choose pictures from


def jobs_in_simulator(session: Session, config: Config) -> Iterator[Job]:
    """All of them, as far as the recordings' world has them."""
    yield from task_jobs(session, config)
    yield from goal_jobs(session, config)


def task_jobs(session: Session, config: Config) -> Iterator[Job]:
    """The task protocol, every policy from the same seeds."""
    if not session.is_pusht:
        return
    seeds = list(range(task.FIRST_SEED, task.FIRST_SEED + config.task_episodes))
    for name, policy in session.task_policies(config.seed).items():

        def play(name: str = name, policy: policies.Policy = policy) -> dict[str, Any]:
            best = task.run_task(policy, session.pool, seeds, config.task_steps, f"task, {name}")
            return task.summary(best) | {"highest_coverage": best.tolist()}

        def put(metrics: dict[str, Any], result: dict[str, Any], name: str = name) -> None:
            metrics["task"][name] = {k: v for k, v in result.items() if k != "highest_coverage"}

        made_from = session.made_from(
            *session.depends_on(name),
            seeds=[seeds[0], seeds[-1]],
            steps=config.task_steps,
            simulators=session.simulators,
        )
        make = partial(session.once, "task", name, play)
        yield Job("task", f"task-{name}", made_from, make, put, ("task",), name)


def goal_jobs(session: Session, config: Config) -> Iterator[Job]:
    """Goal reaching: each policy plays the pairs of an offset once, for all criteria on it."""
    if not session.has_goals:
        return
    lists = {}
    policies_to_try = session.goal_policies(
        config.seed, config.simulator_samples, config.simulator_iterations
    )
    for offset in sorted({protocol.offset for protocol in goals.PROTOCOLS.values()}):
        by_seed = [
            goals.make_pairs(session.recordings, offset, config.goal_pairs, seed)
            for seed in config.pair_seeds
        ]
        pairs = [pair for drawn in by_seed for pair in drawn]
        lists[str(offset)] = goals.pair_list(pairs)
        if not pairs:
            tqdm.write(f"goal: no held-out episode is longer than {offset} steps; left out")
            continue
        in_world = plans_in_world(session, config, offset)
        for name, policy in (policies_to_try | in_world).items():
            # Evenly over the seeds, so that fewer pairs are still of all of them.
            share = -(-config.simulator_pairs // len(by_seed)) if name == "simulator" else None
            own = [pair for drawn in by_seed for pair in drawn[:share]]
            yield goal_job(session, config, offset, name, policy, own)
    write_json(
        session.folder / "pairs.json", {"recordings": session.fingerprints["shards"], **lists}
    )


def plans_in_world(session: Session, config: Config, offset: int) -> dict[str, policies.Policy]:
    """What finds ways in imagination: a search, the controller for goals, a search that it guides,
    as far as the goal is away."""
    if config.planner is None:
        return {}
    world, at_once = session.world, session.goal_policy
    hand = session.hand if world.actions.pointer else None
    found = {"planner": PlansInWorld(world, Planner(config.planner, world), config.keep, hand)}
    if at_once is not None:
        found["amortised"] = PlansInWorld(world, at_once, at_once.legs * at_once.leg, hand)
        keep = -(-config.guided_keep // at_once.leg) * at_once.leg
        far = config.planner.guided(at_once.leg, max(offset, keep))
        found["guided"] = PlansInWorld(world, Planner(far, world, guide=at_once), keep, hand)
    return dict(found)


def goal_job(
    session: Session,
    config: Config,
    offset: int,
    name: str,
    policy: policies.Policy,
    pairs: list[goals.Pair],
) -> Job:
    wanted = {key: p for key, p in goals.PROTOCOLS.items() if p.offset == offset}

    def play() -> dict[str, Any]:
        filmed = Filmed(policy, min(FILMED, len(pairs))) if name == "planner" else None
        errors = goals.run_pairs(
            filmed or policy, session.pool, session.recordings, pairs, name=f"+{offset}, {name}"
        )
        found = {key: goals.summary(p.reached(errors), pairs) for key, p in wanted.items()}
        if isinstance(policy, PlansInWorld):
            for row in found.values():
                row["seconds_of_a_plan"] = float(np.median(policy.seconds))
        if filmed is not None:
            path = session.plots / f"goal-{offset}-films.png"
            draw_attempts(filmed.films(), goals.first_hit(errors), path)
        return found

    def put(metrics: dict[str, Any], result: dict[str, Any]) -> None:
        for key, row in result.items():
            metrics["goal"][key][name] = row

    settings: dict[str, Any] = {
        "pairs": goals.pair_list(pairs),
        "budget": goals.BUDGET,
        "simulators": session.simulators,  # what draws, draws for all of them at once
    }
    if name == "simulator":
        settings |= {"samples": config.simulator_samples, "iterations": config.simulator_iterations}
    if name in ("planner", "guided"):
        assert config.planner is not None
        keep = config.keep if name == "planner" else config.guided_keep
        settings |= asdict(config.planner) | {"keep": keep}
    made_from = session.made_from(*session.depends_on(name), **settings)
    names = tuple(key.replace("_", "-") for key in wanted)
    make = partial(session.once, f"goal-{offset}", name, play)
    return Job("goal", f"goal-{offset}-{name}", made_from, make, put, names, name)
