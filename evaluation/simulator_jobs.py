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
from evaluation.protocols.mpc import MpcPolicy, RecordVideo
from evaluation.report.drawing import draw_attempts
from evaluation.result_cache import write_json
from evaluation.session import Session
from models.controllers.planner import Planner

MAX_RECORDED = 32  # attempts at goals that are kept to choose pictures from


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
            max_coverage = task.run_task(
                policy, session.envs, seeds, config.task_max_steps, f"task, {name}"
            )
            return task.summarize(max_coverage) | {"highest_coverage": max_coverage.tolist()}

        def put(metrics: dict[str, Any], result: dict[str, Any], name: str = name) -> None:
            metrics["task"][name] = {k: v for k, v in result.items() if k != "highest_coverage"}

        cache_key = session.cache_key(
            *session.depends_on(name),
            seeds=[seeds[0], seeds[-1]],
            steps=config.task_max_steps,
            simulators=session.num_envs,
        )
        make = partial(session.play_cached, "task", name, play)
        yield Job("task", f"task-{name}", cache_key, make, put, ("task",), name)


def goal_jobs(session: Session, config: Config) -> Iterator[Job]:
    """Goal reaching: each policy plays the pairs of an offset once, for all criteria on it."""
    if not session.has_goals:
        return
    pair_lists = {}
    baselines = session.goal_policies(config.seed, config.oracle_samples, config.oracle_iterations)
    for goal_offset in sorted({protocol.goal_offset for protocol in goals.PROTOCOLS.values()}):
        pairs_by_seed = [
            goals.sample_pairs(session.dataset, goal_offset, config.goal_pairs, seed)
            for seed in config.pair_seeds
        ]
        pairs = [pair for drawn in pairs_by_seed for pair in drawn]
        pair_lists[str(goal_offset)] = goals.pairs_as_dicts(pairs)
        if not pairs:
            tqdm.write(f"goal: no held-out episode is longer than {goal_offset} steps; left out")
            continue
        planners = mpc_policies(session, config, goal_offset)
        for name, policy in (baselines | planners).items():
            # Evenly over the seeds, so that fewer pairs are still of all of them.
            pairs_per_seed = (
                -(-config.oracle_pairs // len(pairs_by_seed)) if name == "simulator" else None
            )
            own_pairs = [pair for drawn in pairs_by_seed for pair in drawn[:pairs_per_seed]]
            yield goal_job(session, config, goal_offset, name, policy, own_pairs)
    write_json(
        session.folder / "pairs.json", {"recordings": session.fingerprints["shards"], **pair_lists}
    )


def mpc_policies(session: Session, config: Config, goal_offset: int) -> dict[str, policies.Policy]:
    """What finds ways in imagination: a search, the controller for goals, a search that it guides,
    as far as the goal is away."""
    if config.planner is None:
        return {}
    world, goal_policy = session.world, session.goal_policy
    last_action_probe = session.last_action_probe if world.actions.pointer else None
    planners = {
        "planner": MpcPolicy(
            world, Planner(config.planner, world), config.receding_horizon, last_action_probe
        )
    }
    if goal_policy is not None:
        planners["amortised"] = MpcPolicy(
            world,
            goal_policy,
            goal_policy.max_goal_offset * goal_policy.action_block,
            last_action_probe,
        )
        receding_horizon = (
            -(-config.prior_receding_horizon // goal_policy.action_block) * goal_policy.action_block
        )
        prior_config = config.planner.with_action_block(
            goal_policy.action_block, max(goal_offset, receding_horizon)
        )
        planners["guided"] = MpcPolicy(
            world,
            Planner(prior_config, world, policy_prior=goal_policy),
            receding_horizon,
            last_action_probe,
        )
    return dict(planners)


def goal_job(
    session: Session,
    config: Config,
    goal_offset: int,
    name: str,
    policy: policies.Policy,
    pairs: list[goals.StartGoal],
) -> Job:
    protocols = {key: p for key, p in goals.PROTOCOLS.items() if p.goal_offset == goal_offset}

    def play() -> dict[str, Any]:
        recorder = RecordVideo(policy, min(MAX_RECORDED, len(pairs))) if name == "planner" else None
        errors = goals.run_pairs(
            recorder or policy, session.envs, session.dataset, pairs, name=f"+{goal_offset}, {name}"
        )
        results = {key: goals.summarize(p.success(errors), pairs) for key, p in protocols.items()}
        if isinstance(policy, MpcPolicy):
            for row in results.values():
                row["seconds_of_a_plan"] = float(np.median(policy.plan_seconds))
        if recorder is not None:
            path = session.plots / f"goal-{goal_offset}-films.png"
            draw_attempts(recorder.videos(), goals.first_hit(errors), path)
        return results

    def put(metrics: dict[str, Any], result: dict[str, Any]) -> None:
        for key, row in result.items():
            metrics["goal"][key][name] = row

    settings: dict[str, Any] = {
        "pairs": goals.pairs_as_dicts(pairs),
        "budget": goals.BUDGET,
        "simulators": session.num_envs,  # what draws, draws for all of them at once
    }
    if name == "simulator":
        settings |= {"samples": config.oracle_samples, "iterations": config.oracle_iterations}
    if name in ("planner", "guided"):
        assert config.planner is not None
        receding_horizon = (
            config.receding_horizon if name == "planner" else config.prior_receding_horizon
        )
        settings |= asdict(config.planner) | {"keep": receding_horizon}
    cache_key = session.cache_key(*session.depends_on(name), **settings)
    protocol_names = tuple(key.replace("_", "-") for key in protocols)
    make = partial(session.play_cached, f"goal-{goal_offset}", name, play)
    return Job("goal", f"goal-{goal_offset}-{name}", cache_key, make, put, protocol_names, name)
