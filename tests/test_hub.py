"""Runs are published on a Hub and pulled from it, on a fake Hub on this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_hub import TOKEN, FakeHub, fake_hub
from hub_client import PRESETS, REPO, copy_run, environment, measured_run, turn_client

import evaluate
import preprocess
import train_tokenizer
from data.shards.episode_dataset import EpisodeDataset
from pipeline import checkpoint as ckpt
from pipeline import presets, publish, tensor_file
from pipeline.cli import parse
from pipeline.flags import flags_between
from pipeline.hub import pulled
from pipeline.hub.address import HubAddress
from pipeline.hub.pull_run import PUBLISHED_REPORT, local_run, pull
from pipeline.inference import export
from pipeline.inference.load_world import load_world
from pipeline.training.init_from import init_from

ROOT = Path(__file__).parents[1]
ADDRESS = f"hf://{REPO}"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return measured_run(tmp_path_factory.mktemp("measured") / "run")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub, and a working folder of its user, who may write."""
    with fake_hub() as server:
        turn_client(monkeypatch, tmp_path / "home", server, TOKEN)
        monkeypatch.chdir(tmp_path)
        yield server


@pytest.fixture
def run(measured: Path, tmp_path: Path) -> Path:
    return copy_run(measured, tmp_path / "run")


def settings(run: Path, **changes: Any) -> publish.Config:
    config = publish.Config(run, REPO, license="mit", data_license="cc0-1.0", with_shards=True)
    return replace(config, **changes)


def card_of(hub: FakeHub) -> str:
    return hub.files(REPO)["README.md"].decode()


def figures_of(card: str) -> dict[str, tuple[float, float, float, int]]:
    """Value, ends of the interval and n of each figure in a card's table."""
    rows = re.findall(r"\| `(.*?)` \| (\S+) \| \[(\S+), (\S+)\] \| (\d+) \|", card)
    return {key: (float(v), float(low), float(high), int(n)) for key, v, low, high, n in rows}


# -- what is published ------------------------------------------------------------------------


def test_a_publication_is_safetensors_and_json_and_private(run: Path, hub: FakeHub):
    publish.main(settings(run, with_shards=False))
    assert hub.repositories[REPO].private
    names = set(hub.files(REPO)) - {".gitattributes", "README.md"}
    assert names == {
        "run.json", "report/metrics.json",
        *(f"{folder}/{name}" for name in ("checkpoint.json", "model.safetensors")
          for folder in ("tokenizer", "dynamics", "controller", "controller/bc")),
    }  # fmt: skip
    assert not list(run.glob(".publish*"))


def test_public_only_where_it_is_asked_for(run: Path, hub: FakeHub, capsys):
    publish.main(settings(run, public=True))
    assert not hub.repositories[REPO].private
    assert f"{hub.address}/{REPO} (public)" in capsys.readouterr().out
    before = dict(hub.repositories[REPO].commits)
    with pytest.raises(ValueError, match=r"user/world is there and public; give --public"):
        publish.main(settings(run))
    hub.repositories[REPO].private = True
    with pytest.raises(ValueError, match=r"is there and private; leave --public out"):
        publish.main(settings(run, public=True))
    assert hub.repositories[REPO].commits == before


def test_files_of_an_earlier_publication_do_not_stay(run: Path, hub: FakeHub):
    publish.main(settings(run))
    assert "controller/bc/model.safetensors" in hub.files(REPO)
    shutil.rmtree(run / "controller")
    publish.main(settings(run, with_shards=False))
    names = set(hub.files(REPO))
    assert not any(name.startswith(("controller", "shards")) for name in names)
    assert "dynamics/model.safetensors" in names and ".gitattributes" in names


def test_weights_that_did_not_change_are_not_sent_again(run: Path, hub: FakeHub):
    publish.main(settings(run))
    first, sent = hub.files(REPO), len(hub.lfs)
    publish.main(settings(run))
    assert hub.files(REPO) == first and len(hub.lfs) == sent


