"""Measure a run on held-out episodes and in the real simulator: figures, plots, a report.

Reads   RUN/shards (or --shards), RUN/tokenizer, RUN/dynamics, RUN/controller if there is one.
Writes  RUN/report: metrics.json, index.html, plots/, pairs.json; of other recordings
        RUN/report/on-NAME. Interrupted, it goes on with the part that was not done.
Try     python evaluate.py --preset debug --run runs/debug
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from tqdm import tqdm

import kernels
from data.build import cores
from evaluation import goals, plots, policies, task
from evaluation.agreement import agreement, habits
from evaluation.controllability import controllability
from evaluation.drawing import FILM, draw, draw_attempts, draw_films
from evaluation.fit_estimator import measure
from evaluation.keys import blank
from evaluation.open_loop import HORIZONS, open_loop
from evaluation.parts import Parts, write_json
from evaluation.planning import Filmed, PlansInWorld
from evaluation.probe import probe
from evaluation.report import write_report
from evaluation.session import Session
from evaluation.speed import measure_play
from evaluation.still_frames import measure_tokenizer
from evaluation.windows import spread_windows
from kernels import Kernels
from models.goal_codes import GoalCodes
from models.planner import Planner, PlannerConfig
from pipeline.cli import run

Part = Literal[
    "tokenizer", "probe", "open_loop", "controllability", "imitation", "play", "task", "goal"
]
Protocol = Literal["first-hit", "strict", "chunk-end", "far", "far-strict", "task"]
# simulators at a time, which the world model sees as one batch: at least, and of a process
PARALLEL, EACH = 100, 32
FILMED = 32  # attempts at goals that are kept to choose pictures from


@dataclass(frozen=True)
class Config:
    run: Path = Path("runs/pusht")
    """Folder of the run to measure."""
    shards: Path | None = None
    """Recordings to measure on, other than the run's own; of the same action space and size."""
    out: Path | None = None
    """Folder of the report, if not RUN/report (with --shards: RUN/report/on-NAME)."""
    parts: tuple[Part, ...] = get_args(Part)
    """What to measure; the rest keeps its figures from before, if they still hold, or is null."""
    protocol: tuple[Protocol, ...] = ()
    """Only these protocols of the simulator, and nothing else."""
    policies: tuple[str, ...] = ()
    """Only these policies in the simulator, by their names in the report; all if none is named."""
    windows: int = 256
    """Windows of held-out episodes for the tokenizer, the open loop and controllability."""
    horizons: tuple[int, ...] = HORIZONS
    """Steps ahead at which imagination is compared with the truth."""
    estimator_steps: int = 400
    """Training steps of the state estimator."""
    inverse_steps: int = 3000
    """Training steps of the inverse model, which reads actions from pairs of frames."""
    imitation_frames: int = 4000
    """Held-out frames on which controllers are compared with what was recorded."""
    films: int = 4
    """Film strips in the report."""
    play_frames: int = 120
    """Frames over which the speed of play is measured."""
    task_episodes: int = 100
    """Episodes of each policy in the task protocol, of seeds from 100000."""
    task_steps: int = task.STEPS
    """Steps of an episode at most; the protocol's figure, less is only a trial."""
    goal_pairs: int = 500
    """Pairs of start and goal for each seed."""
    pair_seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the pair lists."""
    simulator_pairs: int = 50
    """Of the pairs, how many the true simulator is planned in: the upper bound is dear."""
    simulator_samples: int = 300
    """Candidate plans of an iteration in the true simulator."""
    simulator_iterations: int = 8
    """Iterations of a plan in the true simulator."""
    planner: PlannerConfig | None = None
    """Plan in the world itself, towards every goal (--preset goals)."""
    keep: int = goals.BUDGET // 2
    """Actions of such a plan that are carried out before what is left of it is revised."""
    workers: int = 0
    """Processes of simulators; 0 is one for each core."""
    kernels: Kernels = "auto"
    """Run operations as Triton kernels, as PyTorch, or as what was measured faster on this GPU."""
    seed: int = 0
    restart: bool = False
    """Measure again what has been measured."""


def _cpu(config: Config) -> Config:
    """Give the task its protocol, and goals a trial."""
    return replace(
        config,
        horizons=HORIZONS,
        estimator_steps=250,
        inverse_steps=900,
        goal_pairs=30,
        pair_seeds=(0,),
        simulator_pairs=30,
        simulator_samples=48,
        simulator_iterations=4,
        planner=config.planner and replace(config.planner, samples=200, iterations=10, best=20),
    )


def _minecraft(config: Config) -> Config:
    return replace(config, run=Path("runs/minecraft"), horizons=(1, 2, 4, 8, 12, 16, 24, 32))


PRESETS = {
    "pusht": lambda c: replace(c, horizons=(*HORIZONS, 25)),
    "high_res": lambda c: c,
    "tokens": lambda c: c,
    "goals": lambda c: replace(c, planner=PlannerConfig()),
    "dinov2": lambda c: replace(c, planner=PlannerConfig()),
    "latent": lambda c: replace(c, planner=PlannerConfig()),
    "minecraft": _minecraft,
    "minecraft-150m": _minecraft,
    "minecraft debug": lambda c: replace(
        c, windows=48, horizons=(1, 2, 4, 8, 16), films=2, play_frames=60, inverse_steps=150
    ),
    "cpu": _cpu,
    "hour": lambda c: replace(_cpu(c), goal_pairs=100, pair_seeds=(0, 1, 2)),
    "debug": lambda c: replace(
        c,
        windows=8,
        horizons=(1, 2, 4),
        estimator_steps=4,
        inverse_steps=4,
        imitation_frames=32,
        films=1,
        play_frames=10,
        task_episodes=2,
        task_steps=6,
        goal_pairs=2,
        pair_seeds=(0,),
        simulator_pairs=2,
        simulator_samples=4,
        simulator_iterations=2,
        planner=c.planner and replace(c.planner, samples=4, iterations=2, best=2),
    ),
}


@dataclass(frozen=True)
class Job:
    """One thing to measure, saved under its name when done."""

    part: Part
    name: str
    made_from: dict[str, Any]
    measure: Callable[[], dict[str, Any]]
    put: Callable[[dict[str, Any], dict[str, Any]], None]
    """Where the result belongs in the metrics."""
    protocols: tuple[str, ...] = ()
    """The simulator's protocols that it is part of, as --protocol names them."""
    policy: str = ""
    """Who is measured in the simulator, as --policies names them."""


