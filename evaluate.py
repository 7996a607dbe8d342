"""Measure a run on held-out episodes and in the real simulator: metrics, plots, a report.

Reads   RUN/shards (or --shards), RUN/tokenizer, RUN/dynamics, RUN/controller if there is one.
Writes  RUN/report: metrics.json, index.html, plots/, pairs.json; of another dataset
        RUN/report/on-NAME. Interrupted, it resumes with the part that was not finished.
Try     python evaluate.py --run runs/pusht
"""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):  # a script, or a worker process of one
    from pipeline.startup import start

    start(__name__)

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch
from tqdm import tqdm

from data.shards.build_shards import available_cpus
from evaluation.environment_jobs import environment_jobs
from evaluation.evaluate_config import Config
from evaluation.given_goal_jobs import given_goal_jobs
from evaluation.jobs import Job, jobs_on_dataset
from evaluation.latent_action_jobs import latent_action_jobs
from evaluation.part_log import PartLog
from evaluation.provenance import provenance, stage_seconds
from evaluation.report.drawing import draw_plots
from evaluation.report.metrics_schema import empty_metrics
from evaluation.report.page import write_report
from evaluation.result_cache import ResultCache, write_json
from evaluation.session import Session
from evaluation.simulator_jobs import jobs_in_simulator, why_missing
from evaluation.task_jobs import has_other_goals, receding_horizon, search_config
from pipeline.device import set_device
from pipeline.side_by_side import SideBySide, Work

# simulators at a time, which the world model sees as one batch: at least, and per process
MIN_SIMULATORS, SIMULATORS_PER_PROCESS = 100, 32
MAX_PROCESSES = 8  # there are few long parts
# flags that change no figure
PLACES = ("shards", "out", "num_workers", "num_processes", "device", "kernels", "live", "restart")
SELECTIONS = ("parts", "protocol", "policies")


def main(config: Config) -> None:
    set_device(config.device, config.kernels)
    beside = SideBySide(open_parts, config, config.num_processes, MAX_PROCESSES)
    with beside, opened(config, beside.count) as session:
        cache = ResultCache(session.folder / "parts", config.restart)
        for line in session.describe():
            tqdm.write(line)
        config = within_episodes(config, session)
        metrics = empty_metrics()
        jobs = all_jobs(session, config)
        check_protocols(session, config, jobs)
        check_policies(session, config, jobs)
        selected = {job.name: job for job in jobs if is_selected(job, config)}
        log = PartLog(session.folder, list(selected))
        progress = tqdm(total=len(selected), desc="evaluate", unit="part")

        def measure(name: str) -> None:
            cache.get_or_compute(name, selected[name].cache_key, selected[name].measure)

        def finish(name: str, printed: str = "") -> None:
            if printed:
                tqdm.write(printed)
            log.done(name, cache.load(name, selected[name].cache_key) or {})
            progress.update()

        with progress:
            for name, printed in beside.share(groups_of(session, selected), measure):
                finish(name, printed)
            for name in [name for name, job in selected.items() if job.alone]:
                measure(name)
                finish(name)
        for job in jobs:
            result = cache.load(job.name, job.cache_key)
            if result is not None:
                job.merge(metrics, result)
        metrics["provenance"] = provenance(session) | {
            "seeds": {"clips": config.seed, "task": config.task_seed, "pairs": config.pair_seeds},
            "task_max_steps": config.task_max_steps,
            "return_max_steps": config.return_max_steps,
            "environment": None if session.env_spec is None else session.env_spec.id,
            "given_goal": list(config.goal) or None,
            "task_goal": "random"
            if config.random_goal
            else config.task_goal or session.dataset.description.get("goal"),
            "seconds": stage_seconds(config.run)
            | {"evaluate": cache.total_seconds([j.name for j in jobs])},
            "search": {
                "planner": asdict(config.planner),
                "code_planner": asdict(config.code_planner),
                "planner_labels": config.planner_labels,
                "receding_horizon": config.receding_horizon,
                "prior_receding_horizon": config.prior_receding_horizon,
                "task_planner": asdict(search_config(config, session)),
                "task_receding_horizon": receding_horizon(config, session),
                "task_patience": config.task_patience,
                "oracle": [config.oracle_samples, config.oracle_iterations],
            },
            "flags": flags_of(config),
            "settings": settings_of(session),
            "finished": time.strftime("%Y-%m-%d %H:%M"),
        }
        write_json(session.folder / "metrics.json", metrics)
        draw_plots(session.plots, metrics)
        report_path = write_report(session.folder, f"{config.run.name}: evaluation", metrics)
        tqdm.write(f"evaluate: {session.folder / 'metrics.json'} and {report_path}")


