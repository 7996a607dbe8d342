"""Keypoints as latents."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.tokenizers.keypoints import Keypoints, KeypointsConfig

SMALL = KeypointsConfig(image_size=(32, 32), num_keypoints=6, channels=16, num_res_blocks=1)


def squares(places: Tensor, size: tuple[int, int] = (32, 32)) -> Tensor:
    """White frames with a dark square of 6 pixels whose corner is at (row, column)."""
    frames = torch.full((len(places), 3, *size), 255, dtype=torch.uint8)
    for frame, (row, column) in zip(frames, places.tolist(), strict=True):
        frame[:, row : row + 6, column : column + 6] = 40
    return frames


@pytest.mark.parametrize("size", [(32, 32), (32, 48)])
def test_frames_go_there_and_back(size: tuple[int, int]) -> None:
    model = Keypoints(
        KeypointsConfig(image_size=size, num_keypoints=6, channels=16, num_res_blocks=1)
    ).eval()
    frames = torch.randint(0, 256, (5, 3, *size), dtype=torch.uint8)
    latents = model.encode(frames)
    assert latents.shape == (5, 1, 12) and latents.abs().max() <= 1
    drawn = model.decode(latents)
    assert drawn.shape == frames.shape and drawn.dtype == torch.uint8


def test_a_grid_with_a_rest_is_refused() -> None:
    with pytest.raises(ValueError, match="coarse cells of 8"):
        KeypointsConfig(image_size=(36, 32))


def test_places_follow_what_moves() -> None:
    """Trained on a square that is anywhere, latents tell where it is on places never shown."""
    torch.manual_seed(0)
    model = Keypoints(SMALL).train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    history = []
    for _ in range(120):
        losses = model.loss(squares(torch.randint(0, 26, (32, 2))))
        optimizer.zero_grad()
        (losses["reconstruction"] + losses["resting"]).backward()
        optimizer.step()
        history.append({k: float(v.detach()) for k, v in losses.items()})
    assert history[-1]["reconstruction"] < 0.3 * history[0]["reconstruction"]
    assert history[-1]["moving"] == SMALL.num_keypoints
    places = torch.randint(0, 26, (200, 2), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        latents = model.eval().encode(squares(places))[:, 0]
    x = torch.cat([latents, torch.ones(200, 1)], 1)
    fit = torch.linalg.lstsq(x[:100], places[:100].float()).solution
    error = (x[100:] @ fit - places[100:]).abs().mean()
    assert error < 2  # pixels; not knowing at all is 6.5


def test_resting_keypoints_are_pushed_and_moving_ones_are_not() -> None:
    torch.manual_seed(0)
    model = Keypoints(SMALL)
    still = squares(torch.full((8, 2), 13))
    losses = model.loss(still)
    torch.testing.assert_close(losses["resting"].detach(), torch.tensor(SMALL.min_std - 1e-3))
    assert losses["moving"] == 0
    anywhere = squares(torch.randint(0, 26, (32, 2)))
    assert model.loss(anywhere)["resting"] == 0  # not yet at rest
    pushed = Keypoints(replace(SMALL, min_std=0.9))
    pushed.load_state_dict(model.state_dict())
    resting = pushed.loss(anywhere)["resting"]
    (gradient,) = torch.autograd.grad(resting, [pushed.stem.weight])
    assert resting > 0 and gradient.abs().max() > 0


def test_maps_do_not_saturate_as_what_is_beneath_them_grows() -> None:
    torch.manual_seed(0)
    model = Keypoints(SMALL)
    frames = squares(torch.randint(0, 26, (8, 2)))
    places = model.encode(frames)
    model.fuse.register_forward_hook(lambda *call: 1000 * call[-1])
    torch.testing.assert_close(model.encode(frames), places, atol=0.01, rtol=0)
