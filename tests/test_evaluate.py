"""The whole of evaluate.py on untrained runs: keys, nulls, resuming."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from untrained_run import write_run

import evaluate
from data.pusht.scripted_episodes import ScriptedEpisodes
from data.shards.build_shards import build
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from evaluation.jobs import Job
from evaluation.measures import probe
from evaluation.provenance import provenance
from evaluation.report.metrics_schema import empty_metrics
from evaluation.simulator_jobs import goal_jobs, mpc_policies
from evaluation.task_jobs import task_jobs
from models.planning.planner import PlannerConfig
from pipeline import presets
from pipeline.inference import aot_inductor
from pipeline.training.auto_compile import cpp_compiler


def preset(run: Path, *names: str) -> evaluate.Config:
    config = presets.apply(evaluate.Config(), "evaluate", names)
    return replace(config, run=run, num_workers=1)


def evaluate_main(run: Path, **changes: Any) -> None:
    evaluate.main(replace(preset(run, "pusht", "debug"), **changes))


def evaluate_debug(run: Path, **changes: Any) -> dict[str, Any]:
    evaluate_main(run, **changes)
    return json.loads((run / "report" / "metrics.json").read_text())


def keys(tree: Any) -> Any:
    return {k: keys(v) for k, v in tree.items()} if isinstance(tree, dict) else None


@pytest.fixture(autouse=True)
def short_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_mlp", partial(probe._mlp, steps=20))


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of figures."""
    monkeypatch.setattr(evaluate, "draw_plots", lambda *_: None)


@pytest.fixture(scope="module")
def pusht_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("pusht")
    build(ScriptedEpisodes(10, 64, 0), run / "shards", "", 0, 1)
    return write_run(run, EpisodeDataset(run / "shards"))


@pytest.fixture(scope="module")
def keypoints_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("keypoints")
    build(ScriptedEpisodes(10, 32, 0), run / "shards", "", 0, 1)
    dataset = EpisodeDataset(run / "shards")
    return write_run(run, dataset, controllers=False, method="keypoints")


@pytest.fixture
def toy_run(tmp_path: Path) -> Path:
    write_toy_shards(tmp_path / "shards", episodes=12)
    return write_run(tmp_path, EpisodeDataset(tmp_path / "shards"))


@pytest.fixture
def keys_run(tmp_path: Path) -> Path:
    write_toy_shards(tmp_path / "shards", episodes=12, factored=True)
    return write_run(tmp_path, EpisodeDataset(tmp_path / "shards"))


@pytest.mark.usefixtures("no_plots")
def test_what_was_not_measured_is_null_and_never_absent(toy_run: Path):
    metrics = evaluate_debug(toy_run, parts=("tokenizer", "play"))
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


@pytest.mark.usefixtures("no_plots")
def test_parts_are_added_one_by_one_and_computed_once(toy_run: Path):
    first = evaluate_debug(toy_run, parts=("tokenizer",))
    parts = toy_run / "report" / "parts"
    before = (parts / "tokenizer.json").read_bytes()  # with the seconds that it took
    second = evaluate_debug(toy_run, parts=("tokenizer", "open_loop"))
    assert (parts / "tokenizer.json").read_bytes() == before  # cached, not computed
    assert second["tokenizer"] == first["tokenizer"]
    assert first["open_loop"]["psnr"] is None and len(second["open_loop"]["psnr"]) == 3
    third = evaluate_debug(toy_run, parts=("tokenizer",), restart=True)
    assert third["tokenizer"] == first["tokenizer"]
    assert third["open_loop"] == second["open_loop"]


def test_the_report_has_only_images_whose_metrics_were_measured(toy_run: Path):
    plots, page = toy_run / "report" / "plots", toy_run / "report" / "index.html"
    open_loop = ("curves_pixels", "curves_states", "video-0", "video-1")

    def images(**changes: Any) -> list[str]:
        evaluate_debug(toy_run, **changes)
        return re.findall('img alt="([^"]*)"', page.read_text())

    parts = ("tokenizer", "open_loop")
    assert images(parts=parts, num_videos=2) == [*open_loop, "reconstructions"]
    assert images(parts=("tokenizer",), seed=5) == ["reconstructions"]
    assert images(parts=("open_loop",), num_videos=0) == list(open_loop[:2])
    assert not list(plots.glob("video-*.png"))


