"""What is measured for who is served: ranks, distances by horizon, and what they tell apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from served import tiny_image_model
from untrained_run import save, write_run

from data.actions import ActionSpec
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from evaluation.latents import __main__ as latents
from evaluation.latents.distances import area_under_roc, measure_distances, rank_correlation
from evaluation.latents.state_probe import measure_state_probe
from evaluation.latents.transitions import Transitions, transitions_of
from evaluation.measures.probe import TARGETS
from models.registry import DataSpec
from pipeline.serve.latent_model import load_latent_model
from pipeline.serve.latent_report import percentile, read_measured

NONE = ActionSpec("none", ())


@pytest.fixture(scope="module")
def world_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("world")
    write_toy_shards(run / "shards", episodes=6, size=32)
    return write_run(run, EpisodeDataset(run / "shards"), method="keypoints", controllers=False)


@pytest.fixture(scope="module")
def image_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("images")
    write_toy_shards(run / "shards", episodes=6, size=32)
    model = tiny_image_model().tokenizer
    data = DataSpec((32, 32), NONE, model.latents)
    save(run / "tokenizer", "tokenizer", model, model.config, data, (run, "0" * 16))
    return run


def test_the_area_under_the_curve_is_a_probability():
    ordinary = np.array([1.0, 2.0, 3.0])
    assert area_under_roc(ordinary, np.array([4.0, 5.0])) == 1
    assert area_under_roc(ordinary, ordinary) == 0.5
    assert area_under_roc(ordinary, np.array([0.0, 2.5])) == pytest.approx(2 / 6)
    assert rank_correlation(ordinary, ordinary**3) == pytest.approx(1)


def test_a_percentile_is_interpolated_and_none_where_nothing_was_measured():
    quantiles = {"1": [0.0, 1.0, 4.0]}
    assert percentile(0.5, quantiles, 1) == 25 and percentile(9.0, quantiles, 1) == 100
    assert percentile(2.5, quantiles, 1) == 75 and percentile(0.5, quantiles, 2) is None


def test_the_transitions_of_images_lead_to_their_views(image_run):
    model = load_latent_model(image_run)
    dataset = EpisodeDataset(image_run / "shards")
    with torch.no_grad():
        found = transitions_of(model, dataset, "test", 4, 2, seed=0)
        again = transitions_of(model, dataset, "test", 4, 2, seed=0)
    assert found.start.shape[1:] == (16, 24) and found.actions.shape[1:] == (2, 16)
    assert found.truth.shape[1:] == (2, 16, 24)
    assert torch.equal(found.truth, again.truth)
    assert not torch.allclose(found.truth[:, 0], found.start)


def test_a_model_that_knows_is_not_surprised_and_cuts_stand_out(world_run):
    model = load_latent_model(world_run)
    torch.manual_seed(0)
    start, actions = torch.randn(16, 4, 2), torch.rand(16, 3, 2)
    if model.spec.num_patches != 4:
        start = torch.randn(16, model.spec.num_patches, model.spec.dim)
    sources = np.arange(16)
    with torch.no_grad():
        truth = model.rollout(start, actions)
        found = measure_distances(model, Transitions(start, actions, truth, sources), [1, 3])
    assert found["noise_std"] == 0 and set(found["surprise"]) == {"1", "3"}
    assert max(found["surprise"]["3"]) == 0 and len(found["surprise"]["1"]) == 101
    assert found["auc"]["scene_cut"]["1"]["auc"] == 1


def test_what_is_measured_is_written_for_these_weights_and_read_back(image_run, world_run, capsys):
    for run in (image_run, world_run):
        config = latents.Config(run, num_images=2, num_transitions=8, horizons=(1, 2))
        latents.main(replace(config, split="validation"))
        assert not (run / "report" / "latents.json").exists()  # choices leave no figures behind
        latents.main(config)
        model = load_latent_model(run)
        measured, line = read_measured(run, model.spec.model_id)
        assert measured is not None and "held-out transitions" in line
        assert len(measured.surprise["1"]) == len(measured.uncertainty["2"]) == 101
        assert (measured.mrr is None) == (run == world_run)
        other, line = read_measured(run, "f" * 16)
        assert other is None and "of another checkpoint" in line
    found = json.loads((image_run / "report" / "latents.json").read_text())
    assert set(found["ranks"]) >= {"all", "jitter", "blur", "grayscale", "solarize", "crop"}
    assert "MRR among 256" in capsys.readouterr().out
    assert read_measured(image_run.parent, "0")[0] is None


@pytest.mark.parametrize(
    "change", [{"n": "8"}, {"model_id": None}, {"surprise": [1]}, {"uncertainty": {"1": ["a"]}}]
)
def test_a_report_that_lacks_something_is_named_and_not_used(tmp_path, change):
    path = tmp_path / "report" / "latents.json"
    path.parent.mkdir()
    good = {"format": 1, "model_id": "a", "n": 8, "surprise": {"1": [0.0, 1.0]}}
    path.write_text(json.dumps(good))
    assert read_measured(tmp_path, "a")[0] is not None
    path.write_text(json.dumps({"format": 1}))
    found, line = read_measured(tmp_path, "a")
    assert found is None and f"{path} has no model_id" in line
    path.write_text(json.dumps(good | change))
    found, line = read_measured(tmp_path, "a")
    assert found is None and f"has no {next(iter(change))} that can be read" in line


def test_horizons_that_nothing_reaches_are_refused(image_run, world_run, capsys):
    sizes = {"num_images": 2, "num_transitions": 8, "split": "validation"}
    with pytest.raises(ValueError, match=r"--horizons 8 16: of images at most 5"):
        latents.main(latents.Config(image_run, horizons=(8, 16), **sizes))
    with pytest.raises(ValueError, match=r"--horizons 500: the longest validation episode has \d+"):
        latents.main(latents.Config(world_run, horizons=(500,), **sizes))
    latents.main(latents.Config(image_run, horizons=(1, 8), **sizes))
    assert "of --horizons 1 8, 1 are measured" in capsys.readouterr().out


def test_perturbed_copies_of_one_demonstration_are_one_source(world_run):
    dataset = EpisodeDataset(world_run / "shards")
    dataset.sources = np.full(len(dataset.sources), 7)
    with torch.no_grad():
        found = transitions_of(load_latent_model(world_run), dataset, "test", 8, 2, seed=0)
    assert set(found.sources.tolist()) == {7}


class KnownRollouts:
    """A world whose rollouts are where it really leads to, or that nothing has moved."""

    def __init__(self, model, found: Transitions, knows: bool) -> None:
        self.spec, self.encode = model.spec, model.encode
        still = found.start[:, None].expand_as(found.truth)
        self.rows = iter(found.truth if knows else still)

    def rollout(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return torch.stack([next(self.rows) for _ in latents])


def test_a_probe_reads_the_same_from_a_rollout_that_knows_and_less_from_one_that_stays(world_run):
    model, dataset = load_latent_model(world_run), EpisodeDataset(world_run / "shards")
    with torch.no_grad():
        found = transitions_of(model, dataset, "test", 24, 3, seed=0)
        knows = measure_state_probe(KnownRollouts(model, found, True), dataset, found, [1, 3])  # type: ignore[arg-type]
        stays = measure_state_probe(KnownRollouts(model, found, False), dataset, found, [3])  # type: ignore[arg-type]
    assert set(knows) == {"1", "3"} and set(knows["3"]["predicted"]) == set(TARGETS)
    assert knows["3"]["predicted"] == pytest.approx(knows["3"]["true"])
    assert stays["3"]["predicted"] == pytest.approx(stays["3"]["no_change"])
    assert stays["3"]["predicted"]["agent_x"] < knows["3"]["predicted"]["agent_x"]
    found.states = None
    assert measure_state_probe(model, dataset, found, [1]) == {}  # type: ignore[arg-type]
