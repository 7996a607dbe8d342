<<<<<<< HEAD
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
from evaluation.measures.latent_actions import measure_latent_actions
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
=======
"""The latent action model: codes are of their own pair of frames, and a collapse is said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

<<<<<<<< HEAD:tests/test_latent_actions.py
from models.dynamics.latent_actions import SETTLED_STEPS, LatentActionConfig, LatentActionModel

CONFIG = LatentActionConfig(
    num_actions=6, dim=2, downsample=1, channels=16, num_layers=2, vq_start_step=3
)
========
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from evaluation.measures.latent_action_measures import measure_latent_actions
from evaluation.readers.label_budget import cached_action_map, measure_action_map
from evaluation.readers.transitions import directions, read_motion, read_transitions
>>>>>>>> w-video:tests/test_latent_action_measures.py


def a_model(**changes: Any) -> LatentActionModel:
    torch.manual_seed(0)
    return LatentActionModel(replace(CONFIG, **changes), (16, 16))


def some_frames(clips: int = 2, frames: int = 5, seed: int = 1) -> Tensor:
    torch.manual_seed(seed)
    return torch.randint(0, 256, (clips, frames, 3, 16, 16), dtype=torch.uint8)


def moving_dots(clips: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pairs of frames, (B, 2, 3, 16, 16), in which a dot moves, and which of four ways."""
    rng = torch.Generator().manual_seed(seed)
    place = torch.randint(3, 12, (clips, 2), generator=rng)
    way = torch.randint(0, 4, (clips,), generator=rng)
    step = torch.tensor([[0, 2], [0, -2], [2, 0], [-2, 0]])[way]
    frames = torch.full((clips, 2, 3, 16, 16), 255, dtype=torch.uint8)
    for t, at in enumerate((place, place + step)):
        for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
            frames[torch.arange(clips), t, :, at[:, 0] + dy, at[:, 1] + dx] = 0
    return frames, way


def trained(model: LatentActionModel, steps: int) -> dict[str, float]:
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.0)
    losses: dict[str, Tensor] = {}
    for step in range(steps):
        losses, _ = model.train().loss(moving_dots(64, step)[0])
        optimizer.zero_grad()
        sum((v for v in losses.values() if v.requires_grad), torch.zeros(())).backward()
        optimizer.step()
        with torch.no_grad():
            model.after_step()
    return {name: float(value.detach()) for name, value in losses.items()}


@pytest.mark.parametrize("frame", [0, 1, 2, 3, 4])
def test_an_action_is_of_its_own_two_frames_and_of_no_other(frame: int):
    """The action between t and t + 1 changes with frame t + 1, and not with frame t + 2."""
    model, frames = a_model().eval(), some_frames()
    other = frames.clone()
    other[:, frame] = some_frames(seed=2)[:, frame]
    with torch.no_grad():
        different = (model.vectors(frames) - model.vectors(other)).abs().amax((0, 2)) > 1e-4
    assert different.nonzero().flatten().tolist() == [t for t in (frame - 1, frame) if 0 <= t < 4]


def test_an_action_does_the_same_wherever_it_is_done():
    """Neither encoder nor decoder knows places: a pair of frames that is shifted has the same
    action, and the same change, shifted."""
    model, pairs = a_model().eval(), moving_dots(16, seed=0)[0]
    torch.nn.init.normal_(model.decoder.out.weight)
    wide = torch.full((16, 2, 3, 48, 48), 255, dtype=torch.uint8)
    here, there = wide.clone(), wide.clone()
    here[..., 12:28, 12:28], there[..., 16:32, 20:36] = pairs, pairs
    with torch.no_grad():
        actions = model.vectors(here)
        assert (actions[0] - actions[1]).abs().max() > 1e-3
        assert torch.allclose(model.vectors(there), actions, atol=1e-4)
        drawn = [model.predict(model._blur(x)[:, 0], actions[:, 0]) for x in (here, there)]
    inside = slice(16, 40)  # where no layer sees the edge
    moved = drawn[0].roll((4, 8), (2, 3))
    assert torch.allclose(moved[..., inside, inside], drawn[1][..., inside, inside], atol=1e-4)


@pytest.fixture(scope="module")
def learned() -> tuple[LatentActionModel, dict[str, float]]:
    model = a_model(vq_start_step=60)
    last = trained(model, 150)
    return model.eval(), last


def test_directions_become_codes_of_their_own(learned: tuple[LatentActionModel, dict[str, float]]):
    """Without labels, the four ways that a dot moves are told apart, in places never seen."""
    model, last = learned
    frames, way = moving_dots(400, seed=10**6)
    with torch.no_grad():
        codes = model.codes(frames)[:, 0]
    agreement = sum(int(torch.bincount(way[codes == c], minlength=4).max()) for c in codes.unique())
    assert agreement / len(way) > 0.8
    assert last["action_error"] < 0.2 and last["action_gain"] > 0.5
    assert model.advise(last) == []


def test_a_code_changes_with_the_frame_it_leads_to_and_not_with_the_one_after(
    learned: tuple[LatentActionModel, dict[str, float]],
):
    """The commonest bug: an action that is shifted by a step, and tells the past alone."""
    model = learned[0]
    pairs = moving_dots(64, seed=10**6)[0]
    frames = torch.cat([pairs, some_frames(64, 1)], dim=1)
    third, second = frames.clone(), frames.clone()
    third[:, 2], second[:, 1] = 255 - frames[:, 2], pairs[:, 1].flip(-1)
    with torch.no_grad():
        codes = model.codes(frames)[:, 0]
        assert torch.equal(model.codes(third)[:, 0], codes)
        assert (model.codes(second)[:, 0] != codes).float().mean() > 0.3


def test_a_collapse_and_a_deaf_decoder_are_said_once_and_not_before_codes_have_settled():
    model = a_model()
    bad = {"action_perplexity": 1.0, "action_gain": 0.001}
    assert model.advise(bad) == []
    model.trained_steps += CONFIG.vq_start_step + SETTLED_STEPS
    lines = model.advise(bad)
    assert len(lines) == 2 and "1.0 of 6 codes" in lines[0] and "deaf" in lines[1]
    assert all("--model.latent-actions." in line for line in lines)
    assert model.advise(bad) == []


def test_micro_batches_move_the_codebook_once_and_evaluation_never():
    model = a_model(vq_start_step=0)
    frames = some_frames(8)
    for part in frames.split(4):
        model.train().loss(part)
    assert not model.capturable
    with torch.no_grad():
        model.after_step()
    assert model.capturable and len(model.codebook.unique(dim=0)) > 1
    before = model.codebook.clone()
    model.eval().loss(frames)
    model.after_step()
    assert torch.equal(model.codebook, before)


def test_patches_that_do_not_tile_a_frame_are_refused():
    with pytest.raises(ValueError, match="not divisible into patches of 7"):
        a_model(downsample=7)
>>>>>>> w-video
