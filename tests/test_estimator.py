"""The state estimator."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data.pusht.simulator import STATE_NAMES, PushT
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from evaluation.readers.estimator import (
    HEATMAP_SIZE,
    LAYOUTS,
    distances,
    keypoints_to_state,
    soft_argmax,
    state_to_keypoints,
)
from evaluation.readers.fit_estimator import (
    augment,
    cached_estimator,
    fit_estimator,
    layout_of,
    sample_frames,
)

PUSHT = LAYOUTS[STATE_NAMES]


def states(count: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    positions = rng.uniform(120, 390, (count, 4))
    return torch.tensor(np.hstack([positions, rng.uniform(0, 2 * np.pi, (count, 1))])).float()


def test_keypoints_and_states_are_inverse():
    truth = states(50)
    errors = distances(PUSHT, truth, keypoints_to_state(PUSHT, state_to_keypoints(PUSHT, truth), 5))
    assert errors["agent_px"].max() < 1e-2
    assert errors["block_px"].max() < 1e-2
    assert errors["block_degrees"].max() < 1e-2


def test_angles_are_compared_around_the_circle():
    nearly, just = torch.zeros(1, 5), torch.zeros(1, 5)
    nearly[0, 4], just[0, 4] = 2 * np.pi - 0.01, 0.01
    assert float(distances(PUSHT, nearly, just)["block_degrees"]) == pytest.approx(1.146, abs=0.01)


def test_a_soft_argmax_finds_the_middle_of_a_peak():
    logits = torch.full((1, 1, HEATMAP_SIZE, HEATMAP_SIZE), -50.0)
    logits[0, 0, 4, 10] = logits[0, 0, 4, 11] = 50.0  # row 4, columns 10 and 11
    assert soft_argmax(logits)[0, 0].tolist() == pytest.approx(
        [11 / HEATMAP_SIZE, 4.5 / HEATMAP_SIZE]
    )


def test_keypoints_stay_on_their_pixels_when_images_are_augmented():
    size, count = 64, 32
    pixels = torch.randint(8, 56, (count, 2))
    x = torch.zeros(count, 3, size, size)
    x[torch.arange(count), :, pixels[:, 1], pixels[:, 0]] = 1.0
    points = ((pixels + 0.5) / size)[:, None].expand(count, 5, 2)
    augmented, positions = augment(PUSHT, x, points, torch.Generator().manual_seed(0))
    brightest = augmented[:, 0].flatten(1).argmax(1)
    found = torch.stack([brightest % size, brightest // size], 1)
    peak = augmented[torch.arange(count), 0, found[:, 1], found[:, 0]]
    sharp = peak == 1  # the peak of a blurred image is flat: its position is not one pixel
    assert sharp.sum() > count / 3
    assert torch.allclose(positions[sharp, 0] * size - 0.5, found[sharp].float(), atol=1e-4)


def test_a_mirrored_block_is_a_block_in_another_pose():
    points = state_to_keypoints(PUSHT, states(64))
    x = torch.zeros(64, 3, 64, 64)
    _, turned = augment(PUSHT, x, points, torch.Generator().manual_seed(0))
    again = state_to_keypoints(PUSHT, keypoints_to_state(PUSHT, turned, 5))
    assert torch.allclose(again, turned, atol=1e-4)


def test_it_learns_push_t_from_a_few_frames():
    world, truth = PushT(64), states(500)
    frames = np.empty((len(truth), 64, 64, 3), np.uint8)
    for row, state in enumerate(truth.numpy()):
        world.reset(state)
        frames[row] = world.render(64)
    images = torch.from_numpy(frames).permute(0, 3, 1, 2)
    estimator = fit_estimator(
        PUSHT, images[:400], truth[:400], steps=90, batch_size=24, progress=False
    )
    errors = estimator.errors(truth[400:], estimator.predict(images[400:]))
    assert errors["agent_px"].median() < 10
    assert errors["block_px"].median() < 15
    assert errors["block_degrees"].median() < 10
    large = torch.nn.functional.interpolate(images[400:].float(), scale_factor=1.5, mode="area")
    again = estimator.errors(truth[400:], estimator.predict(large.round().to(torch.uint8)))
    assert again["agent_px"].median() < 12, "one estimator serves other resolutions"


def test_frames_are_sampled_with_their_own_states(tmp_path: Path):
    dataset = EpisodeDataset(write_toy_shards(tmp_path / "shards"))
    frames, found, episodes = sample_frames(dataset, "train", 50)
    assert frames.shape == (50, 3, 32, 32) and len(set(episodes)) > 3
    for row in range(0, 50, 7):
        episode = int(episodes[row])
        all_states = dataset.read(episode, "states")
        step = int(np.abs(all_states - found[row].numpy()).sum(1).argmin())
        image = dataset.read(episode, "frames", step, step + 1)[0]
        assert np.array_equal(frames[row].permute(1, 2, 0).numpy(), image)


def test_an_estimator_is_trained_once_for_a_dataset(tmp_path: Path):
    dataset = EpisodeDataset(write_toy_shards(tmp_path / "shards"))
    path = tmp_path / "report" / "estimator.pt"
    first = cached_estimator(path, dataset, steps=2)
    written = path.stat().st_mtime_ns
    second = cached_estimator(path, dataset, steps=2)
    assert first is not None and second is not None
    assert path.stat().st_mtime_ns == written
    frames = sample_frames(dataset, "test", 4)[0]
    assert torch.equal(first.predict(frames), second.predict(frames))


def test_without_known_states_there_is_no_estimator(tmp_path: Path):
    dataset = EpisodeDataset(write_toy_shards(tmp_path / "shards"))
    dataset.state_names = ("position", "speed")
    assert layout_of(dataset) is None
    assert cached_estimator(tmp_path / "estimator.pt", dataset, steps=1) is None
