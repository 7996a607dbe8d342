"""A run is published: what is sent, and what its card says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from fake_hub import TOKEN, FakeHub
from hub_client import (
    REPO,
    card_of,
    copy_run,
    figures_of,
    retrain,
    settings,
)

import play
from data.io.hub_address import HubAddress
from data.shards.episode_dataset import EpisodeDataset
from pipeline import checkpoint as ckpt
from pipeline import publish, tensor_file
from pipeline import pull as pull_command
from pipeline.hub.pull_run import pull

ROOT = Path(__file__).parents[1]
ADDRESS = f"hf://{REPO}"


@pytest.fixture
def run(measured: Path, tmp_path: Path) -> Path:
    return copy_run(measured, tmp_path / "run")


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
        "A toy.", "License of the data | cc0-1.0", "32 x 32 pixels", "uint8 from 0 to 255",
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
    retrain(run / "controller" / "bc" / "best.pt", "controller")
    with pytest.raises(ValueError, match=r"report/metrics.json is of controller/bc with .* again"):
        publish.main(settings(run))
    shutil.rmtree(run / "report")
    with pytest.raises(ValueError, match=r"metrics.json is not there; python evaluate.py --run"):
        publish.main(settings(run))
    assert REPO not in hub.repositories
    publish.main(settings(run, figures=False))
    assert "None was measured." in card_of(hub)


def test_a_report_that_does_not_say_its_flags_is_measured_again(run: Path, hub: FakeHub):
    path = run / "report" / "metrics.json"
    metrics = json.loads(path.read_text())
    del metrics["provenance"]["flags"]
    path.write_text(json.dumps(metrics))
    with pytest.raises(ValueError, match=r"is of an older version, .* python evaluate.py --run"):
        publish.main(settings(run))
    path.write_text("{")
    with pytest.raises(ValueError, match=r"metrics.json is damaged .* evaluate.py --run"):
        publish.main(settings(run))


@pytest.mark.parametrize("missing", ["license", "data_license"])
def test_licenses_have_to_be_named(run: Path, missing: str, hub: FakeHub):
    with pytest.raises(ValueError, match=f"--{missing.replace('_', '-')} is not given"):
        publish.main(settings(run, **{missing: ""}))
    assert not hub.requests


def test_no_path_of_this_machine_is_published(run: Path, hub: FakeHub, tmp_path: Path):
    publish.main(settings(run))
    for name, content in hub.files(REPO).items():
        if not name.startswith("shards/"):
            assert str(tmp_path).encode() not in content, name
            assert str(run.parent).encode() not in content, name


def test_the_command_of_the_shards_is_published_without_its_paths(run: Path, hub: FakeHub):
    dataset = EpisodeDataset(run / "shards")
    command = "python preprocess.py arrays /home/somebody/recordings --run /home/somebody/run"
    info = {"description": dataset.description, "command": command, "seconds": 1.0}
    text = json.dumps(info | {"shards": len(dataset.headers)})
    (run / "shards" / "build.json").write_text(text)
    publish.main(settings(run))
    published = json.loads(hub.files(REPO)["shards/build.json"])
    assert published["command"] == "python preprocess.py arrays recordings --run run"
    assert published["description"] == dataset.description
    publish.main(settings(run, with_shards=False))
    assert "not in here; put them into RUN/shards" in card_of(hub)


def test_what_a_killed_publication_left_is_not_published(run: Path, hub: FakeHub):
    left = run / publish.PARTS / "controller"
    left.mkdir(parents=True)
    (left / "secret.json").write_text("{}")
    publish.main(settings(run))
    assert not any("secret" in name for name in hub.files(REPO))
    assert not (run / publish.PARTS).exists()


def test_weights_keep_their_names_in_safetensors(run: Path, hub: FakeHub, tmp_path: Path):
    from safetensors import safe_open

    publish.main(settings(run))
    path = tmp_path / "model.safetensors"
    path.write_bytes(hub.files(REPO)["dynamics/model.safetensors"])
    own = ckpt.load(run / "dynamics" / "best.pt", "dynamics")
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(own["model"])
        assert file.metadata() == {"format": "pt"}


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


def test_files_that_were_only_looked_at_become_a_run(run: Path, tmp_path: Path, capsys):
    files, made = tmp_path / "files", tmp_path / "made"
    publish.main(settings(run, out=files))
    assert f"python -m pipeline.pull {files} --out RUN" in capsys.readouterr().out
    before = {path: path.read_bytes() for path in files.rglob("*") if path.is_file()}
    pull_command.main(pull_command.Config(str(files), made))
    assert {path: path.read_bytes() for path in before} == before
    for folder, stage in (("dynamics", "dynamics"), ("controller/bc", "controller")):
        path = Path(folder) / "best.pt"
        assert (
            ckpt.load(made / path, stage)["fingerprint"]
            == ckpt.load(run / path, stage)["fingerprint"]
        )
    play.main(play.Config(made, headless=True, steps=3))
    assert (made / "play" / "rollout.gif").exists() and not (made / "pulled.json").exists()
    for folder, out, message in (
        (files, None, "is a folder; name that of the run to make of it: --out RUN"),
        (files, made, f"--out {made} holds something"),
        (run / "report", tmp_path / "other", "cannot be made a run: it holds no world model"),
    ):
        with pytest.raises(ValueError, match=message):
            pull_command.main(pull_command.Config(str(folder), out))
    assert not (tmp_path / "other").exists()


def test_the_card_counts_what_the_log_of_a_training_counts(run: Path, tmp_path: Path):
    """Weights without a gradient, and buffers, are no parameters."""
    path = run / "dynamics" / "best.pt"
    ckpt.save(path, ckpt.load(path, "dynamics") | {"parameters": 1_234_567})
    publish.main(settings(run, out=tmp_path / "files"))
    assert "| 1.23 M |" in (tmp_path / "files" / "README.md").read_text()
