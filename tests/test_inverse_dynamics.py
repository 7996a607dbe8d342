"""Inverse dynamics: the action between two consecutive frames."""

from pathlib import Path

import pytest
import torch

from data.clips import Clips
from data.shards.episode_dataset import EpisodeDataset
from data.toy import KEYS, write_toy_shards
from evaluation.measures.controllability import compare
from evaluation.readers.fit_inverse_dynamics import augment, cached_idm, fit_idm, label_weights
from evaluation.readers.inverse_dynamics import InverseDynamics

SIZE = 16


def videos(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images that shift like a camera's: (n, 2, 3, H, W) uint8, and the choices (n, 1, F)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, SIZE // 2, SIZE // 2, generator=generator)
    before = torch.nn.functional.interpolate(coarse, scale_factor=2, mode="bilinear")
    codes = torch.randint(0, KEYS.size, (count, 1), generator=generator)
    choices = KEYS.unravel(codes)
    pairs = []
    for image, (across, move) in zip(before, choices[:, 0].tolist(), strict=True):
        after = image.roll((across - 2, (0, -3, 3)[move]), (2, 1))
        pairs.append(torch.stack([image, after]))
    return (torch.stack(pairs) * 255).to(torch.uint8), choices


@pytest.mark.slow
def test_it_learns_the_direction_of_shifts():
    torch.manual_seed(0)
    idm = InverseDynamics(KEYS)
    frames, choices = videos(2000, 0)
    fit_idm(idm, frames, choices, steps=220, batch_size=24, progress=False)
    held_out, truth = videos(300, 1)
    metrics = compare(KEYS, truth, *idm.predict(held_out))
    assert metrics["correlation"]["across"] > 0.3
    assert min(metrics["f1"].values()) > 0.8
    backwards = compare(KEYS, truth, *idm.predict(held_out.flip(1)))
    assert backwards["correlation"]["across"] < -0.3


def test_actions_are_predicted_between_all_frames_in_order():
    idm = InverseDynamics(KEYS)
    video = torch.randint(0, 256, (2, 4, 3, SIZE, SIZE)).to(torch.uint8)
    choices, turns = idm.predict(video)
    assert choices.shape == (2, 3, 2) and turns.shape == (2, 3, 1)
    alone, turn = idm.predict(video[1:, 2:])
    assert torch.equal(choices[1:, 2:], alone)
    assert torch.allclose(turns[1:, 2:], turn, atol=1e-5)
    assert turns.abs().max() < 2


def test_rare_labels_weigh_more_but_less_than_inversely():
    choices = torch.tensor([[0, 0]] * 16 + [[1, 2]] * 4)
    across, move = label_weights(choices, (5, 3))
    assert float(across[1] / across[0]) == pytest.approx(2)
    assert torch.isfinite(across).all() and float(move[2] / move[0]) == pytest.approx(2)


def test_both_frames_of_a_pair_are_blurred_or_neither():
    pairs = torch.rand(60, 1, 3, SIZE, SIZE).expand(-1, 2, -1, -1, -1)
    blurred = augment(pairs, torch.Generator().manual_seed(0))
    changed = (blurred != pairs).flatten(2).any(2)
    assert torch.equal(changed[:, 0], changed[:, 1])
    assert 8 < int(changed[:, 0].sum()) < 32


def test_inverse_dynamics_are_trained_once_for_a_dataset(tmp_path: Path):
    dataset = EpisodeDataset(write_toy_shards(tmp_path / "shards", factored=True, size=16))
    path = tmp_path / "report" / "idm.pt"
    first = cached_idm(path, dataset, steps=2)
    written = path.stat().st_mtime_ns
    second = cached_idm(path, dataset, steps=2)
    assert path.stat().st_mtime_ns == written
    frames = Clips(dataset, "test", clip_length=3).batch(torch.arange(4).numpy()).frames
    assert torch.equal(first.predict(frames)[1], second.predict(frames)[1])
    path.unlink()
    again = cached_idm(path, dataset, steps=2)
    assert torch.equal(first.predict(frames)[1], again.predict(frames)[1]), (
        "training is deterministic"
    )
    cached_idm(path, dataset, steps=3)
    assert path.stat().st_mtime_ns != written
