"""The task protocol: figures of made-up coverages, and a whole evaluation of a tiny run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_mpc import PointWorld, observation
from torch import Tensor
from untrained_run import save, write_run

import evaluate
from data.batch import Batch
from data.pusht.scripted_episodes import ScriptedEpisodes
from data.pusht.simulator import GOAL, goal_of
from data.pusht.vector_pusht import VectorPushT
from data.ranges import MAX_SEED
from data.shards.build_shards import build
from data.shards.episode_dataset import EpisodeDataset
from evaluation import session as sessions
from evaluation.protocols import task
from evaluation.protocols.mpc import MpcPolicy
from evaluation.protocols.oracle_cem import TaskOracleCem
from evaluation.protocols.policies import Observation
from evaluation.report.metrics_schema import TASK, TASK_POLICIES
from evaluation.simulator_jobs import why_missing
from evaluation.task_jobs import cost_policies, task_jobs
from models.controllers.flow_policy import FlowPolicyConfig
from models.controllers.goal_policy import GoalPolicy
from models.controllers.policy import PolicyConfig
from models.controllers.task_cost import TaskCostConfig
from models.dynamics.dynamics import State
from models.planning.best_of_n import BestOfNConfig
from models.planning.goal_set import GoalsInTurn
from models.planning.plan import Plan
from models.registry import DataSpec, build_controller
from pipeline import checkpoint, presets
from pipeline.inference.load_world import load_world

SEED = 200_000  # nothing is tried on the protocol's own
WITH_WORLD = ("best_of_n", "policy_prior", "planner", "goal_policy", "flow_policy")


# -- figures ---------------------------------------------------------------------------------


def coverages(*episodes: list[float]) -> np.ndarray:
    return np.array([[*each, *[each[-1]] * (300 - len(each))] for each in episodes])


def test_figures_are_those_of_the_coverages():
    metrics = task.summarize(
        coverages(
            [0.0] * 4 + [0.96],  # at step 5
            [0.0] * 149 + [0.95],  # at step 150
            [0.0] * 249 + [1.0],  # at step 250
            [0.2, 0.475, 0.19],  # half of it at the highest, and a fifth at the end
        )
    )
    assert metrics["score"] == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert metrics["success"] == 0.75 and metrics["n"] == 4
    assert metrics["success_within_100"] == 0.25 and metrics["success_within_200"] == 0.5
    assert metrics["steps"] == 150
    assert metrics["end_score"] == pytest.approx((1 + 1 + 1 + 0.2) / 4)
    assert metrics["coverage"] == pytest.approx((0.96 + 0.95 + 1 + 0.475) / 4)
    assert metrics["low"] <= metrics["score"] <= metrics["high"]
    assert 0.3 < metrics["success_low"] < 0.75 < metrics["success_high"] < 0.96
    assert set(metrics) == set(TASK) - {"plan_seconds"}


def test_without_a_success_no_steps_are_known():
    metrics = task.summarize(coverages([0.1], [0.9499]))
    assert metrics["steps"] is None and metrics["success"] == 0 == metrics["success_within_200"]
    assert task.steps_until_success(coverages([0.1], [0.95])).tolist() == [0, 1]


# -- policies --------------------------------------------------------------------------------


class NoPlan:
    """Stays, and remembers the goals that it is given."""

    horizon, action_block = 1, 2

    def __init__(self) -> None:
        self.given: list[list[float]] = []

    def reset(self) -> None: ...

    def plan(self, state: State, goal: Tensor, *rest: Any) -> Plan:
        self.given.append(goal[:, 0, 0].tolist())
        return Plan(torch.zeros(len(goal), 2, 2), torch.zeros(len(goal), 2, 2), torch.zeros(0))


def test_goals_take_turns_and_an_episode_starts_with_the_first():
    planner, goals = NoPlan(), torch.tensor([0.25, 0.5, 0.75]).view(3, 1, 1).expand(3, 1, 2)
    policy = MpcPolicy(PointWorld(), GoalsInTurn(planner, 2), goals=goals)  # type: ignore[arg-type]
    for _ in range(2):
        obs = observation(np.full((2, 2), 30.0))
        policy.reset(obs, None)
        for _ in range(14):
            policy.act(obs)
    of_an_episode = [[g, g] for g in (0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 0.25)]
    assert planner.given == of_an_episode * 2


# -- a whole run -----------------------------------------------------------------------------


def add_task_cost(run: Path, seed: int = 0) -> None:
    """Write the cost of the task of a run, untrained, with scales and goals of its recordings."""
    dataset, world = EpisodeDataset(run / "shards"), load_world(run)
    goal = tuple(map(float, goal_of(dataset.description)))
    config = TaskCostConfig(dataset.state_names, goal, hidden_dim=8, num_goals=3)
    data = DataSpec(dataset.image_size, dataset.actions, world.state_spec)
    torch.manual_seed(seed)
    cost = build_controller(config, data)
    fields = {
        name: torch.from_numpy(np.concatenate([dataset.read(e, name)[:40] for e in range(3)]))
        for name in ("frames", "states", "rewards")
    }
    latents = world.embed(fields["frames"].permute(0, 3, 1, 2)).float()
    states, rewards = fields["states"][:, None], fields["rewards"][:, None]
    cost.begin(Batch(latents=latents[:, None], rewards=rewards, extra={"states": states}))
    dynamics = run / "dynamics" / "best.pt"
    parent = dynamics, checkpoint.load(dynamics, "dynamics")["fingerprint"]
    save(run / "controller" / "task_cost", "controller", cost, config, data, parent)


def add_flow_policy(run: Path) -> None:
    """Write an imitator in chunks, untrained."""
    world = load_world(run)
    config = FlowPolicyConfig(PolicyConfig(hidden_dim=8), num_layers=1, num_steps=2)
    data = DataSpec(world.image_size, world.actions, world.state_spec)
    torch.manual_seed(0)
    policy, dynamics = build_controller(config, data), run / "dynamics" / "best.pt"
    parent = dynamics, checkpoint.load(dynamics, "dynamics")["fingerprint"]
    save(run / "controller" / "flow_policy", "controller", policy, config, data, parent)


def config_of(run: Path, **changes: Any) -> evaluate.Config:
    config = presets.apply(evaluate.Config(), "evaluate", ["keypoints", "debug"])
    task_only = replace(config, run=run, num_workers=1, protocol=("task",), task_seed=SEED)
    return replace(task_only, **changes)


def measure(run: Path, **changes: Any) -> dict[str, Any]:
    evaluate.main(config_of(run, **changes))
    return json.loads((run / "report" / "metrics.json").read_text())


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without the cost of its task."""
    run = tmp_path_factory.mktemp("plain")
    build(ScriptedEpisodes(6, 32, 0), run / "shards", "", 0, 1)
    return write_run(run, EpisodeDataset(run / "shards"), method="keypoints")