def test_the_card_says_what_a_reader_needs(run: Path, hub: FakeHub):
    publish.main(settings(run, description="A toy."))
    card = card_of(hub)
    head, body = card.split("---\n")[1:3]
    for line in ("library_name: dreamstage", "license: mit", "- world-model", "- vqvae", "- llama"):
        assert line in head, line
    assert "base_model" not in head
    for text in (
        "A toy.", "Licence of the data | cc0-1.0", "32 x 32 pixels", "uint8 from 0 to 255",
        "`actions[t]` leads from `frames[t]` to `frames[t + 1]`",
        "a code from 0 to 14", "across (-2 / -1 / 0 / +1 / +2)",
        "python evaluate.py --run hf://user/world --num-videos 0",
    ):  # fmt: skip
        assert text in body, text
    report = json.loads((run / "report" / "metrics.json").read_text())
    figures = figures_of(card)
    row = report["imitation"]["bc"]
    keys = ("log_likelihood", "log_likelihood_low", "log_likelihood_high")
    expected = tuple(float(f"{row[key]:.6g}") for key in keys)
    assert figures["imitation.bc.log_likelihood"] == (*expected, row["n"])
    assert "imitation.noop.log_likelihood" in figures  # a baseline
    assert "open_loop.copy_last_psnr at 1 steps" in figures


def test_a_card_tells_continuous_actions_with_their_unit(tmp_path: Path):
    given = ROOT / "checkpoints" / "pusht-goals"
    config = publish.Config(
        given, REPO, license="mit", data_license="mit", figures=False, out=tmp_path / "files"
    )
    publish.main(config)
    card = (tmp_path / "files" / "README.md").read_text()
    assert "target_x from 0 to 512" in card and "in pixels of the 512 x 512 world" in card
    assert "None was measured." in card and "| Data | scripted pushes |" in card
    assert not (given / ".publish").exists()


def test_a_card_has_no_figures_of_other_weights(run: Path, hub: FakeHub):
    path = run / "controller" / "bc" / "best.pt"
    checkpoint = ckpt.load(path, "controller")
    next(iter(checkpoint["model"].values())).add_(1)
    changed = ckpt.fingerprint(checkpoint["model"], checkpoint["config"])
    ckpt.save(path, checkpoint | {"fingerprint": changed})
    with pytest.raises(ValueError, match=r"report/metrics.json is of controller/bc with .* again"):
        publish.main(settings(run))
    shutil.rmtree(run / "report")
    with pytest.raises(ValueError, match=r"metrics.json is not there; python evaluate.py --run"):
        publish.main(settings(run))
    assert REPO not in hub.repositories
    publish.main(settings(run, figures=False))
    assert "None was measured." in card_of(hub)


@pytest.mark.parametrize("missing", ["license", "data_license"])
def test_licences_have_to_be_named(run: Path, missing: str, hub: FakeHub):
    with pytest.raises(ValueError, match=f"--{missing.replace('_', '-')} is not given"):
        publish.main(settings(run, **{missing: ""}))
    assert not hub.requests


def test_no_path_of_this_machine_is_published(run: Path, hub: FakeHub, tmp_path: Path):
    publish.main(settings(run))
    for name, content in hub.files(REPO).items():
        if not name.startswith("shards/"):
            assert str(tmp_path).encode() not in content, name
            assert str(run.parent).encode() not in content, name


def test_weights_keep_their_names_in_safetensors(run: Path, hub: FakeHub, tmp_path: Path):
    from safetensors import safe_open

    publish.main(settings(run))
    path = tmp_path / "model.safetensors"
    path.write_bytes(hub.files(REPO)["dynamics/model.safetensors"])
    own = ckpt.load(run / "dynamics" / "best.pt", "dynamics")
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(own["model"])
        assert file.metadata() == {"format": "pt"}


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
    write = there / "controller" / "bc" / "best.pt"
    checkpoint = ckpt.load(write, "controller")
    next(iter(checkpoint["model"].values())).add_(1)
    changed = ckpt.fingerprint(checkpoint["model"], checkpoint["config"])
    ckpt.save(write, checkpoint | {"fingerprint": changed})
    config = presets.apply(evaluate.Config(), "evaluate", PRESETS)
    evaluate.main(replace(config, run=there, num_workers=1, parts=("tokenizer",)))
    metrics = json.loads((there / "report" / "metrics.json").read_text())
    assert metrics["provenance"]["pulled"]["changed"] == ["controller/bc"]
    publish.main(settings(there, repo="user/tuned", figures=False))
    card = hub.files("user/tuned")["README.md"].decode()
    assert "base_model:\n- user/world" in card and "base_model_relation: finetune" in card


