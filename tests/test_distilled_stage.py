"""Stage 4 distills a search among the chunks of an imitator, of one that sees all from its goal,
too; evaluation measures the student, and lets it propose."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from test_task import write_run
from test_task_goal import OTHER, make_shards, measure, write_demos

import train_controller
from models.controllers.canonical_policy import CanonicalPolicy
from models.controllers.flow_policy import FlowPolicy
from models.planning.best_of_n import BestOfNConfig
from pipeline import checkpoint, presets
from pipeline.inference.load_controllers import load_distilled_policy
from pipeline.inference.load_world import load_world
from pipeline.training.controller_config import Config, Method


def config_of(run: Path, methods: tuple[Method, ...], proposer: str = "auto") -> Config:
    config = presets.apply(Config(), "controller", ["keypoints", "debug"])
    expert = replace(config.distilled_policy.expert, proposer=proposer)
    distilled = replace(config.distilled_policy, expert=expert)
    return replace(config, run=run, methods=methods, distilled_policy=distilled)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained world of one goal, its cost, and two imitators."""
    run = tmp_path_factory.mktemp("distilled")
    write_run(run, make_shards(run, demos=write_demos(run), goal=OTHER), method="keypoints")
    train_controller.main(config_of(run, ("task_cost", "flow_policy", "canonical_policy")))
    return run


@pytest.mark.parametrize("proposer", ["auto", "canonical_policy"])
def test_the_student_is_of_its_imitators_kind(run: Path, tmp_path: Path, proposer: str):
    run = Path(shutil.copytree(run, tmp_path / "run"))
    train_controller.main(config_of(run, ("distilled_policy",), proposer))
    imitator = "flow_policy" if proposer == "auto" else proposer
    saved = checkpoint.load(run / "controller" / "distilled_policy" / "best.pt", "controller")
    path = run / "controller" / imitator / "best.pt"
    assert saved[imitator]["fingerprint"] == checkpoint.load(path, "controller")["fingerprint"]
    student = load_distilled_policy(run, load_world(run))
    assert type(student) is (FlowPolicy if proposer == "auto" else CanonicalPolicy)
    policies = ("distilled_policy", "best_of_n")
    metrics = measure(run, policies=policies)
    assert all(metrics["task"][name]["n"] for name in policies)


def test_a_student_that_sees_all_from_its_goal_needs_the_cost(run: Path, tmp_path: Path):
    run = Path(shutil.copytree(run, tmp_path / "run"))
    train_controller.main(config_of(run, ("distilled_policy",), "canonical_policy"))
    (run / "controller" / "task_cost" / "best.pt").unlink()
    assert load_distilled_policy(run, load_world(run)) is None


@pytest.mark.parametrize("method", ["flow_policy", "canonical_policy"])
def test_an_imitator_goes_on_only_from_the_demonstrations_it_was_begun_with(
    run: Path, method: Method
):
    config = config_of(run, (method,))
    train_controller.main(config)  # it has ended
    begun = r"begun with flow_min_reward = 0\.1, but now it is 0\.05; --restart starts over"
    with pytest.raises(ValueError, match=begun):
        train_controller.main(replace(config, flow_min_reward=0.05))


def test_a_proposer_that_is_not_there_is_named(run: Path):
    by_student = BestOfNConfig(proposer="distilled_policy")
    with pytest.raises(ValueError, match="best_of_n: no distilled_policy was trained; .*--methods"):
        measure(run, policies=("best_of_n",), best_of_n=by_student)


def test_a_student_is_not_its_own_expert(run: Path):
    with pytest.raises(ValueError, match="its own expert gets worse; give flow_policy or canon"):
        train_controller.main(config_of(run, ("distilled_policy",), "distilled_policy"))