@pytest.mark.usefixtures("no_plots")
def test_another_checkpoint_or_setting_invalidates_the_metrics(toy_run: Path):
    evaluate_debug(toy_run, parts=("tokenizer", "play"))
    write_run(toy_run, EpisodeDataset(toy_run / "shards"), controllers=False)  # the same weights
    kept = evaluate_debug(toy_run, parts=("tokenizer",))
    assert kept["play"]["frames_per_second"] is not None
    num_clips = preset(toy_run, "pusht", "debug").num_clips + 1
    changed = evaluate_debug(toy_run, parts=("play",), num_clips=num_clips)
    assert changed["tokenizer"]["n"] is None


@pytest.mark.usefixtures("no_plots")
def test_codes_with_factors_fill_controllability_and_imitation(keys_run: Path):
    metrics = evaluate_debug(keys_run, parts=("controllability", "imitation"))
    measured = metrics["controllability"]
    assert measured["n"] == 8 and measured["steps"] == 4
    for source in ("real", "reconstructed", "imagined", "shuffled_actions"):
        assert set(measured[source]["f1"]) == {"up", "down"}
        assert set(measured[source]["correlation"]) == {"across"}
        assert measured[source]["n"] == 8 * 4
    assert metrics["imitation"].pop("goal_policy")["n"] is None  # none was trained
    assert set(metrics["imitation"]) == {"actor_critic", "bc", "most_frequent", "noop"}
    for row in metrics["imitation"].values():
        assert row["n"] > 20 and row["log_likelihood"] < 0 <= row["accuracy"] <= 1
        assert set(row["by_factor"]) == {"across", "move"}
    empty = empty_metrics()
    assert metrics["task"] == empty["task"] and metrics["goal"] == empty["goal"]
    page = (keys_run / "report" / "index.html").read_text()
    assert "r of across" in page and "F1 of up" in page and "most frequent" in page
    again = evaluate_debug(keys_run, parts=("tokenizer",))
    assert again["controllability"] == measured


@pytest.mark.usefixtures("no_plots")
def test_continuous_actions_leave_both_null(toy_run: Path):
    metrics = evaluate_debug(toy_run, parts=("controllability", "imitation"))
    assert metrics["controllability"] == empty_metrics()["controllability"]
    assert metrics["imitation"] == empty_metrics()["imitation"]
    assert "Controllability" not in (toy_run / "report" / "index.html").read_text()


def test_a_trial_of_minecraft_is_a_trial():
    config = evaluate.Config()
    minecraft = presets.apply(config, "evaluate", ["minecraft"])
    assert minecraft.run == Path("runs/minecraft") and max(minecraft.horizons) == 32
    trial = presets.apply(config, "evaluate", ["minecraft", "debug"])
    assert trial.run == minecraft.run and 1 in trial.horizons and max(trial.horizons) == 16
    assert trial.num_clips < config.num_clips and trial.idm_steps < config.idm_steps / 10


def test_push_t_fills_task_and_goal(pusht_run: Path):
    metrics = evaluate_debug(pusht_run)
    for policy in ("actor_critic", "bc", "random", "noop", "scripted"):
        row = metrics["task"][policy]
        assert row["n"] == 2 and row["low"] <= row["score"] <= row["high"]
    for protocol in ("first_hit", "strict"):
        for policy in ("random", "noop", "goal_agent_position", "actor_critic", "oracle_cem"):
            row = metrics["goal"][protocol][policy]
            assert row["n"] == 2 and row["low"] <= row["success"] <= row["high"]
    not_asked_for = metrics["goal"]["offset100"].values()
    assert all(row["n"] is None for row in not_asked_for)
    assert metrics["provenance"]["fingerprints"]["dynamics"]
    pairs = json.loads((pusht_run / "report" / "pairs.json").read_text())
    assert len(pairs["25"]) == 2


def test_a_policy_that_is_not_measured_is_refused_with_the_reason(pusht_run: Path, toy_run: Path):
    for policy in ("planner", "goal_policy"):
        with pytest.raises(ValueError, match=f"--policies {policy}: planning needs .* continuous"):
            evaluate_debug(pusht_run, policies=(policy,))
    with pytest.raises(ValueError, match="--policies random: only Push-T .*; choose from none"):
        evaluate_debug(toy_run, policies=("random",))