# -- in every script --------------------------------------------------------------------------


def test_a_flag_becomes_the_folder_and_other_addresses_a_commit(run: Path, hub: FakeHub):
    publish.main(settings(run))
    commit = hub.repositories[REPO].refs["main"]
    for flags in (["--run", ADDRESS], [f"--run={ADDRESS}@main"]):
        parsed = parse(evaluate.Config, "evaluate", flags)
        assert parsed.config.run == Path(f"runs/hub/user--world@{commit[:12]}")
        assert parsed.presets == PRESETS  # of its run.json
    assert parse(export.Config, None, ["--run", ADDRESS]).config.run == parsed.config.run
    flags = ["--run", "runs/new", "--train.init-from", f"{ADDRESS}@main"]
    config: Any = parse(train_tokenizer.Config, "tokenizer", flags).config
    assert config.train.init_from == f"{ADDRESS}@{commit}" and config.run == Path("runs/new")


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


def test_scripts_play_a_published_run_also_offline(run: Path, hub: FakeHub, tmp_path: Path):
    publish.main(settings(run))
    own = os.environ | environment(tmp_path / "home", hub, TOKEN) | {"OMP_NUM_THREADS": "1"}
    own.pop("DISPLAY", None)

    def play(**changes: str) -> subprocess.CompletedProcess[str]:
        words = ["--run", ADDRESS, "--headless", "--steps", "3", "--out", str(tmp_path / "film")]
        return subprocess.run(
            [sys.executable, str(ROOT / "play.py"), *words],
            cwd=tmp_path, env=own | changes, capture_output=True, text=True,
        )  # fmt: skip

    refused = play(HF_HUB_OFFLINE="1")
    assert refused.returncode == 1 and "HF_HUB_OFFLINE forbids" in refused.stderr
    assert "Traceback" not in refused.stderr and not (tmp_path / "runs").exists()
    first = play()
    assert first.returncode == 0, first.stderr
    assert hub.repositories[REPO].refs["main"] in first.stdout
    asked = len(hub.requests)
    again = play(HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert len(hub.requests) == asked and (tmp_path / "film" / "rollout.gif").exists()
    for ended in (refused, first, again):
        assert TOKEN not in ended.stdout + ended.stderr


# -- the token --------------------------------------------------------------------------------


def test_the_token_is_nowhere(run: Path, hub: FakeHub, tmp_path: Path, capsys):
    publish.main(settings(run))
    there = pull(HubAddress(REPO))
    printed = capsys.readouterr()
    assert TOKEN not in printed.out + printed.err
    for folder in (run, there, tmp_path):
        for path in folder.rglob("*"):
            assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
    for name, content in hub.files(REPO).items():
        assert TOKEN.encode() not in content, name


def test_a_token_in_a_run_is_not_published(run: Path, hub: FakeHub):
    for text in (TOKEN, "hf_0123456789abcdefghij"):
        with pytest.raises(ValueError, match=r"README.md would hold a token") as refused:
            publish.main(settings(run, description=f"Made with {text}."))
        assert text not in str(refused.value)
    assert REPO not in hub.repositories


def test_a_digest_of_the_fields_comes_along(run: Path, hub: FakeHub):
    publish.main(settings(run))
    fields = json.loads(hub.files(REPO)["tokenizer/checkpoint.json"])
    assert fields[tensor_file.DIGEST] and fields["format"] == ckpt.FORMAT
