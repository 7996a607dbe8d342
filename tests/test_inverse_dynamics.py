"""The ruler that reads actions from two frames in a row."""

from pathlib import Path

import pytest
import torch

from data.clips import Clips
from data.shards import EpisodeDataset
from data.toy import KEYS, write_toy_shards
from evaluation.measures.controllability import compare
from evaluation.readers.fit_inverse_dynamics import augment, cached_idm, fit, label_weights
from evaluation.readers.inverse_dynamics import InverseDynamics

SIZE = 16


def films(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures that turn like a camera's: (n, 2, 3, H, W) uint8, and the choices (n, 1, F)."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, SIZE // 2, SIZE // 2, generator=random)
    before = torch.nn.functional.interpolate(coarse, scale_factor=2, mode="bilinear")
    codes = torch.randint(0, KEYS.size, (count, 1), generator=random)
    choices = KEYS.unravel(codes)
    pairs = []
    for picture, (across, move) in zip(before, choices[:, 0].tolist(), strict=True):
        after = picture.roll((across - 2, (0, -3, 3)[move]), (2, 1))
        pairs.append(torch.stack([picture, after]))
    return (torch.stack(pairs) * 255).to(torch.uint8), choices


def test_it_learns_which_way_pictures_turn():
    torch.manual_seed(0)
    inverse = InverseDynamics(KEYS)
    shown, choices = films(2000, 0)
    fit(inverse, shown, choices, steps=220, batch_size=24, progress=False)
    others, told = films(300, 1)
    figures = compare(KEYS, told, *inverse.predict(others))
    assert figures["correlation"]["across"] > 0.3
    assert min(figures["f1"].values()) > 0.8
    backwards = compare(KEYS, told, *inverse.predict(others.flip(1)))
    assert backwards["correlation"]["across"] < -0.3


def test_films_are_read_between_all_their_frames_in_order():
    inverse = InverseDynamics(KEYS)
    film = torch.randint(0, 256, (2, 4, 3, SIZE, SIZE)).to(torch.uint8)
    choices, turns = inverse.predict(film)
    assert choices.shape == (2, 3, 2) and turns.shape == (2, 3, 1)
    alone, turn = inverse.predict(film[1:, 2:])
    assert torch.equal(choices[1:, 2:], alone)
    assert torch.allclose(turns[1:, 2:], turn, atol=1e-5)
    assert turns.abs().max() < 2


def test_rare_labels_weigh_more_but_not_as_much_as_they_are_rare():
    choices = torch.tensor([[0, 0]] * 16 + [[1, 2]] * 4)
    across, move = label_weights(choices, (5, 3))
    assert float(across[1] / across[0]) == pytest.approx(2)
    assert torch.isfinite(across).all() and float(move[2] / move[0]) == pytest.approx(2)


def test_both_frames_of_a_pair_are_softened_or_neither():
    pairs = torch.rand(60, 1, 3, SIZE, SIZE).expand(-1, 2, -1, -1, -1)
    soft = augment(pairs, torch.Generator().manual_seed(0))
    changed = (soft != pairs).flatten(2).any(2)
    assert torch.equal(changed[:, 0], changed[:, 1])
    assert 8 < int(changed[:, 0].sum()) < 32


def test_an_inverse_model_is_trained_once_for_its_recordings(tmp_path: Path):
    recordings = EpisodeDataset(write_toy_shards(tmp_path / "shards", factored=True, size=16))
    path = tmp_path / "report" / "inverse.pt"
    first = cached_idm(path, recordings, steps=2)
    written = path.stat().st_mtime_ns
    second = cached_idm(path, recordings, steps=2)
    assert path.stat().st_mtime_ns == written
    frames = Clips(recordings, "test", clip_length=3).batch(torch.arange(4).numpy()).frames
    assert torch.equal(first.predict(frames)[1], second.predict(frames)[1])
    path.unlink()
    again = cached_idm(path, recordings, steps=2)
    assert torch.equal(first.predict(frames)[1], again.predict(frames)[1]), "made alike every time"
    cached_idm(path, recordings, steps=3)
    assert path.stat().st_mtime_ns != written
