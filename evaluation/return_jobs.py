"""What is measured in a gymnasium environment: the return of each policy, from the same seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from data.gym.recording_policies import RandomPolicy, RecordingPolicy
from data.io.messages import command
from evaluation.evaluate_config import Config, Part
from evaluation.jobs import Job
from evaluation.latent_maps import action_map_of, map_settings
from evaluation.measures.intervals import bootstrap
from evaluation.protocols.returns import Returns, play_returns, summarize
from evaluation.report.metrics_schema import RETURNS
from evaluation.session import Session
from pipeline.recording.gym_report import episodes_by_round, returns_of, round_returns
from pipeline.recording.run_policy import RunPolicy

PART: Part = "returns"


def return_jobs(session: Session, config: Config) -> Iterator[Job]:
    """Give the jobs of the return protocol: controllers, a random policy, and who was recorded."""
    if session.env_spec is None:
        return
    action_map = action_map_of(session, config.planner_labels, config.seed)
    acting = action_map is not None or not session.world.infers_actions
    for name, controller in session.controllers.items() if acting else ():
        policy = RunPolicy(session.world, controller, action_map)
        yield return_job(session, config, name, lambda policy=policy: policy)
    actions = session.dataset.actions
    yield return_job(session, config, "random", lambda: RandomPolicy(actions))
    yield recorded_job(session)
    yield curve_job(session)


def return_job(
    session: Session, config: Config, name: str, policy: Callable[[], RecordingPolicy]
) -> Job:
    """Give the job of one policy."""
    seeds = list(range(config.task_seed, config.task_seed + config.return_episodes))

    def play() -> dict[str, Any]:
        envs = session.gym_envs(config.return_envs, config.return_max_steps)
        played = play_returns(policy(), envs, seeds, f"return, {name}")
        episodes = {"seed": seeds, "return": played.returns, "length": played.lengths}
        return summarize(played) | {"episodes": episodes}

    cache_key = session.cache_key(
        *session.depends_on(name),
        seeds=[seeds[0], seeds[-1]],
        steps=config.return_max_steps,
        num_envs=config.return_envs,  # random numbers are drawn for all of them at once
        **map_settings(session, config),
    )
    make = partial(session.play_cached, PART, name, play)
    return Job(PART, f"return-{name}", cache_key, make, partial(put, name), (PART,), name)


def recorded_job(session: Session) -> Job:
    """Give the job of the policy that recorded the last episodes: their returns, as they are."""

    def make() -> dict[str, Any]:
        dataset = session.dataset
        rounds = episodes_by_round(dataset)
        # those that a number of steps cut say nothing of a whole episode
        whole = [e for e in rounds[max(rounds)] if not dataset.notes[e].get("cut")]
        if not whole:
            return dict.fromkeys(RETURNS)
        terminated = [bool(dataset.read(e, "terminals").any()) for e in whole]
        returns, lengths = returns_of(dataset, np.array(whole)), dataset.lengths[whole] - 1
        return summarize(Returns(returns, lengths, np.array(terminated)))

    key = session.cache_key()
    return Job(PART, "return-recorded", key, make, partial(put, "recorded"), (PART,), "recorded")


def curve_job(session: Session) -> Job:
    """Give the job of the rounds of episodes: what each earned, after how many recorded steps."""

    def make() -> dict[str, Any]:
        rows = []
        for each in round_returns(session.dataset):
            count = len(each.returns)
            low, high = bootstrap(each.returns) if count > 1 else (None, None)
            mean = float(each.returns.mean()) if count else None
            row = {"policy": each.policy, "steps_before": each.first_step, "steps": each.steps}
            rows.append(row | {"return": mean, "low": low, "high": high, "n": count})
        return {"rounds": rows}

    def merge(metrics: dict[str, Any], result: dict[str, Any]) -> None:
        metrics["return_curve"] = result["rounds"]

    return Job(PART, "return-curve", session.cache_key(), make, merge, (PART,))


def put(name: str, metrics: dict[str, Any], result: dict[str, Any]) -> None:
    """Put a policy's figures into the metrics."""
    row = {key: value for key, value in result.items() if key != "episodes"}
    metrics[PART][name] = dict.fromkeys(RETURNS) | row


def why_missing_in_returns(session: Session, policy: str) -> str:
    """Say in one line why a policy is not measured in the return protocol of this run."""
    if policy in ("bc", "actor_critic"):
        train = command("train_controller.py", "--run", session.run, "--methods", "bc", policy)
        return f"no {policy} was trained; {train} trains it"
    return "the return protocol does not have it"