@pytest.mark.usefixtures("no_plots")
def test_parts_side_by_side_are_those_of_one_process(pusht_run: Path, tmp_path: Path):
    asked: dict[str, Any] = {
        "parts": ("tokenizer", "rewards", "play", "task"),
        "policies": ("bc", "noop"),
    }
    evaluate_main(pusht_run, out=tmp_path / "alone", **asked)
    torch.set_num_threads(2)  # one for each
    try:
        evaluate_main(pusht_run, out=tmp_path / "beside", num_processes=2, **asked)
    finally:
        torch.set_num_threads(1)
    alone, beside = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("alone", "beside")
    )
    assert beside["play"]["n"] and beside["task"]["bc"]["n"]
    for metrics in (alone, beside):
        del metrics["play"], metrics["provenance"]  # times
    assert alone == beside
    log = (tmp_path / "beside" / "log.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in log]
    assert sorted(line["part"] for line in lines[1:]) == sorted(lines[0]["parts"])


@pytest.mark.parametrize("improved", [True, False])
def test_an_actor_critic_with_the_weights_of_bc_is_not_played_again(
    pusht_run: Path, improved: bool
):
    played: list[str] = []

    def play(name: str) -> dict[str, Any]:
        played.append(name)
        return {"of": name}

    with evaluate.Session(pusht_run, None, None, 1, 2) as session:
        if not improved:
            bc, actor_critic = (session.controllers[name] for name in ("bc", "actor_critic"))
            assert isinstance(bc, nn.Module) and isinstance(actor_critic, nn.Module)
            actor_critic.load_state_dict(bc.state_dict())
        names = ("random", "bc", "actor_critic")
        found = [session.play_cached("task", name, partial(play, name))["of"] for name in names]
        assert found == ["random", "bc", "actor_critic" if improved else "bc"]
        assert played == list(names[: 3 if improved else 2])
        session.play_cached("goal-25", "actor_critic", partial(play, "another game"))
        assert played[-1] == "another game"


def selected_jobs(
    jobs_of: Callable[..., Iterable[Job]],
    run: Path,
    capsys: pytest.CaptureFixture[str],
    **changes: Any,
) -> tuple[set[str], str]:
    """Names of what is measured with these settings, and what is said."""
    config = replace(preset(run, "pusht", "debug"), **changes)
    with evaluate.Session(run, None, None, 1, 2) as session:
        capsys.readouterr()
        names = {job.name for job in jobs_of(session, config) if evaluate.is_selected(job, config)}
    return names, "".join(capsys.readouterr())


def test_goals_are_measured_at_the_offsets_and_protocols_asked_for(
    pusht_run: Path, capsys: pytest.CaptureFixture[str]
):
    def measured(**changes: Any) -> tuple[set[int], str]:
        names, told = selected_jobs(goal_jobs, pusht_run, capsys, **changes)
        return {int(name.split("-")[1]) for name in names}, told

    offsets, told = measured()
    assert offsets == {25, 50} and "left out" not in told
    offsets, told = measured(goal_offsets=(100,))
    assert offsets <= {100} and "25 and 50 steps away are left out: --goal-offsets is 100; " in told
    assert "give 25 50 100" in told
    offsets, told = measured(goal_offsets=(25,))
    assert offsets == {25} and "50 steps away are left out: --goal-offsets is 25" in told
    assert measured(goal_offsets=(25,), protocol=("offset50_strict",)) == ({50}, "")
    assert "left out" not in measured(goal_offsets=(25,), parts=("tokenizer",))[1]


def test_policies_are_left_out_of_the_task_unless_they_are_named(
    pusht_run: Path, capsys: pytest.CaptureFixture[str]
):
    measured = partial(selected_jobs, task_jobs, pusht_run, capsys)

    everything, told = measured()
    assert {"task-random", "task-noop"} < everything and "--task-without" not in told
    rest, told = measured(task_without=("random", "noop", "distilled_policy"))
    assert rest == everything - {"task-random", "task-noop"}
    assert "task: random, noop are left out by --task-without" in told
    assert "give --policies random noop" in told
    assert measured(task_without=("noop",), policies=("noop",)) == ({"task-noop"}, "")
    assert measured(task_without=("noop",), parts=("tokenizer",))[1] == ""
    with pytest.raises(ValueError, match="--task-without still: no policy of the task protocol"):
        measured(task_without=("still",))


@pytest.mark.skipif(not cpp_compiler(), reason="needs a C++ compiler")
def test_compiled_steps_have_their_own_cache_key(pusht_run: Path, monkeypatch: pytest.MonkeyPatch):
    """Nothing is compiled before the first step."""
    monkeypatch.setattr(aot_inductor, "compile_problem", lambda _: None)  # it compiles a trial
    cache_keys, said = [], []
    for compiled in (False, True):
        with evaluate.Session(pusht_run, None, None, 1, 2, compiled) as session:
            cache_keys.append(session.cache_key("dynamics"))
            said.append(provenance(session)["compiled"])
    assert cache_keys[0] != cache_keys[1] and said == [False, True]


@pytest.mark.usefixtures("no_plots")
def test_planners_are_measured_in_a_continuous_world(keypoints_run: Path):
    run = keypoints_run
    config = preset(run, "keypoints", "debug")
    evaluate.main(replace(config, parts=("probe",)))
    evaluate.main(replace(config, protocol=("offset50",), policies=("goal_policy",)))
    evaluate.main(replace(config, protocol=("offset100",), policies=("noop",)))
    evaluate.main(replace(config, protocol=("first_hit",)))  # earlier results stay
    metrics = json.loads((run / "report" / "metrics.json").read_text())
    for protocol in ("first_hit", "strict", "chunk_end"):
        for policy in ("planner", "goal_policy", "policy_prior"):
            row = metrics["goal"][protocol][policy]
            assert row["n"] == 2 and row["plan_seconds"] > 0
    assert metrics["goal"]["offset50"]["goal_policy"]["n"] == 2
    assert metrics["goal"]["offset50"]["planner"]["n"] is None
    assert metrics["goal"]["offset100"]["noop"]["n"] == 2
    with pytest.raises(ValueError, match="--policies expert: unknown; choose from .*noop, "):
        evaluate.main(replace(config, policies=("expert",)))
    with pytest.raises(ValueError, match="--policies bc: no controller was trained; .* trains one"):
        evaluate.main(replace(config, policies=("random", "bc")))
    assert set(metrics["probe"]["linear"]) == set(metrics["probe"]["mlp"])
    assert metrics["provenance"]["methods"]["tokenizer"] == "keypoints"
    assert (run / "report" / "plots" / "goal-25-videos.png").exists()
    saved = json.loads((run / "report" / "parts" / "goal-25-planner.json").read_text())
    assert saved["cache_key"]["num_samples"] == 4 and saved["cache_key"]["method"] == "cem"


@pytest.mark.parametrize(
    "action_block, receding_horizon, length", [(5, 25, 50), (1, 3, 50), (10, 55, 55)]
)
def test_a_planner_with_prior_has_its_action_block_and_reaches_as_far_as_the_goal(
    keypoints_run: Path, action_block: int, receding_horizon: int, length: int
):
    planner = PlannerConfig(
        num_samples=4,
        iterations=2,
        num_elites=2,
        horizon=50 // action_block,
        action_block=action_block,
    )
    config = evaluate.Config(
        run=keypoints_run,
        planner=planner,
        receding_horizon=50,
        prior_receding_horizon=receding_horizon,
    )
    with evaluate.Session(keypoints_run, None, None, 1, 2) as session:
        executor = mpc_policies(session, config, goal_offset=50)["policy_prior"].executor
    assert executor.planner.action_block == 5
    assert executor.planner.horizon * executor.planner.action_block == length
    assert executor.receding_horizon == -(-receding_horizon // 5) * 5


@pytest.mark.usefixtures("no_plots")
def test_another_dataset_gets_its_own_report(pusht_run: Path, tmp_path: Path):
    other = write_toy_shards(tmp_path / "elsewhere" / "shards", episodes=6, size=64)
    config = preset(pusht_run, "pusht", "debug")
    written = pusht_run / "report" / "on-elsewhere" / "metrics.json"
    for shards in (other, other.parent):
        evaluate.main(replace(config, shards=shards, parts=("tokenizer",)))
        assert json.loads(written.read_text())["provenance"]["dataset"] == str(other)
        written.unlink()


def test_a_place_that_cannot_be_written_to_is_refused_before_anything_is_loaded(
    pusht_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("evaluation.session.load_world", None)
    (tmp_path / "file").write_text("")
    config = preset(pusht_run, "pusht", "debug")
    with pytest.raises(ValueError, match=r"file/report cannot be written to .* another --out") as e:
        evaluate.main(replace(config, out=tmp_path / "file" / "report"))
    assert "\n" not in str(e.value)


def test_a_dataset_of_another_image_size_is_refused(pusht_run: Path, tmp_path: Path):
    write_toy_shards(tmp_path / "shards")
    config = preset(pusht_run, "pusht", "debug")
    with pytest.raises(ValueError, match=r"frames of \(64, 64\) pixels"):
        evaluate.main(replace(config, shards=tmp_path / "shards"))