def main(config: Config) -> None:
    kernels.choose(config.kernels)
    needed = max(config.task_episodes, config.goal_pairs * len(config.pair_seeds), 1)
    parallel = min(needed, max(PARALLEL, EACH * (config.workers or cores())))
    with Session(config.run, config.shards, config.out, config.workers, parallel) as session:
        parts = Parts(session.folder / "parts", config.restart)
        tqdm.write(session.about())
        metrics = blank()
        jobs = [
            *tokenizer_jobs(session, config),
            *probe_jobs(session, config),
            *open_loop_jobs(session, config),
            *controllability_jobs(session, config),
            *imitation_jobs(session, config),
            *play_jobs(session, config),
            *task_jobs(session, config),
            *goal_jobs(session, config),
        ]
        check_policies(config.policies, {job.policy for job in jobs if job.policy})
        for job in tqdm(jobs, "evaluate", unit="part"):
            if _wanted(job, config):
                result = parts.do(job.name, job.made_from, job.measure)
            else:
                result = parts.saved(job.name, job.made_from)
            if result is not None:
                job.put(metrics, result)
        metrics["provenance"] = session.provenance() | {
            "seeds": {"windows": config.seed, "task": task.FIRST_SEED, "pairs": config.pair_seeds},
            "seconds": session.stage_seconds() | {"evaluate": parts.total([j.name for j in jobs])},
            "finished": time.strftime("%Y-%m-%d %H:%M"),
        }
        write_json(session.folder / "metrics.json", metrics)
        draw(session.plots, metrics)
        page = write_report(session.folder, f"{config.run.name}: evaluation", metrics)
        tqdm.write(f"evaluate: {session.folder / 'metrics.json'} and {page}")


def check_policies(asked: tuple[str, ...], known: set[str]) -> None:
    """ValueError for a name that nobody has here."""
    for name in asked:
        if name not in known:
            raise ValueError(
                f"--policies {name}: there is none of that name here, but "
                f"{', '.join(sorted(known)) or 'none at all'}"
            )


def _wanted(job: Job, config: Config) -> bool:
    if config.policies and job.policy and job.policy not in config.policies:
        return False
    if config.protocol:
        return bool(set(job.protocols) & set(config.protocol))
    return job.part in config.parts