@pytest.fixture(scope="module")
def task_run(tmp_path_factory: pytest.TempPathFactory, plain_run: Path) -> Path:
    run = shutil.copytree(plain_run, tmp_path_factory.mktemp("task") / "run")
    add_task_cost(run)
    add_flow_policy(run)
    return run


def test_the_task_is_measured_for_every_policy_that_a_run_has(task_run: Path):
    metrics = measure(task_run, search_episodes=1)
    assert set(metrics["task"]) == set(TASK_POLICIES)
    for name, row in metrics["task"].items():
        assert set(row) == set(TASK)
        if name in ("distilled_policy", "canonical_policy"):  # not trained here
            assert row["n"] is None
            continue
        assert row["n"] == (1 if name in ("policy_prior", "planner", "oracle_cem") else 2)
        assert 0 <= row["end_score"] <= row["score"] <= 1 and row["steps"] is None
        assert (row["plan_seconds"] is not None) == (name in WITH_WORLD)
    assert all(row["n"] is None for rows in metrics["goal"].values() for row in rows.values())
    provenance = metrics["provenance"]
    assert provenance["seeds"]["task"] == SEED and provenance["task_max_steps"] == 6
    assert provenance["search"]["task_planner"]["num_samples"] == 4
    assert provenance["fingerprints"]["task_cost"]
    page = (task_run / "report" / "index.html").read_text()
    assert "A trial of Diffusion Policy&#x27;s protocol: starts of seeds from 200000" in page
    assert "Episodes of best_of_n: failures first" in page and "data:video/mp4" in page
    saved = json.loads((task_run / "report" / "parts" / "task-policy_prior.json").read_text())
    assert saved["result"]["episodes"]["seed"] == [SEED]
    key = saved["cache_key"]
    assert key["running_weight"] == 0.5 and key["patience"] == 8 and key["horizon"] == 10


