"""What is measured of the task in the simulator: a job for each policy, all from the same seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data.io.messages import command
from data.pusht.task_goal import as_pose
from evaluation.evaluate_config import Config
from evaluation.jobs import Job
from evaluation.latent_maps import action_map_of, map_settings
from evaluation.protocols import task
from evaluation.protocols.mpc import MpcPolicy
from evaluation.protocols.oracle_cem import TaskOracleCem
from evaluation.protocols.policies import Policy
from evaluation.protocols.record_video import RecordVideo
from evaluation.report.drawing import film_episodes
from evaluation.report.metrics_schema import TASK, TASK_POLICIES
from evaluation.session import Session
from models.controllers.goal_policy import GoalPolicy
from models.controllers.task_cost import TaskCost
from models.planning.best_of_n import BestOfN, Proposer
from models.planning.goal_set import GoalsInTurn
from models.planning.planner import Planner, PlannerConfig
from models.planning.task_search import blocks_differ
from pipeline.inference.load_controllers import pick_proposer

MAX_RECORDED = 48  # episodes to choose the film's from
NO_POSE = (
    "the task cost knows no pose of its goal, and so no other goal; train it again (--methods "
    "task_cost --restart), or leave out --task-goal and --random-goal"
)
BY_IMAGES = (
    "it is given images of the recordings' own goal, and no pose; leave out --task-goal and "
    "--random-goal, or choose best_of_n"
)
WITH_COST = ("best_of_n", "policy_prior", "planner", "goal_policy", "oracle_cem")


@dataclass(frozen=True)
class TaskPolicy:
    """A policy, how many episodes it plays, and its settings, which its figures depend on."""

    policy: Policy
    episodes: int
    settings: dict[str, Any] = field(default_factory=dict)


def task_jobs(session: Session, config: Config) -> Iterator[Job]:
    """Give the jobs of the task protocol, the longest first: two processes then end together."""
    if not session.is_pusht:
        return
    action_map = action_map_of(session, config.planner_labels, config.seed)
    policies = session.task_policies(config.seed, action_map)
    by_map = map_settings(session, config)
    measured = {
        name: TaskPolicy(policy, config.task_episodes, dict(by_map))
        for name, policy in policies.items()
    }
    measured["random"].settings["seed"] = config.seed
    measured |= chunk_policies(session, config) | cost_policies(session, config)
    left_out = [] if config.policies else [n for n in measured if n in config.task_without]
    if left_out and "task" in (config.protocol or config.parts):
        tqdm.write(
            f"task: {', '.join(left_out)} {'are' if left_out[1:] else 'is'} left out by "
            f"--task-without, as in a demo; give --policies {' '.join(left_out)}"
        )
    for name, each in reversed(measured.items()):
        if name not in left_out:
            yield task_job(session, config, name, each)


def chunk_policies(session: Session, config: Config) -> dict[str, TaskPolicy]:
    """Give the controllers that plan chunks for the task without search (session.CHUNK_PLANNERS).

    A planner whose config has no `receding_horizon` has its plans executed as a whole.
    """
    if not session.chunk_planners:
        return {}
    world, probe = session.world, session.task_probe
    no_goal = torch.zeros(1, 1, 1, device=world.device)
    found = {}
    for name, planner in session.chunk_planners.items():
        receding_horizon = getattr(getattr(planner, "config", None), "receding_horizon", None)
        policy = MpcPolicy(world, planner, receding_horizon, probe, no_goal, by_pose=True)
        found[name] = TaskPolicy(policy, config.task_episodes)
    return found


def cost_policies(session: Session, config: Config) -> dict[str, TaskPolicy]:
    """Give what needs the task's cost: searches that lower it, in the world and in the simulator,
    and the goal policy, which is given one of the cost's goals after the other."""
    task_cost = session.task_cost
    if task_cost is None:
        return {}
    by_pose = has_other_goals(session, config)
    if by_pose and not task_cost.frame.is_known:
        tqdm.write(f"task: {', '.join(WITH_COST)} are left out: {NO_POSE}")
        return {}
    found = {}
    left_out = config.without_episodes
    for reason in dict.fromkeys(left_out.values()):
        names = [name for name, why in left_out.items() if why == reason]
        tqdm.write(f"task: {' and '.join(names)} {'are' if names[1:] else 'is'} left out: {reason}")
    if session.has_goals and task_cost.reads_states and config.num_oracles:
        samples, iterations = config.oracle_samples, config.oracle_iterations
        oracle = TaskOracleCem(lambda: session.envs, samples, iterations, task_cost, config.seed)
        settings = {"num_samples": samples, "iterations": iterations, "seed": config.seed}
        found["oracle_cem"] = TaskPolicy(oracle, config.num_oracles, settings)
    if not session.can_plan:
        return found
    world, probe, goals = session.world, session.task_probe, task_cost.goals
    block, steps = task_cost.config.action_block, receding_horizon(config, session)
    planner_config = search_config(config, session)
    settings = asdict(planner_config) | {
        "receding_horizon": steps,
        "patience": config.task_patience,
    }
    found |= best_of_n_policy(session, config, task_cost, by_pose)
    priors: dict[str, GoalPolicy | None] = {"planner": None}
    if isinstance(session.goal_policy, GoalPolicy) and by_pose:
        tqdm.write(f"task: policy_prior and goal_policy are left out: {BY_IMAGES}")
    elif isinstance(session.goal_policy, GoalPolicy):
        offset = session.goal_policy.max_goal_offset
        in_turn = GoalsInTurn(session.goal_policy, -(-offset // session.goal_policy.action_block))
        policy = MpcPolicy(world, in_turn, None, probe, goals)
        found["goal_policy"] = TaskPolicy(policy, config.task_episodes, {"goal_steps": offset})
        if session.goal_policy.action_block == block:
            priors["policy_prior"] = session.goal_policy
        else:
            why = why_missing_in_task(session, "policy_prior", ())
            tqdm.write(f"task: policy_prior is left out: {why}")
    if not config.num_searches:
        priors = {}
    for name, prior in priors.items():
        planner = Planner(planner_config, world, policy_prior=prior, objective=task_cost)
        search = MpcPolicy(world, planner, steps, probe, goals, config.task_patience, by_pose)
        found[name] = TaskPolicy(search, config.num_searches, settings)
    return found


def best_of_n_policy(
    session: Session, config: Config, task_cost: TaskCost, by_pose: bool
) -> dict[str, TaskPolicy]:
    """Give the choice among the chunks of a policy; nothing where the run has none."""
    picked = pick_proposer(session.chunk_planners, config.best_of_n.proposer, by_pose)
    if picked is None:
        return {}
    name, policy = picked
    block = task_cost.config.action_block
    if policy.horizon < block:
        why = why_missing_in_task(session, "best_of_n", (), by_pose, config.best_of_n.proposer)
        tqdm.write(f"task: best_of_n is left out: {why}")
        return {}
    world, probe, goals = session.world, session.task_probe, task_cost.goals
    chooser = BestOfN(config.best_of_n, world, policy, task_cost, block)
    executed = policy.config.receding_horizon
    search = MpcPolicy(world, chooser, executed, probe, goals, config.task_patience, by_pose)
    settings = asdict(config.best_of_n) | {"patience": config.task_patience, "proposer": name}
    return {"best_of_n": TaskPolicy(search, config.task_episodes, settings)}


def has_other_goals(session: Session, config: Config) -> bool:
    """Whether goals are others than the one that the task's cost has by itself."""
    if config.task_goal or config.random_goal:
        return True
    home = session.task_cost.config.goal if session.task_cost else ()
    return bool(home) and not np.allclose(home, session.own_goal, atol=1e-3)


def task_goals(session: Session, config: Config, seeds: list[int]) -> np.ndarray | None:
    """Give the goals' poses of the episodes of these seeds, (E, 3); None where the task's cost, and
    the simulators, have them by themselves."""
    if config.random_goal:
        return task.random_goals(seeds)
    if not has_other_goals(session, config):
        return None
    pose = as_pose(config.task_goal) if config.task_goal else session.own_goal
    return np.tile(pose, (len(seeds), 1))


def receding_horizon(config: Config, session: Session) -> int:
    """Give the actions of a search's plan that are executed: whole blocks of the cost's."""
    block = session.task_cost.config.action_block if session.task_cost else 1
    return -(-config.task_receding_horizon // block) * block


def search_config(config: Config, session: Session) -> PlannerConfig:
    """Give the search the action block that the cost was learned for, in plans as long, or a
    little longer."""
    planner = config.task_planner
    if session.task_cost is None:
        return planner
    action_block = session.task_cost.config.action_block
    return planner.with_action_block(action_block, planner.horizon * planner.action_block)


def task_job(session: Session, config: Config, name: str, measured: TaskPolicy) -> Job:
    """Give the job of one policy."""
    policy = measured.policy
    seeds = list(range(config.task_seed, config.task_seed + measured.episodes))
    video = session.plots / f"task-{name}.mp4"

    def play() -> dict[str, Any]:
        video.unlink(missing_ok=True)  # of an earlier evaluation
        recorder = RecordVideo(MAX_RECORDED) if policy.needs_pixels else None
        coverages = task.run_task(
            policy,
            session.envs,
            seeds,
            config.task_max_steps,
            f"task, {name}",
            (recorder,) if recorder else (),
            task_goals(session, config, seeds),
        )
        result = task.summarize(coverages)
        if isinstance(policy, MpcPolicy):
            result["plan_seconds"] = float(np.median(policy.executor.plan_seconds))
        steps = task.steps_until_success(coverages)
        if recorder is not None:
            film_episodes(recorder.videos()[: len(seeds)], steps, video)
        return result | {
            "episodes": {
                "seed": seeds,
                "max_coverage": coverages.max(1),
                "end_coverage": coverages[:, -1],
                "steps": steps,
            }
        }

    def put(metrics: dict[str, Any], result: dict[str, Any]) -> None:
        row = {key: value for key, value in result.items() if key != "episodes"}
        metrics["task"][name] = dict.fromkeys(TASK) | row

    goal = {"goal": config.task_goal} if config.task_goal else {}
    goal |= {"goal": "random"} if config.random_goal else {}
    cache_key = session.cache_key(
        *session.depends_on(name, "task"),
        **goal,
        seeds=[seeds[0], seeds[-1]],
        steps=config.task_max_steps,
        num_envs=session.num_envs,
        **measured.settings,
    )
    make = partial(session.play_cached, "task", name, play)
    return Job("task", f"task-{name}", cache_key, make, put, ("task",), name)


def why_missing_in_task(
    session: Session,
    policy: str,
    protocols: tuple[str, ...],
    other_goal: bool = False,
    proposer: Proposer = "auto",
    without_episodes: Mapping[str, str] | None = None,
) -> str:
    """Say in one line why a policy is not measured in the task protocol of a run of Push-T."""
    if policy not in TASK_POLICIES:
        return "the task protocol does not have it"
    if protocols and "task" not in protocols:
        return "only the task protocol has it"
    if policy in WITH_COST and not session.can_plan:
        return "planning needs a world of continuous latents and continuous actions"
    missing: list[str] = []
    if policy in WITH_COST and session.task_cost is None:
        missing.append("task_cost")
    if policy in ("policy_prior", "goal_policy") and session.goal_policy is None:
        missing.insert(0, "goal_policy")
    if policy in ("flow_policy", "bc"):
        missing.append(policy)
    if policy == "canonical_policy":
        missing += ["task_cost", policy]
    if policy == "distilled_policy":
        imitator = (
            "canonical_policy" if "canonical_policy" in session.chunk_planners else "flow_policy"
        )
        missing += [imitator, "task_cost", policy]
    picked = pick_proposer(session.chunk_planners, proposer, other_goal)
    if policy == "best_of_n" and picked is None:
        by_default = "canonical_policy" if other_goal else "flow_policy"
        needed = by_default if proposer == "auto" else proposer
        missing = [needed, *missing] if needed == "flow_policy" else [*missing, needed]
    if policy == "actor_critic":
        missing += ["bc", "actor_critic"]
    if other_goal and session.task_cost and policy in WITH_COST:
        if not session.task_cost.frame.is_known:
            return NO_POSE
        if policy in ("policy_prior", "goal_policy"):
            return BY_IMAGES
    if without_episodes and not missing and policy in without_episodes:
        return without_episodes[policy]
    if missing:
        train = command("train_controller.py", "--run", session.run, "--methods", *missing)
        return f"no {' and no '.join(missing)} was trained; {train} trains it"
    if policy == "best_of_n" and picked and session.task_cost:
        block = session.task_cost.config.action_block
        return f"its chunks of {picked[1].horizon} actions hold no block of the cost's, {block}"
    if policy == "policy_prior" and session.goal_policy and session.task_cost:
        blocks = session.task_cost.config.action_block, session.goal_policy.action_block
        return blocks_differ(*blocks)
    return "the dataset has no states"
