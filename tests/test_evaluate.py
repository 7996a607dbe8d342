"""The whole of evaluate.py on runs that have learned nothing: keys, nulls, going on."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from untrained_run import write_run

import evaluate
from data.build_shards import build
from data.pusht.scripted_episodes import ScriptedEpisodes
from data.shards import EpisodeDataset
from data.toy import write_toy_shards
from evaluation.protocols.mpc import MpcPolicy
from evaluation.report.metrics_schema import empty_metrics
from evaluation.simulator_jobs import mpc_policies
from models.controllers.planner import PlannerConfig
from pipeline.training.auto_compile import cpp_compiler


def measured(run: Path, **changes: Any) -> dict[str, Any]:
    config = evaluate.PRESETS["debug"](evaluate.Config(run=run, num_workers=1))
    evaluate.main(replace(config, **changes))
    return json.loads((run / "report" / "metrics.json").read_text())


def keys(tree: Any) -> Any:
    return {k: keys(v) for k, v in tree.items()} if isinstance(tree, dict) else None


@pytest.fixture(scope="module")
def pusht_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("pusht")
    build(ScriptedEpisodes(10, 64, 0), run / "shards", "", 0, 1)
    return write_run(run, EpisodeDataset(run / "shards"))


@pytest.fixture
def toy_run(tmp_path: Path) -> Path:
    write_toy_shards(tmp_path / "shards", episodes=12)
    return write_run(tmp_path, EpisodeDataset(tmp_path / "shards"))


@pytest.fixture
def keys_run(tmp_path: Path) -> Path:
    write_toy_shards(tmp_path / "shards", episodes=12, factored=True)
    return write_run(tmp_path, EpisodeDataset(tmp_path / "shards"))


def test_what_was_not_measured_is_null_and_never_absent(toy_run: Path):
    metrics = measured(toy_run, parts=("tokenizer", "play"))
    empty = empty_metrics()
    assert set(metrics) == set(empty)
    for part in ("task", "goal", "controllability", "imitation"):
        assert metrics[part] == empty[part]
    assert metrics["open_loop"] == empty["open_loop"]
    for part in ("tokenizer", "play"):
        assert set(empty[part]) <= set(metrics[part])
        null = {key for key, value in metrics[part].items() if value is None}
        # twelve episodes leave one for the test, and of one source no interval is known
        assert null <= {f"{key}_{end}" for key in metrics[part] for end in ("low", "high")}
    assert (toy_run / "report" / "index.html").exists()


def test_parts_are_added_one_by_one_and_done_once(toy_run: Path):
    first = measured(toy_run, parts=("tokenizer",))
    parts = toy_run / "report" / "parts"
    before = (parts / "tokenizer.json").read_bytes()
    (parts / "tokenizer.json").write_bytes(before.replace(b'"n": ', b'"n": 1'))  # a telltale
    second = measured(toy_run, parts=("tokenizer", "open_loop"))
    assert second["tokenizer"]["n"] == int(f"1{first['tokenizer']['n']}")  # taken, not made
    assert first["open_loop"]["psnr"] is None and len(second["open_loop"]["psnr"]) == 3
    third = measured(toy_run, parts=("tokenizer",), restart=True)
    assert third["tokenizer"] == first["tokenizer"]
    assert third["open_loop"] == second["open_loop"]


def test_pictures_are_shown_beside_their_own_figures_alone(toy_run: Path):
    plots, page = toy_run / "report" / "plots", toy_run / "report" / "index.html"
    open_loop = ("curves_pixels", "curves_states", "film-0", "film-1")

    def shown(**changes: Any) -> list[str]:
        measured(toy_run, **changes)
        return re.findall('img alt="([^"]*)"', page.read_text())

    parts = ("tokenizer", "open_loop")
    assert shown(parts=parts, films=2) == ["reconstructions", *open_loop]
    assert shown(parts=("tokenizer",), seed=5) == ["reconstructions"]
    assert shown(parts=("open_loop",), films=1) == list(open_loop[:3])
    assert shown(parts=("open_loop",), films=0) == list(open_loop[:2])
    assert not list(plots.glob("film-*.png"))


def test_another_checkpoint_makes_the_figures_anew(toy_run: Path):
    measured(toy_run, parts=("tokenizer", "play"))
    write_run(toy_run, EpisodeDataset(toy_run / "shards"), controllers=False)  # the same weights
    kept = measured(toy_run, parts=("tokenizer",))
    assert kept["play"]["frames_per_second"] is not None
    config = evaluate.PRESETS["debug"](evaluate.Config(run=toy_run))
    assert measured(toy_run, parts=("play",), windows=config.windows + 1)["tokenizer"]["n"] is None


def test_codes_made_of_choices_fill_controllability_and_imitation(keys_run: Path):
    metrics = measured(keys_run, parts=("controllability", "imitation"))
    figures = metrics["controllability"]
    assert figures["n"] == 8 and figures["steps"] == 4
    for source in ("real", "reconstructed", "imagined", "other_actions"):
        assert set(figures[source]["f1"]) == {"up", "down"}
        assert set(figures[source]["correlation"]) == {"across"}
        assert figures[source]["n"] == 8 * 4
    assert metrics["imitation"].pop("goals")["n"] is None  # such a controller was not trained
    assert set(metrics["imitation"]) == {"controller", "cloning", "most_frequent", "no_op"}
    for row in metrics["imitation"].values():
        assert row["n"] > 20 and row["log_likelihood"] < 0 <= row["agreement"] <= 1
        assert set(row["by_factor"]) == {"across", "move"}
    empty = empty_metrics()
    assert metrics["task"] == empty["task"] and metrics["goal"] == empty["goal"]
    page = (keys_run / "report" / "index.html").read_text()
    assert "r of across" in page and "F1 of up" in page and "most frequent" in page
    again = measured(keys_run, parts=("tokenizer",))
    assert again["controllability"] == figures


def test_actions_that_are_no_codes_leave_both_null(toy_run: Path):
    metrics = measured(toy_run, parts=("controllability", "imitation"))
    assert metrics["controllability"] == empty_metrics()["controllability"]
    assert metrics["imitation"] == empty_metrics()["imitation"]
    assert "Controllability" not in (toy_run / "report" / "index.html").read_text()


def test_a_trial_of_minecraft_is_a_trial():
    config, presets = evaluate.Config(), evaluate.PRESETS
    minecraft = presets["minecraft"](config)
    assert minecraft.run == Path("runs/minecraft") and max(minecraft.horizons) == 32
    assert presets["cpu"](minecraft) == replace(presets["cpu"](config), run=minecraft.run)
    trial = presets["minecraft debug"](minecraft)
    assert trial.run == minecraft.run and 1 in trial.horizons and max(trial.horizons) == 16
    assert trial.windows < config.num_clips and trial.idm_steps < config.idm_steps / 10


def test_push_t_fills_task_and_goal(pusht_run: Path):
    metrics = measured(pusht_run)
    for policy in ("controller", "cloning", "random", "still", "scripted"):
        row = metrics["task"][policy]
        assert row["n"] == 2 and row["low"] <= row["score"] <= row["high"]
    for protocol in ("first_hit", "strict"):
        for policy in ("random", "still", "agent_only", "controller", "simulator"):
            row = metrics["goal"][protocol][policy]
            assert row["n"] == 2 and row["low"] <= row["success"] <= row["high"]
    assert metrics["provenance"]["fingerprints"]["dynamics"]
    pairs = json.loads((pusht_run / "report" / "pairs.json").read_text())
    assert len(pairs["25"]) == 2


@pytest.mark.parametrize("improved", [True, False])
def test_a_controller_that_is_still_the_clone_is_not_played_again(pusht_run: Path, improved: bool):
    played: list[str] = []

    def play(name: str) -> dict[str, Any]:
        played.append(name)
        return {"of": name}

    with evaluate.Session(pusht_run, None, None, 1, 2) as session:
        if not improved:
            clone = session.controllers["cloning"].state_dict()
            session.controllers["controller"].load_state_dict(clone)
        names = ("random", "cloning", "controller")
        found = [session.play_cached("task", name, partial(play, name))["of"] for name in names]
        assert found == ["random", "cloning", "controller" if improved else "cloning"]
        assert played == list(names[: 3 if improved else 2])
        session.play_cached("goal-25", "controller", partial(play, "another game"))
        assert played[-1] == "another game"


@pytest.mark.skipif(not cpp_compiler(), reason="needs a C++ compiler")
def test_figures_say_whether_steps_were_compiled(pusht_run: Path):
    """Nothing is compiled before a step is taken."""
    made, said = [], []
    for compiled in (False, True):
        with evaluate.Session(pusht_run, None, None, 1, 2, compiled) as session:
            made.append(session.cache_key("dynamics"))
            said.append(session.provenance()["compiled"])
    assert made[0] != made[1] and said == [False, True]


def test_a_planner_in_the_world_stands_beside_the_baselines(tmp_path: Path):
    build(ScriptedEpisodes(10, 32, 0), tmp_path / "shards", "", 0, 1)
    run = write_run(
        tmp_path, EpisodeDataset(tmp_path / "shards"), controllers=False, method="goals"
    )
    config = evaluate.PRESETS["goals"](evaluate.Config(run=run, num_workers=1))
    config = evaluate.PRESETS["debug"](config)
    evaluate.main(replace(config, parts=("probe",)))
    evaluate.main(replace(config, protocol=("far",), policies=("amortised",)))
    evaluate.main(replace(config, protocol=("first-hit",)))  # what was measured before stays
    metrics = json.loads((run / "report" / "metrics.json").read_text())
    for protocol in ("first_hit", "strict", "chunk_end"):
        for policy in ("planner", "amortised", "guided"):
            row = metrics["goal"][protocol][policy]
            assert row["n"] == 2 and row["seconds_of_a_plan"] > 0
    assert metrics["goal"]["far"]["amortised"]["n"] == 2
    assert metrics["goal"]["far"]["planner"]["n"] is None
    with pytest.raises(ValueError, match="--policies expert: there is none of that name"):
        evaluate.main(replace(config, policies=("expert",)))
    assert set(metrics["probe"]["linear"]) == set(metrics["probe"]["mlp"])
    assert metrics["provenance"]["methods"]["tokenizer"] == "keypoints"
    assert (run / "report" / "plots" / "goal-25-films.png").exists()
    saved = json.loads((run / "report" / "parts" / "goal-25-planner.json").read_text())
    assert saved["made_from"]["samples"] == 4 and saved["made_from"]["method"] == "cem"


@pytest.mark.parametrize("leg, keep, length", [(5, 25, 50), (1, 3, 50), (10, 55, 55)])
def test_a_guided_search_has_legs_like_its_guide_and_goes_as_far_as_the_goal(
    tmp_path: Path, leg: int, keep: int, length: int
):
    build(ScriptedEpisodes(10, 32, 0), tmp_path / "shards", "", 0, 1)
    run = write_run(
        tmp_path, EpisodeDataset(tmp_path / "shards"), controllers=False, method="goals"
    )
    planner = PlannerConfig(
        num_samples=4, iterations=2, num_elites=2, horizon=50 // leg, action_block=leg
    )
    config = evaluate.Config(
        run=run, planner=planner, receding_horizon=50, prior_receding_horizon=keep
    )
    with evaluate.Session(run, None, None, 1, 2) as session:
        guided = mpc_policies(session, config, goal_offset=50)["guided"]
        assert isinstance(guided, MpcPolicy)
        assert (
            guided.planner.action_block == 5
            and guided.planner.horizon * guided.planner.action_block == length
        )
        assert guided.receding_horizon == -(-keep // 5) * 5


@pytest.mark.parametrize("named", ["elsewhere/shards", "elsewhere"])
def test_other_recordings_get_a_report_of_their_own(pusht_run: Path, tmp_path: Path, named: str):
    other, shards = tmp_path / "elsewhere", tmp_path / named
    build(ScriptedEpisodes(10, 64, 5), other / "shards", "", 0, 1)
    config = evaluate.PRESETS["debug"](evaluate.Config(run=pusht_run, num_workers=1))
    evaluate.main(replace(config, shards=shards, parts=("tokenizer",)))
    made = json.loads((pusht_run / "report" / "on-elsewhere" / "metrics.json").read_text())
    assert made["provenance"]["recordings"] == str(other / "shards")


def test_recordings_of_another_size_are_refused(pusht_run: Path, tmp_path: Path):
    build(ScriptedEpisodes(10, 32, 0), tmp_path / "shards", "", 0, 1)
    config = evaluate.PRESETS["debug"](evaluate.Config(run=pusht_run, num_workers=1))
    with pytest.raises(ValueError, match=r"frames of \(64, 64\) pixels"):
        evaluate.main(replace(config, shards=tmp_path / "shards"))