def test_the_published_protocol_is_named_on_the_page(task_run: Path):
    measure(task_run, policies=("noop",), task_seed=100_000, task_max_steps=300, task_episodes=1)
    page = (task_run / "report" / "index.html").read_text()
    assert "<p>Diffusion Policy&#x27;s protocol: starts of seeds from 100000" in page


def test_figures_are_measured_again_when_the_cost_or_the_search_changes(
    task_run: Path, capsys: pytest.CaptureFixture[str]
):
    policies = ("best_of_n", "policy_prior", "goal_policy", "noop")

    def measured(**changes: Any) -> set[str]:
        capsys.readouterr()
        measure(task_run, policies=policies, **changes)
        lines = capsys.readouterr().out.splitlines()
        return {p for p in policies if not any(x.startswith(f"task-{p}: cached") for x in lines)}

    measured()
    assert measured() == set()
    assert measured(task_patience=3) == {"best_of_n", "policy_prior"}
    measured()
    add_task_cost(task_run, seed=1)
    assert measured() == {"best_of_n", "policy_prior", "goal_policy"}


def test_every_setting_of_the_task_is_in_the_cache_keys_of_those_it_changes(task_run: Path):
    planner, searches = config_of(task_run).task_planner, {"planner", "policy_prior"}
    with evaluate.Session(task_run, None, None, 1, 2) as session:

        def cache_keys(**changes: Any) -> dict[str, dict[str, Any]]:
            jobs = task_jobs(session, config_of(task_run, **changes))
            return {job.policy: job.cache_key for job in jobs}

        def changed(**changes: Any) -> set[str]:
            now = cache_keys(**changes)
            return {name for name, cache_key in before.items() if now[name] != cache_key}

        before = cache_keys()
        assert changed(task_planner=replace(planner, prior_noise_std=0.1)) == searches
        assert changed(task_planner=replace(planner, running_weight=0.1)) == searches
        assert changed(task_receding_horizon=10) == changed(search_episodes=1) == searches
        chooser = BestOfNConfig(num_samples=3)
        assert changed(best_of_n=chooser) == {"best_of_n"}
        assert changed(oracle_episodes=2) == changed(oracle_samples=5) == {"oracle_cem"}
        assert changed(seed=1) == {"random", "oracle_cem"}
        assert changed(task_seed=SEED + 1) == changed(task_max_steps=7) == set(before)
        assert changed(task_episodes=3) == set(before) - searches - {"oracle_cem"}


def test_without_episodes_of_searches_these_are_left_out_and_it_is_said(
    task_run: Path, capsys: pytest.CaptureFixture[str]
):
    config = config_of(task_run, search_episodes=0, policies=("planner",), protocol=("task",))
    with evaluate.Session(task_run, None, None, 1, 2) as session:
        jobs = list(task_jobs(session, config))
        assert not {"planner", "policy_prior"} & {job.policy for job in jobs}
        told = "planner and policy_prior are left out: --search-episodes is 0"
        assert told in "".join(capsys.readouterr())
        with pytest.raises(ValueError, match="--policies planner: --search-episodes is 0"):
            evaluate.check_policies(session, config, jobs)
    config = config_of(task_run, oracle_episodes=0, policies=("oracle_cem",), protocol=("task",))
    with evaluate.Session(task_run, None, None, 1, 2) as session:
        jobs = list(task_jobs(session, config))
        assert "oracle_cem" not in {job.policy for job in jobs}
        assert "oracle_cem is left out: --oracle-episodes is 0" in "".join(capsys.readouterr())
        with pytest.raises(ValueError, match="--policies oracle_cem: --oracle-episodes is 0"):
            evaluate.check_policies(session, config, jobs)
    with pytest.raises(ValueError, match="--goal is measured over --search-episodes, which is 0"):
        config_of(task_run, search_episodes=0, goal=("task",))


def test_a_search_has_the_action_block_of_the_cost(task_run: Path):
    planner = replace(config_of(task_run).task_planner, action_block=4, horizon=8)
    config = config_of(task_run, task_planner=planner, task_receding_horizon=8)
    with evaluate.Session(task_run, None, None, 1, 2) as session:
        search = cost_policies(session, config)["policy_prior"]
    executor = search.policy.executor  # type: ignore[attr-defined]
    assert executor.planner.action_block == 5 and executor.planner.horizon == 7
    assert executor.receding_horizon == 10 == search.settings["receding_horizon"]