def tokenizer_jobs(session: Session, config: Config) -> Iterator[Job]:
    """Reconstruction, codebook use and flicker on held-out frames."""
    frames = session.world.context + max(config.horizons)

    def make() -> dict[str, Any]:
        clips = session.clips(frames)
        chosen, _ = spread_windows(clips, FILM // 2, config.seed)
        truth = clips.batch(chosen).frames[:, 0].to(session.device)
        tokenizer = session.world.tokenizer
        with torch.inference_mode():
            given_back = tokenizer.decode(tokenizer.encode(truth))
        plots.reconstructions(truth, given_back, session.plots / "reconstructions.png")
        return measure_tokenizer(tokenizer, clips, config.windows, session.device, config.seed)

    made_from = session.made_from(
        "tokenizer", windows=config.windows, frames=frames, seed=config.seed
    )
    yield Job("tokenizer", "tokenizer", made_from, make, lambda m, r: m["tokenizer"].update(r))


def probe_jobs(session: Session, config: Config) -> Iterator[Job]:
    """What the latents know of the simulator's state."""
    if not session.has_goals or not session.recordings.episodes("train"):
        return

    def make() -> dict[str, Any]:
        return probe(session.world, session.recordings, seed=config.seed)

    made_from = session.made_from("tokenizer", seed=config.seed)
    yield Job("probe", "probe", made_from, make, lambda m, r: m["probe"].update(r))


def open_loop_jobs(session: Session, config: Config) -> Iterator[Job]:
    """Imagination against the truth by horizon, in pictures and in states."""

    def make() -> dict[str, Any]:
        ruler = session.estimator(config.estimator_steps, config.seed)
        clips = session.clips(session.world.context + max(config.horizons))
        figures = open_loop(
            session.world,
            clips,
            config.horizons,
            windows=config.windows,
            estimator=ruler,
            intervals=True,
            seed=config.seed,
            progress=True,
        )
        if ruler is not None:
            figures["estimator_error"] = measure(ruler, session.recordings)
        draw_films(session, clips, config.horizons, config.films, config.seed)
        return figures

    made_from = session.made_from(
        "tokenizer",
        "dynamics",
        horizons=config.horizons,
        windows=config.windows,
        estimator_steps=config.estimator_steps,
        films=config.films,
        seed=config.seed,
    )
    yield Job("open_loop", "open_loop", made_from, make, lambda m, r: m["open_loop"].update(r))


def controllability_jobs(session: Session, config: Config) -> Iterator[Job]:
    """The actions that an inverse model reads from imagined films, where codes have factors."""
    if not session.recordings.actions.factors:
        return
    steps = max(config.horizons)

    def make() -> dict[str, Any]:
        inverse = session.inverse(config.inverse_steps, config.seed)
        clips = session.clips(session.world.context + steps)
        return controllability(
            session.world, clips, inverse, steps, config.windows, seed=config.seed, progress=True
        )

    made_from = session.made_from(
        "tokenizer",
        "dynamics",
        steps=steps,
        windows=config.windows,
        inverse_steps=config.inverse_steps,
        seed=config.seed,
    )
    name: Part = "controllability"
    yield Job(name, name, made_from, make, lambda m, r: m[name].update(r))


def imitation_jobs(session: Session, config: Config) -> Iterator[Job]:
    """What controllers would have done on held-out frames, where actions are codes."""
    if session.recordings.actions.kind != "discrete":
        return

    def make() -> dict[str, Any]:
        asked, ahead = session.controllers | habits(session.to_learn_from), 1
        if isinstance(session.goal_policy, GoalCodes):
            asked, ahead = asked | {"goals": session.goal_policy}, session.goal_policy.horizon
        frames, seed = config.imitation_frames, config.seed
        return agreement(session.world, asked, session.clips(1 + ahead), frames, seed=seed)

    controllers = ("controller", "cloning", "amortised")
    made_from = session.made_from(
        "tokenizer", *controllers, frames=config.imitation_frames, seed=config.seed
    )
    yield Job("imitation", "imitation", made_from, make, lambda m, r: m["imitation"].update(r))


def play_jobs(session: Session, config: Config) -> Iterator[Job]:
    """Frames a second of one stream."""

    def make() -> dict[str, Any]:
        clip = session.clips(session.world.context + 1).batch(np.array([0]))
        actions = clip.actions[0]
        return measure_play(session.world, clip.frames[0, :-1], actions, steps=config.play_frames)

    made_from = session.made_from(
        "tokenizer", "dynamics", frames=config.play_frames, device=str(session.device)
    )
    yield Job("play", "play", made_from, make, lambda m, r: m["play"].update(r))


def task_jobs(session: Session, config: Config) -> Iterator[Job]:
    """The task protocol, every policy from the same seeds."""
    if not session.is_pusht:
        return
    seeds = list(range(task.FIRST_SEED, task.FIRST_SEED + config.task_episodes))
    for name, policy in session.task_policies(config.seed).items():

        def make(name: str = name, policy: policies.Policy = policy) -> dict[str, Any]:
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
    """What finds ways in imagination: a search, the controller for goals, a search that begins from
    it and plans as far as the goal is away."""
    if config.planner is None:
        return {}
    world, at_once = session.world, session.goal_policy
    hand = session.hand if world.actions.pointer else None
    found = {"planner": PlansInWorld(world, Planner(config.planner, world), config.keep, hand)}
    if at_once is not None:
        found["amortised"] = PlansInWorld(world, at_once, at_once.legs * at_once.leg, hand)
        # legs are the controller's, whatever the search alone has
        leg, keep = at_once.leg, -(-config.keep // at_once.leg) * at_once.leg
        far = replace(config.planner, leg=leg, legs=-(-max(offset, keep) // leg))
        found["guided"] = PlansInWorld(world, Planner(far, world, begin=at_once), keep, hand)
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

    def make() -> dict[str, Any]:
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
        settings |= asdict(config.planner) | {"keep": config.keep}
    made_from = session.made_from(*session.depends_on(name), **settings)
    names = tuple(key.replace("_", "-") for key in wanted)
    return Job("goal", f"goal-{offset}-{name}", made_from, make, put, names, name)


if __name__ == "__main__":
    run(main, Config, PRESETS)