def opened(config: Config, count: int = 1, is_first: bool = True) -> Session:
    """Open what is measured, in one of `count` processes."""
    num_episodes = max(config.num_seeds, config.goal_pairs * len(config.pair_seeds))
    num_workers = config.num_workers or available_cpus()
    num_envs = min(num_episodes, max(MIN_SIMULATORS, SIMULATORS_PER_PROCESS * num_workers))
    return Session(
        config.run,
        config.shards,
        config.out,
        max(1, num_workers // count),
        num_envs,
        config.compile,
        is_first,
    )


@contextmanager
def open_parts(config: Config) -> Iterator[Work]:
    """Open what is measured in a process that is not the first."""
    set_device(config.device, config.kernels)
    count = max(1, available_cpus() // torch.get_num_threads())
    with opened(config, count, is_first=False) as session:
        cache = ResultCache(session.folder / "parts", config.restart)
        jobs = {job.name: job for job in all_jobs(session, within_episodes(config, session))}
        yield lambda name: cache.get_or_compute(name, jobs[name].cache_key, jobs[name].measure)


def all_jobs(session: Session, config: Config) -> list[Job]:
    """Give all that can be measured."""
    return [
        *jobs_on_dataset(session, config),
        *environment_jobs(session, config),
        *latent_action_jobs(session, config),
        *jobs_in_simulator(session, config),
        *given_goal_jobs(session, config),
    ]


def groups_of(session: Session, jobs: dict[str, Job]) -> list[list[str]]:
    """Group the names of jobs that one process measures: those of policies that act alike."""
    groups: dict[str, list[str]] = {}
    for name, job in jobs.items():
        if not job.alone:
            played = name.removesuffix(job.policy) + session.played_as(job.policy)
            groups.setdefault(played, []).append(name)
    return list(groups.values())


def within_episodes(config: Config, session: Session) -> Config:
    """Leave out horizons that no held-out episode is long enough for, and say so."""
    horizons = session.horizons(config.horizons)
    if horizons != config.horizons:
        longest = max(session.dataset.length(e) for e in session.dataset.episodes("test"))
        tqdm.write(
            f"evaluate: horizons {' '.join(map(str, horizons))}: the longest held-out episode has "
            f"{longest} frames, of which {session.world.context} are the world's context"
        )
    return replace(config, horizons=horizons)


def check_protocols(session: Session, config: Config, jobs: list[Job]) -> None:
    """Raise ValueError for a protocol that nothing of this dataset is measured by."""
    known = {name for job in jobs for name in job.protocols}
    for name in config.protocols:
        if name not in known:
            of = session.env_spec.id if session.env_spec else session.dataset.description["source"]
            raise ValueError(
                f"--protocol {name}: {session.dataset.folder} is of {of}, which it is not for, or "
                f"no held-out episode is long enough; choose from "
                f"{', '.join(sorted(known)) or 'none'}"
            )


def check_policies(session: Session, config: Config, jobs: list[Job]) -> None:
    """Raise ValueError for the first policy that this run does not measure, with the reason."""
    protocols = set(config.protocols)
    known = {
        job.policy
        for job in jobs
        if job.policy and (not protocols or protocols & set(job.protocols))
    }
    for name in config.policies:
        if name not in known:
            others, proposer = has_other_goals(session, config), config.best_of_n.proposer
            left_out = config.without_episodes
            reason = why_missing(session, name, config.protocols, others, proposer, left_out)
            raise ValueError(
                f"--policies {name}: {reason}; choose from {', '.join(sorted(known)) or 'none'}"
            )


def flags_of(config: Config) -> list[str]:
    """Give the flags that measure the same again, but for those that say where, and which parts."""
    from pipeline.flags import flags_between
    from pipeline.presets import apply, remembered

    base = apply(Config(), "evaluate", remembered(config.run) or [])
    return flags_between(base, config, leave_out=("run", *PLACES, *SELECTIONS))


def settings_of(session: Session) -> dict[str, dict[str, Any]]:
    """Give what each stage, and each policy, was trained with: its method's settings, and the
    training's."""
    return {
        name: {key: facts.get(key) for key in ("config", "train")}
        for name, facts in session.checkpoints.items()
        if facts
    }


def is_selected(job: Job, config: Config) -> bool:
    """Whether a job is one of those that are asked for."""
    if config.policies and job.policy and job.policy not in config.policies:
        return False
    if config.protocols:
        return bool(set(job.protocols) & set(config.protocols))
    return job.part in config.parts and not job.on_request


if __name__ == "__main__":
    from pipeline.cli import run_cli

    run_cli(main, Config, "evaluate")