def test_a_prior_with_other_action_blocks_is_left_out_with_a_line(
    task_run: Path, capsys: pytest.CaptureFixture[str]
):
    with evaluate.Session(task_run, None, None, 1, 2) as session:
        assert isinstance(session.goal_policy, GoalPolicy)
        session.goal_policy.action_block = 3
        assert "policy_prior" not in cost_policies(session, config_of(task_run))
        reason = why_missing(session, "policy_prior", ("task",))
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f"task: policy_prior is left out: {reason}"
    assert "blocks of 5 actions, and the goal policy has blocks of 3; train both" in line
    assert "--task-cost.action-block and --goal-policy.action-block" in line


def test_a_planner_of_chunks_needs_one_line(task_run: Path, monkeypatch: pytest.MonkeyPatch):
    loaded = NoPlan()
    monkeypatch.setitem(sessions.CHUNK_PLANNERS, "flow_policy", lambda run, world: loaded)
    row = measure(task_run, policies=("flow_policy",), restart=True)["task"]["flow_policy"]
    assert row["n"] == 2 and row["plan_seconds"] >= 0
    assert len(loaded.given) == 3  # plans of two actions for six steps, whatever the goal


def test_a_policy_that_needs_the_cost_is_refused_where_none_was_trained(plain_run: Path):
    for policy, methods in {
        "planner": "task_cost",
        "policy_prior": "task_cost",
        "best_of_n": "flow_policy task_cost",
        "flow_policy": "flow_policy",
        "oracle_cem": "task_cost",
    }.items():
        with pytest.raises(ValueError, match=f"--policies {policy}: no .*--methods {methods} tra"):
            measure(plain_run, policies=(policy,))
    with pytest.raises(ValueError, match="--policies goal_agent_position: the task protocol does"):
        measure(plain_run, policies=("goal_agent_position",))
    with pytest.raises(ValueError, match="--policies scripted: only the task protocol has it"):
        measure(plain_run, policies=("scripted",), protocol=("first_hit",))
    with evaluate.Session(plain_run, None, None, 1, 2) as session:
        assert not cost_policies(session, config_of(plain_run))
        session.goal_policy = None
        assert "--methods goal_policy task_cost" in why_missing(session, "policy_prior", ("task",))


def test_seeds_and_horizons_that_do_not_fit_are_refused():
    largest = evaluate.Config(task_seed=MAX_SEED - 499)
    with pytest.raises(ValueError, match=f"--task-seed {MAX_SEED - 498} .*; give {MAX_SEED - 499}"):
        replace(largest, task_seed=MAX_SEED - 498)
    with pytest.raises(ValueError, match="--task-seed -1 is out of range"):
        replace(largest, task_seed=-1)
    with pytest.raises(ValueError, match="--task-receding-horizon 55 is longer .* 50 actions"):
        evaluate.Config(task_receding_horizon=55)


def test_the_oracle_lowers_the_cost_of_true_states():
    class BlockFromGoal:
        """Distance of the block from the goal, in pixels."""

        goal = torch.zeros(())

        def features(self, states: Tensor) -> Tensor:
            return states

        def cost(self, tracked: Tensor, goal: Tensor | None = None) -> Tensor:
            return (tracked[:, 2:4] - torch.tensor(GOAL[:2]).float()).norm(dim=1)

    start = np.array([256.0, 120.0, 256.0, 190.0, 0.0])
    with VectorPushT(1, 32, 1) as envs:
        oracle = TaskOracleCem(lambda: envs, 24, 3, BlockFromGoal())  # type: ignore[arg-type]
        envs.reset(np.arange(1), start[None], np.zeros((1, 2)))
        obs = Observation(None, start[None], np.zeros((1, 2)), np.ones(1, bool))
        oracle.reset(obs, None)
        for _ in range(30):
            states, _ = envs.step(oracle.act(obs))
            velocities = (states - obs.states)[:, :2] * 10
            obs = Observation(None, states, velocities, np.ones(1, bool))
    assert np.linalg.norm(obs.states[0, 2:4] - GOAL[:2]) < 25


def test_fewer_episodes_are_fewer_of_every_policy():
    few = evaluate.Config(task_episodes=2)
    assert few.num_searches == few.num_oracles == few.task_episodes == 2
    many = evaluate.Config(task_episodes=500)
    assert (many.num_searches, many.num_oracles) == (100, 4)
