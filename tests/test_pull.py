"""A published run is pulled, and used in every script."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_hub import TOKEN, FakeHub
from hub_client import (
    PRESETS,
    REPO,
    card_of,
    copy_run,
    environment,
    figures_of,
    retrain,
    settings,
)

import evaluate
import play
import preprocess
import train_tokenizer
from data.io.hub_address import HubAddress
from data.shards.episode_dataset import EpisodeDataset
from pipeline import checkpoint as ckpt
from pipeline import presets, publish
from pipeline.cli import parse, run_cli
from pipeline.export import checkpoints as export
from pipeline.flags import flags_between
from pipeline.hub import pulled
from pipeline.hub.pull_run import PUBLISHED_REPORT, local_run, pull
from pipeline.inference.load_world import load_world
from pipeline.training.init_from import init_from

ROOT = Path(__file__).parents[1]
ADDRESS = f"hf://{REPO}"


@pytest.fixture
def run(measured: Path, tmp_path: Path) -> Path:
    return copy_run(measured, tmp_path / "run")


# -- what is pulled ---------------------------------------------------------------------------


def test_what_is_pulled_is_what_was_published(run: Path, hub: FakeHub):
    publish.main(settings(run))
    there = pull(HubAddress(REPO))
    for path in run.glob("**/best.pt"):
        stage = path.relative_to(run).parts[0]
        one = ckpt.load(path, stage)
        two = ckpt.load(there / path.relative_to(run), stage)
        assert one["fingerprint"] == two["fingerprint"]
        assert one["recordings"]["dataset"] == two["recordings"]["dataset"]
        assert torch.equal(one["recordings"]["train"], two["recordings"]["train"])
        assert one["model"].keys() == two["model"].keys()
        assert all(torch.equal(one["model"][name], two["model"][name]) for name in one["model"])
    assert presets.remembered(there) == PRESETS
    shards = [EpisodeDataset(folder / "shards").fingerprint for folder in (run, there)]
    assert shards[0] == shards[1]
    assert (there / "README.md").read_text() == card_of(hub)
    assert {path.name for path in there.parent.iterdir()} == {there.name}


def test_a_run_is_pulled_once_and_then_found_without_the_hub(run: Path, hub: FakeHub):
    publish.main(settings(run, with_shards=False))
    commit = hub.repositories[REPO].refs["main"]
    there = local_run(ADDRESS, "--run")
    hub.status = 500
    asked = len(hub.requests)
    for revision in ("", "@main", f"@{commit}", f"@{commit[:7]}"):
        assert local_run(f"{ADDRESS}{revision}", "--run") == there
    assert len(hub.requests) == asked
    assert there.name == f"user--world@{commit[:12]}"
    origin = pulled.read_pulled(there)
    assert origin is not None and origin.commit == commit and origin.revisions == ("main",)


def test_a_branch_stands_for_its_commit_until_it_is_pulled_again(run: Path, hub: FakeHub):
    publish.main(settings(run, with_shards=False))
    first = local_run(ADDRESS, "--run")
    publish.main(settings(run, with_shards=False, description="Another card."))
    assert local_run(ADDRESS, "--run") == first
    second = pull(HubAddress(REPO))
    assert second != first and local_run(ADDRESS, "--run") == second
    commit = pulled.read_pulled(first)
    assert commit is not None
    assert local_run(f"{ADDRESS}@{commit.commit}", "--run") == first
    assert pull(HubAddress(REPO, commit.commit)) == first


def test_a_pull_goes_where_it_is_told_to(run: Path, hub: FakeHub, tmp_path: Path):
    publish.main(settings(run, with_shards=False))
    out = tmp_path / "mine"
    assert pull(HubAddress(REPO), out) == out
    load_world(out)
    assert pull(HubAddress(REPO), out) == out  # there already
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"--out .*other holds something else"):
        pull(HubAddress(REPO), tmp_path / "other")
    publish.main(settings(run, with_shards=False, description="Another card."))
    with pytest.raises(ValueError, match=r"--out .*mine holds hf://user/world@\w{40}, not hf://"):
        pull(HubAddress(REPO), out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "other", "run"]


def test_a_pulled_world_reproduces_the_figures_of_its_card(run: Path, hub: FakeHub):
    publish.main(settings(run))
    figures = figures_of(card_of(hub))
    (line,) = re.findall(r"^    (python evaluate.py .*)$", card_of(hub), re.MULTILINE)
    parsed = parse(evaluate.Config, "evaluate", line.split()[2:])
    assert parsed.presets == PRESETS
    evaluate.main(replace(parsed.config, num_workers=1))
    metrics = json.loads((parsed.config.run / "report" / "metrics.json").read_text())
    measured = {
        "tokenizer.psnr": metrics["tokenizer"]["psnr"],
        "open_loop.psnr at 1 steps": metrics["open_loop"]["psnr"][0],
        "imitation.bc.log_likelihood": metrics["imitation"]["bc"]["log_likelihood"],
    }
    for key, value in measured.items():
        on_card, low, high, _ = figures[key]
        assert low <= value <= high and value == pytest.approx(on_card, rel=1e-4), key
    commit = hub.repositories[REPO].refs["main"]
    expected = {"repo": REPO, "commit": commit, "changed": []}
    assert metrics["provenance"]["pulled"] == expected
    assert (parsed.config.run / PUBLISHED_REPORT).exists()


def test_the_flags_of_a_card_give_the_config_back():
    base = presets.apply(evaluate.Config(), "evaluate", PRESETS)
    changed = replace(
        base, horizons=(1, 3), compile=True, seed=5,
        planner=replace(base.planner, num_samples=7, num_elites=3),
    )  # fmt: skip
    flags = flags_between(base, changed)
    again = parse(evaluate.Config, "evaluate", ["--preset", *PRESETS, *flags]).config
    assert again == changed and flags_between(base, base) == []


def test_figures_of_a_run_that_was_trained_further_say_so(run: Path, hub: FakeHub):
    publish.main(settings(run))
    there = pull(HubAddress(REPO))
    retrain(there / "controller" / "bc" / "best.pt", "controller")
    config = presets.apply(evaluate.Config(), "evaluate", PRESETS)
    evaluate.main(replace(config, run=there, num_workers=1, parts=("tokenizer",)))
    metrics = json.loads((there / "report" / "metrics.json").read_text())
    assert metrics["provenance"]["pulled"]["changed"] == ["controller/bc"]
    publish.main(settings(there, repo="user/tuned", figures=False))
    card = hub.files("user/tuned")["README.md"].decode()
    assert "base_model:\n- user/world" in card and "base_model_relation: finetune" in card
    publish.main(settings(there, figures=False))
    assert "base_model" not in card_of(hub)  # no run is its own


# -- in every script --------------------------------------------------------------------------


def test_a_flag_becomes_the_folder_and_other_addresses_a_commit(run: Path, hub: FakeHub):
    publish.main(settings(run))
    commit = hub.repositories[REPO].refs["main"]
    for flags in (["--run", ADDRESS], [f"--run={ADDRESS}@main"]):
        parsed = parse(evaluate.Config, "evaluate", flags)
        assert parsed.config.run == Path(f"runs/hub/user--world@{commit[:12]}")
        assert parsed.presets == PRESETS  # of its run.json
    assert parse(export.Config, None, ["--run", ADDRESS]).config.run == parsed.config.run
    flags = ["--run", "runs/new", "--shards", ADDRESS]
    assert parse(evaluate.Config, "evaluate", flags).config.shards == parsed.config.run
    flags = ["--run", "runs/new", "--train.init-from", f"{ADDRESS}@main"]
    config: Any = parse(train_tokenizer.Config, "tokenizer", flags).config
    assert config.train.init_from == f"{ADDRESS}@{commit}" and config.run == Path("runs/new")


def test_an_address_elsewhere_is_a_word(hub: FakeHub):
    words = ["run", "user/other", "--description", ADDRESS]
    assert parse(publish.Config, None, words).config.description == ADDRESS
    with pytest.raises(SystemExit):
        parse(evaluate.Config, "evaluate", ["--run", ADDRESS, "--help"])
    assert not hub.requests


def test_stage_1_does_not_write_into_a_published_run(hub: FakeHub):
    command = preprocess.COMMANDS["pusht"]
    with pytest.raises(ValueError, match=r"--run hf://user/world is a published run, .* yours"):
        parse(command.config, command.stage, ["--run", ADDRESS])
    assert not hub.requests and not Path("runs").exists()


def test_training_begins_with_published_weights(run: Path, hub: FakeHub):
    publish.main(settings(run, with_shards=False))
    model = load_world(run).tokenizer
    source = ckpt.load(run / "tokenizer" / "best.pt", "tokenizer")
    for weight in model.state_dict().values():
        weight.zero_()
    taken, checkpoint = init_from(model, ADDRESS, Path("tokenizer"), "tokenizer")
    assert not taken.left and taken.fingerprint == source["fingerprint"]
    assert all(torch.equal(v, source["model"][k]) for k, v in model.state_dict().items())
    assert checkpoint["fingerprint"] == source["fingerprint"]


def test_what_began_with_published_weights_names_them(run: Path, hub: FakeHub):
    publish.main(settings(run, with_shards=False))
    commit = hub.repositories[REPO].refs["main"]
    path = run / "tokenizer" / "best.pt"
    checkpoint = ckpt.load(path, "tokenizer")
    ckpt.save(path, checkpoint | {"train": {"init_from": f"{ADDRESS}@{commit}"}})
    publish.main(settings(run, repo="user/tuned"))
    card = hub.files("user/tuned")["README.md"].decode()
    assert "base_model:\n- user/world" in card and "base_model_relation: finetune" in card
    again = ckpt.load(pull(HubAddress("user/tuned")) / "tokenizer" / "best.pt", "tokenizer")
    assert again["train"]["init_from"] == f"{ADDRESS}@{commit}"


def test_scripts_play_a_published_run_also_offline(
    run: Path, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    publish.main(settings(run))
    words = ["--run", ADDRESS, "--headless", "--steps", "3", "--out", str(tmp_path / "film")]
    monkeypatch.setattr(sys, "argv", ["play.py", *words])
    run_cli(play.main, play.Config, "play")
    first = capsys.readouterr()
    assert hub.repositories[REPO].refs["main"] in first.out
    shutil.rmtree(tmp_path / "film")
    asked = len(hub.requests)
    own = os.environ | environment(tmp_path / "home", hub, TOKEN) | {"HF_HUB_OFFLINE": "1"}
    own.pop("DISPLAY", None)
    again = subprocess.run(
        [sys.executable, str(ROOT / "play.py"), *words],
        cwd=tmp_path, env=own, capture_output=True, text=True,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert len(hub.requests) == asked and (tmp_path / "film" / "rollout.gif").exists()
    assert TOKEN not in first.out + first.err + again.stdout + again.stderr
