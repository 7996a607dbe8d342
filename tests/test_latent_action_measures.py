"""Every measure of latent actions: an oracle's scores, a deaf model's baselines, null without
true actions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from square_world import BUTTONS, MOVES, NAMES, STICK, VECTORS, square_world, write_squares

from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from evaluation.measures.latent_action_measures import measure_latent_actions
from evaluation.readers.label_budget import cached_action_map, measure_action_map
from evaluation.readers.transitions import directions, read_motion, read_transitions


def measure(dataset: EpisodeDataset, deaf=False, maps=None, steps=1) -> dict:
    world = square_world(deaf)
    return measure_latent_actions(world, dataset, dataset, 24, reader_steps=steps, maps=maps)


@pytest.fixture(scope="module")
def stick(tmp_path_factory: pytest.TempPathFactory) -> EpisodeDataset:
    return write_squares(tmp_path_factory.mktemp("stick"), STICK)


@pytest.fixture(scope="module")
def oracle(stick: EpisodeDataset) -> dict:
    return measure(stick, steps=60)


@pytest.fixture(scope="module")
def deaf(stick: EpisodeDataset) -> dict:
    return measure(stick, deaf=True)


def test_an_oracle_agrees_with_the_directions_of_true_actions(oracle: dict):
    found = oracle["clustering"]
    assert found["nmi"] == pytest.approx(1) and found["accuracy"] == 1 and found["labels"] == 9
    assert found["nmi_permuted"] < 0.3 and found["accuracy_permuted"] < 0.4
    assert found["n"] == oracle["n"] > 50 and found["sources"] == 3


def test_a_deaf_model_agrees_as_permuted_codes_do(deaf: dict):
    found = deaf["clustering"]
    assert abs(found["nmi"] - found["nmi_permuted"]) < 0.12


def test_an_oracle_is_probed_to_its_ceiling_and_a_deaf_model_to_its_floor(oracle, deaf):
    found = oracle["probe"]
    assert found["of"] == "motion" and found["r2"] > 0.98 and found["r2_low"] > 0.95
    assert found["floor_r2"] + 0.1 < found["ceiling_r2"]
    assert deaf["probe"]["r2"] < 0.2


def test_an_oracles_codes_mean_the_same_in_other_episodes(oracle: dict):
    found = oracle["consistency"]["by_image"]
    assert found["same_code"] > 0.95 and found["own_clip"] > 0.95
    assert abs(found["other_code"]) < 0.5 and found["same_code_low"] > 0.9
    assert oracle["consistency"]["by_state"] is None


def test_a_code_that_moves_nothing_is_not_consistent(deaf: dict):
    assert deaf["consistency"]["by_image"]["same_code"] == 0
    assert max(deaf["effects"]["consistency"]) == 0


def test_the_effect_of_each_code_is_its_direction(oracle: dict):
    motion = np.array(oracle["effects"]["motion"])[NAMES]  # in the order of VECTORS
    cosine = (motion[1:] * VECTORS[1:]).sum(1) / np.linalg.norm(motion[1:], axis=1)
    assert cosine.min() > 0.98 and np.abs(motion[0]).max() < 0.005
    cosines = np.array(oracle["effects"]["consistency"])[NAMES]
    assert cosines[1:].min() > 0.95 and cosines[0] == 0


def test_inferred_actions_predict_better_than_drawn_ones_only_where_they_are_heard(oracle, deaf):
    found = oracle["delta_psnr"]
    assert found["steps"] == 4 and found["delta_psnr"] > 10 and found["delta_psnr_low"] > 5
    assert deaf["delta_psnr"]["delta_psnr"] == 0


def test_the_use_of_codes_is_said(oracle: dict, deaf: dict):
    assert oracle["num_codes"] == oracle["used"] == 9 and oracle["perplexity"] > 7
    assert sum(oracle["frequencies"]) == pytest.approx(1)


def test_without_true_actions_what_needs_them_is_null(tmp_path: Path):
    dataset = write_squares(tmp_path, None)
    found = measure(dataset)
    assert found["clustering"] is None and found["probe"] is None and found["label_budget"] == {}
    assert found["consistency"]["by_image"]["same_code"] > 0.9
    assert found["delta_psnr"]["delta_psnr"] > 5


def test_true_codes_are_labels_as_they_are(tmp_path: Path):
    found = measure(write_squares(tmp_path, MOVES))
    assert found["clustering"]["nmi"] == pytest.approx(1)
    assert found["probe"]["of"] == "codes" and found["probe"]["accuracy"] > 0.95


@pytest.mark.parametrize("spec", [STICK, MOVES])
def test_few_labels_map_an_oracles_codes_and_their_accuracy_is_held_out(tmp_path: Path, spec):
    dataset, world = write_squares(tmp_path / "shards", spec), square_world()
    test = read_transitions(world, dataset, "test", 200)
    scores = []
    for budget in (10, 60):
        found = cached_action_map(tmp_path, world, dataset, budget, "fingerprint")
        assert found is not None and found.budget == budget
        scores.append(measure_action_map(found, test))
    assert scores[0]["to_latent"] < scores[1]["to_latent"] and scores[1]["to_latent"] > 0.95
    assert scores[1]["chance"] < 0.3
    assert scores[1]["to_true" if spec is MOVES else "to_true_r2"] > 0.9


def test_a_map_is_kept_and_learned_anew_for_other_latent_actions(tmp_path: Path):
    dataset, world = write_squares(tmp_path / "shards", MOVES), square_world()
    cached_action_map(tmp_path, world, dataset, 50, "one")
    path = tmp_path / "action_maps" / "50.pt"
    written = path.stat().st_mtime_ns
    cached_action_map(tmp_path, world, dataset, 50, "one")
    assert path.stat().st_mtime_ns == written
    cached_action_map(tmp_path, world, dataset, 50, "two")
    assert path.stat().st_mtime_ns > written
    assert cached_action_map(tmp_path, world, dataset, 10**5, "one") is None


def test_mapped_true_actions_steer_an_oracle(tmp_path: Path):
    dataset, world = write_squares(tmp_path / "shards", STICK), square_world()
    found = cached_action_map(tmp_path, world, dataset, 60, "one")
    assert found is not None
    measured = measure(dataset, maps={60: found})
    assert measured["delta_psnr"]["mapped_delta_psnr"] > 5
    assert measured["label_budget"]["60"]["to_latent"] > 0.9


def test_the_agents_displacement_names_true_actions_that_are_places(tmp_path: Path):
    dataset = EpisodeDataset(write_toy_shards(tmp_path))
    states = np.zeros((3, 2, 5), np.float32)
    states[0, 1, :2], states[1, 1, :2], states[2, 1, :2] = (40, 0), (0, 40), (3, 3)
    motion, still = read_motion(dataset, np.zeros((3, 2), np.float32), states)
    assert motion is not None and directions(motion, still).tolist() == [1, 3, 0]
    assert still == 1 / 32  # a pixel of its frames


def test_training_never_sees_true_actions(tmp_path: Path):
    """A method that infers actions asks for none, so recorded ones are there to measure by."""
    from data.clips import Clips
    from pipeline.batches.clip_batches import ClipBatches

    world = square_world()
    with_actions = write_squares(tmp_path / "with", STICK)
    without = write_squares(tmp_path / "without", None)
    batches = [
        ClipBatches(Clips(dataset, "train", 3), world.dynamics.needs).batch(np.arange(4))
        for dataset in (with_actions, without)
    ]
    assert all(batch.actions is None for batch in batches)
    assert torch.equal(batches[0].require("frames")[0], batches[1].require("frames")[0])
    assert BUTTONS == world.actions != world.data_actions
