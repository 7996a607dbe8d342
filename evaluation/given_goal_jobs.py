"""What is measured towards a goal that is given (--goal): a job for each policy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data.pusht.task_goal import as_pose
from data.shards.identity import readable_digest
from evaluation.evaluate_config import GIVEN_GOAL, Config
from evaluation.jobs import Job
from evaluation.protocols import given_goal
from evaluation.protocols.mpc import MpcPolicy
from evaluation.protocols.policies import NoOp, Policy, Random
from evaluation.protocols.record_video import RecordVideo
from evaluation.protocols.task import steps_until_success
from evaluation.report.drawing import film_episodes
from evaluation.report.metrics_schema import GIVEN_GOAL_FIGURES
from evaluation.session import Session
from evaluation.task_jobs import has_other_goals
from models.controllers.goal_policy import GoalPolicy
from models.planning.plan import GoalDistance
from pipeline.play.goal_planners import GoalSettings, GoalSource, make_executor
from pipeline.play.goals import TASK, Goal, image_files, image_goal, task_goal

MAX_RECORDED = 12  # episodes of a film


def given_goal_jobs(session: Session, config: Config) -> Iterator[Job]:
    """Give the jobs towards --goal, baselines first; none without it."""
    if not config.goal:
        return
    if not session.is_pusht:
        raise ValueError(
            f"--goal: only Push-T has a simulator, and {session.dataset.folder} is another "
            f"dataset; leave it out, or watch play.py --goal"
        )
    goal, identity = _find_goal(session, config)
    policies: dict[str, Policy] = {
        "random": Random(session.dataset.actions, config.seed),
        "noop": NoOp(),
    } | _planners(session, config, goal)
    for name, policy in policies.items():
        yield _job(session, config, goal, identity, name, policy)


def _find_goal(session: Session, config: Config) -> tuple[Goal, list[str]]:
    """Give the goal, and what its figures depend on: the digests of its images."""
    if config.goal == (TASK,):
        if has_other_goals(session, config):
            raise ValueError(
                f"--goal task: the task cost of {session.run} is of recordings with other goals; "
                f"--protocol task gives each episode its own"
            )
        return task_goal(session.run, session.world), [TASK]
    files = image_files(config.goal)
    goal = image_goal(session.world, files, session.dataset)
    return goal, [readable_digest(file) for file in files]


def _planners(session: Session, config: Config, goal: Goal) -> dict[str, Policy]:
    """Give the planners that play has towards this goal, in the simulator."""
    if not session.can_plan:
        raise ValueError("--goal: planning needs a world of continuous latents and actions")
    sources: tuple[GoalSource, ...] = ("planner",)
    offset = 1
    if isinstance(session.goal_policy, GoalPolicy):
        sources = ("planner", "goal_policy", "policy_prior")
        offset = session.goal_policy.max_goal_offset
    settings = GoalSettings(
        config.planner,
        offset,
        config.task_planner,
        config.task_receding_horizon,
        config.task_patience,
    )
    found: dict[str, Policy] = {}
    for source in sources:
        try:
            made = make_executor(source, session.run, session.world, goal, settings)()
        except ValueError as problem:
            tqdm.write(f"goal: {source} is left out: {problem}")
            continue
        found[source] = MpcPolicy(
            session.world,
            made.planner,
            made.receding_horizon,
            session.task_probe,
            goal.latents[0],
            made.patience,
        )
    return found


def _job(
    session: Session, config: Config, goal: Goal, identity: list[str], name: str, policy: Policy
) -> Job:
    seeds = list(range(config.task_seed, config.task_seed + config.search_episodes))
    steps, pose = config.task_max_steps, _pose(session, config, goal)

    def play() -> dict[str, Any]:
        objective = goal.objective or GoalDistance(session.world)
        meter = given_goal.CostMeter(session.world, objective, goal.latents[0], len(seeds), steps)
        recorder = RecordVideo(min(MAX_RECORDED, len(seeds)))
        torch.manual_seed(config.seed)
        played = given_goal.run_given_goal(
            policy,
            session.envs,
            seeds,
            steps,
            goal.is_task,
            (meter, recorder),
            f"towards {goal.name}, {name}",
        )
        result = given_goal.summarize(meter.costs, seeds, played, pose)
        if isinstance(policy, MpcPolicy):
            result["plan_seconds"] = float(np.median(policy.executor.plan_seconds))
        solved = steps_until_success(played.coverages) * goal.is_task
        film_episodes(recorder.videos(), solved, session.plots / f"given-goal-{name}.mp4")
        return result

    def put(metrics: dict[str, Any], result: dict[str, Any]) -> None:
        metrics[GIVEN_GOAL][name] = dict.fromkeys(GIVEN_GOAL_FIGURES) | result

    settings: dict[str, Any] = {"seed": config.seed}
    if isinstance(policy, MpcPolicy):
        settings |= {
            "planner": asdict(config.task_planner),
            "receding_horizon": policy.executor.receding_horizon,
            "patience": policy.executor.patience,
        }
    depends_on = {"tokenizer", "dynamics", *session.depends_on(name)}
    cache_key = session.cache_key(
        *sorted(depends_on | ({"task_cost"} if goal.is_task else set())),
        goal=identity,
        pose=None if pose is None else pose.tolist(),
        seeds=[seeds[0], seeds[-1]],
        steps=steps,
        num_envs=session.num_envs,
        **settings,
    )
    make = partial(session.play_cached, GIVEN_GOAL, name, play)
    return Job("goal", f"{GIVEN_GOAL}-{name}", cache_key, make, put, (GIVEN_GOAL,), name)


def _pose(session: Session, config: Config, goal: Goal) -> np.ndarray | None:
    """Give the block's pose at the goal, (3,): that of --goal-pose, or the task's own."""
    if config.goal_pose:
        return as_pose(config.goal_pose)
    return session.own_goal if goal.is_task else None
