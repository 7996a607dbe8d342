"""What is measured in the simulator: goal reaching, a job for each policy, next to the task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.io.messages import command
from evaluation.evaluate_config import GIVEN_GOAL, Config
from evaluation.jobs import Job
from evaluation.latent_maps import action_map_of, map_settings
from evaluation.protocols import goals, policies
from evaluation.protocols.latent_policies import LatentMpcPolicy, MappedPolicy
from evaluation.protocols.mpc import MpcPolicy
from evaluation.protocols.record_video import RecordVideo
from evaluation.report.drawing import draw_attempts
from evaluation.report.metrics_schema import (
    GIVEN_GOAL_POLICIES,
    GOAL_POLICIES,
    RETURN_POLICIES,
    TASK_POLICIES,
)
from evaluation.result_cache import write_json
from evaluation.return_jobs import return_jobs, why_missing_in_returns
from evaluation.session import Session
from evaluation.task_jobs import task_jobs, why_missing_in_task
from models.controllers.goal_policy import GoalPolicy
from models.planning.best_of_n import Proposer
from models.planning.code_planner import MAX_CODES, CodePlanner, can_search_codes
from models.planning.keypoint_distance import KeypointDistance
from models.planning.planner import Planner
from models.tokenizers.keypoints import Keypoints
from models.world import World
from pipeline.inference.load_tokenizer import load_tokenizer

MAX_RECORDED = 32  # attempts at goals to choose the report's video strips from


def jobs_in_simulator(session: Session, config: Config) -> Iterator[Job]:
    """Give all jobs that the dataset has a simulator for."""
    if config.keypoints and not session.world.infers_actions:
        raise ValueError(
            f"--keypoints {config.keypoints}: only a search over latent codes compares keypoints, "
            f"and the actions of this world are the dataset's; leave it out"
        )
    if config.keypoints and not (session.has_goals and can_search_codes(session.world)):
        raise ValueError(
            f"--keypoints {config.keypoints}: codes are searched on Push-T, from states of its "
            f"simulator in the shards, and where they are at most {MAX_CODES}; leave it out"
        )
    yield from task_jobs(session, config)
    yield from goal_jobs(session, config)
    yield from return_jobs(session, config)


def goal_jobs(session: Session, config: Config) -> Iterator[Job]:
    """Give the jobs of goal reaching: a policy plays an offset's pairs once, for all protocols."""
    if not session.has_goals:
        return
    asked = config.goal_offsets
    left_out = [offset for offset in Config.goal_offsets if offset not in asked]
    if left_out and "goal" in config.parts and not config.protocols:
        tqdm.write(
            f"goal: goals {' and '.join(map(str, left_out))} steps away are left out: "
            f"--goal-offsets is {' '.join(map(str, asked))}; give "
            f"{' '.join(map(str, sorted({*asked, *left_out})))}"
        )
    pair_lists = {}
    baselines = session.goal_policies(
        config.seed,
        config.oracle_samples,
        config.oracle_iterations,
        action_map_of(session, config.planner_labels, config.seed),
    )
    for goal_offset in sorted({protocol.goal_offset for protocol in goals.PROTOCOLS.values()}):
        pairs_by_seed = [
            goals.sample_pairs(session.dataset, goal_offset, config.goal_pairs, seed)
            for seed in config.pair_seeds
        ]
        pairs = [pair for drawn in pairs_by_seed for pair in drawn]
        pair_lists[str(goal_offset)] = goals.pairs_as_dicts(pairs)
        if not pairs:
            if goal_offset in config.goal_offsets or config.protocols:
                tqdm.write(f"goal: no held-out episode is longer than {goal_offset} steps; skipped")
            continue
        planners = mpc_policies(session, config, goal_offset)
        for name, policy in (baselines | planners).items():
            # fewer pairs, but of all seeds alike
            pairs_per_seed = (
                -(-config.oracle_pairs // len(pairs_by_seed)) if name == "oracle_cem" else None
            )
            own_pairs = [pair for drawn in pairs_by_seed for pair in drawn[:pairs_per_seed]]
            yield goal_job(session, config, goal_offset, name, policy, own_pairs)
    write_json(
        session.folder / "pairs.json", {"dataset": session.fingerprints["shards"], **pair_lists}
    )


def mpc_policies(session: Session, config: Config, goal_offset: int) -> dict[str, MpcPolicy]:
    """Give what plans in the world: a search, the goal policy, and a search with it as its policy
    prior, whose plans are as long as the goal is away."""
    if not session.can_plan:
        return latent_planners(session, config)
    world, goal_policy = session.world, session.goal_policy
    last_action_probe = session.last_action_probe if world.actions.pointer else None
    planner = Planner(config.planner, world)
    planners = {"planner": MpcPolicy(world, planner, config.receding_horizon, last_action_probe)}
    if isinstance(goal_policy, GoalPolicy):
        planners["goal_policy"] = MpcPolicy(world, goal_policy, None, last_action_probe)
        block = goal_policy.action_block
        receding_horizon = -(-config.prior_receding_horizon // block) * block
        prior_config = config.planner.with_action_block(block, max(goal_offset, receding_horizon))
        planner = Planner(prior_config, world, policy_prior=goal_policy)
        planners["policy_prior"] = MpcPolicy(world, planner, receding_horizon, last_action_probe)
    return planners


def latent_planners(session: Session, config: Config) -> dict[str, MpcPolicy]:
    """Give the search over latent codes, where a map leads from these to true actions."""
    world, action_map = session.world, action_map_of(session, config.planner_labels, config.seed)
    if action_map is None or not can_search_codes(world):
        return {}
    objective = keypoint_distance(world, Path(config.keypoints)) if config.keypoints else None
    planner = CodePlanner(config.code_planner, world, objective)
    block = config.code_planner.action_block
    # as many whole blocks as fit
    steps = max(block, min(config.receding_horizon, config.code_planner.horizon * block))
    steps = steps // block * block
    # with a patience, plans stay at their full length: few blocks are too few to become fewer
    policy = LatentMpcPolicy(world, planner, steps, patience=1, action_map=action_map)
    return {"planner": policy}


def keypoint_distance(world: World, run: Path) -> KeypointDistance:
    """Give the distance by the keypoints of a run; ValueError where it has none that fit."""
    tokenizer, _ = load_tokenizer(run, world.device)
    if not isinstance(tokenizer, Keypoints):
        raise ValueError(
            f"--keypoints {run}: its tokenizer is {type(tokenizer).__name__}; give a run that was "
            f"trained with --preset keypoints"
        )
    try:
        return KeypointDistance(world, tokenizer)
    except ValueError as problem:
        raise ValueError(f"--keypoints {run}: {problem}") from None


def why_missing(
    session: Session,
    policy: str,
    protocols: tuple[str, ...] = (),
    other_goal: bool = False,
    proposer: Proposer = "auto",
    without_episodes: Mapping[str, str] | None = None,
) -> str:
    """Say in one line why this run does not measure a policy in the simulator, or in none of
    `protocols`; other_goal: the task protocol has goals that are not the dataset's; proposer: of
    `best_of_n`; without_episodes: what the task protocol has none for, and why."""
    if policy not in {*TASK_POLICIES, *GOAL_POLICIES, *RETURN_POLICIES}:
        return "unknown"
    if session.env_spec is not None:
        return why_missing_in_returns(session, policy)
    if not session.is_pusht:
        return f"only Push-T has a simulator, and {session.dataset.folder} is another dataset"
    if protocols == (GIVEN_GOAL,) and policy not in GIVEN_GOAL_POLICIES:
        return "it is given no goal"
    if protocols == ("task",) or policy not in GOAL_POLICIES:
        return why_missing_in_task(
            session, policy, protocols, other_goal, proposer, without_episodes
        )
    if policy in ("bc", "actor_critic"):
        train = command("train_controller.py", "--run", session.run)
        return f"no controller was trained; {train} trains one"
    if policy == "planner" and session.world.infers_actions:
        return (
            f"{session.train_dataset.folder} has too few steps with true actions to map the "
            f"world's latent ones; lower --planner-labels"
        )
    if policy in ("planner", "goal_policy", "policy_prior") and not session.can_plan:
        return "planning needs a world of continuous latents and continuous actions"
    if policy in ("goal_policy", "policy_prior") and session.goal_policy is None:
        methods = ("--methods", "bc", "goal_policy")
        train = command("train_controller.py", "--run", session.run, *methods)
        return f"no goal policy was trained; {train} trains one"
    return "no held-out episode is long enough for its protocols, or has states"


def goal_job(
    session: Session,
    config: Config,
    goal_offset: int,
    name: str,
    policy: policies.Policy,
    pairs: list[goals.StartGoal],
) -> Job:
    """Give the job of one policy, for all protocols of an offset."""
    protocols = {key: p for key, p in goals.PROTOCOLS.items() if p.goal_offset == goal_offset}

    def play() -> dict[str, Any]:
        recorder = RecordVideo(min(MAX_RECORDED, len(pairs))) if name == "planner" else None
        errors = goals.run_pairs(
            policy,
            session.envs,
            session.dataset,
            pairs,
            goals.at_offset(goal_offset).budget,
            f"goal +{goal_offset}, {name}",
            (recorder,) if recorder else (),
        )
        results = {key: goals.summarize(p.success(errors), pairs) for key, p in protocols.items()}
        if isinstance(policy, MpcPolicy):
            for row in results.values():
                row["plan_seconds"] = float(np.median(policy.executor.plan_seconds))
        if recorder is not None:
            path = session.plots / f"goal-{goal_offset}-videos.png"
            draw_attempts(recorder.videos(), goals.first_hit(errors), path)
        return results

    def put(metrics: dict[str, Any], result: dict[str, Any]) -> None:
        for key, row in result.items():
            metrics["goal"][key][name] = row

    settings: dict[str, Any] = {
        "pairs": goals.pairs_as_dicts(pairs),
        "budget": goals.at_offset(goal_offset).budget,
        "num_envs": session.num_envs,  # random numbers are drawn for all of them at once
    }
    if name == "random":
        settings |= {"seed": config.seed}
    if name == "oracle_cem":
        settings |= {
            "seed": config.seed,
            "num_samples": config.oracle_samples,
            "iterations": config.oracle_iterations,
        }
    if name in ("planner", "policy_prior"):
        receding_horizon = (
            config.receding_horizon if name == "planner" else config.prior_receding_horizon
        )
        settings |= asdict(config.planner) | {"receding_horizon": receding_horizon}
    if session.world.infers_actions and isinstance(policy, LatentMpcPolicy | MappedPolicy):
        settings |= map_settings(session, config) | asdict(config.code_planner) | {"latent": True}
        if config.keypoints:
            settings["keypoints"] = load_tokenizer(Path(config.keypoints))[1]["fingerprint"]
    cache_key = session.cache_key(*session.depends_on(name), **settings)
    protocol_names = tuple(protocols)
    make = partial(session.play_cached, f"goal-{goal_offset}", name, play)
    return Job(
        "goal",
        f"goal-{goal_offset}-{name}",
        cache_key,
        make,
        put,
        protocol_names,
        name,
        goal_offset not in config.goal_offsets,
    )
