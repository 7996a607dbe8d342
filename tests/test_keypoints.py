"""Keypoints as latents."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from data.batch import Batch
from models.tokenizers import keypoints
from models.tokenizers.keypoints import Keypoints, KeypointsConfig

SMALL = KeypointsConfig(image_size=(32, 32), num_keypoints=6, channels=16, num_res_blocks=1)


def squares(places: Tensor, size: tuple[int, int] = (32, 32)) -> Tensor:
    """White frames with a dark square of 6 pixels whose corner is at (row, column)."""
    frames = torch.full((len(places), 3, *size), 255, dtype=torch.uint8)
    for frame, (row, column) in zip(frames, places.tolist(), strict=True):
        frame[:, row : row + 6, column : column + 6] = 40
    return frames


@pytest.mark.parametrize("size", [(32, 32), (32, 48)])
def test_frames_are_encoded_and_decoded(size: tuple[int, int]) -> None:
    model = Keypoints(
        KeypointsConfig(image_size=size, num_keypoints=6, channels=16, num_res_blocks=1)
    ).eval()
    frames = torch.randint(0, 256, (5, 3, *size), dtype=torch.uint8)
    latents = model.encode(frames)
    assert latents.shape == (5, 1, 12) and latents.abs().max() <= 1
    drawn = model.decode(latents)
    assert drawn.shape == frames.shape and drawn.dtype == torch.uint8


def test_an_indivisible_image_size_is_refused() -> None:
    with pytest.raises(ValueError, match="twice --stride 4"):
        KeypointsConfig(image_size=(36, 32))


def test_keypoints_follow_a_moving_object() -> None:
    """A linear probe reads a square's position from the latents of held-out frames."""
    torch.manual_seed(0)
    model = Keypoints(SMALL).train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    history = []
    for _ in range(120):
        losses = model.loss(Batch(frames=squares(torch.randint(0, 26, (32, 2)))))
        optimizer.zero_grad()
        (losses["reconstruction"] + losses["motion_hinge"]).backward()
        optimizer.step()
        history.append({k: float(v.detach()) for k, v in losses.items()})
    assert history[-1]["reconstruction"] < 0.3 * history[0]["reconstruction"]
    assert history[-1]["active_keypoints"] == SMALL.num_keypoints
    places = torch.randint(0, 26, (200, 2), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        latents = model.eval().encode(squares(places))[:, 0]
    x = torch.cat([latents, torch.ones(200, 1)], 1)
    fit = torch.linalg.lstsq(x[:100], places[:100].float()).solution
    error = (x[100:] @ fit - places[100:]).abs().mean()
    assert error < 2  # pixels; predicting the mean gives 6.5


def test_the_motion_hinge_acts_on_still_keypoints_only() -> None:
    torch.manual_seed(0)
    model = Keypoints(SMALL)
    still = squares(torch.full((8, 2), 13))
    losses = model.loss(Batch(frames=still))
    torch.testing.assert_close(losses["motion_hinge"].detach(), torch.tensor(SMALL.min_std - 1e-3))
    assert losses["active_keypoints"] == 0
    anywhere = squares(torch.randint(0, 26, (32, 2)))
    assert model.loss(Batch(frames=anywhere))["motion_hinge"] == 0  # all keypoints move
    pushed = Keypoints(replace(SMALL, min_std=0.9))
    pushed.load_state_dict(model.state_dict())
    hinge = pushed.loss(Batch(frames=anywhere))["motion_hinge"]
    (gradient,) = torch.autograd.grad(hinge, [pushed.stem.weight])
    assert hinge > 0 and gradient.abs().max() > 0


def test_keypoints_and_gradients_do_not_depend_on_the_parts_of_a_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model, results = Keypoints(SMALL), []
    frames = squares(torch.randint(0, 26, (11, 2)))
    for part in (4, 11):
        monkeypatch.setattr(keypoints, "CPU_FRAMES", part)
        model.zero_grad()
        model.loss(Batch(frames=frames))["reconstruction"].backward()
        assert model.stem.weight.grad is not None
        results.append((model.encode(frames), model.stem.weight.grad.clone()))
    assert all(torch.equal(parts, whole) for parts, whole in zip(*results, strict=True))


def test_heatmaps_do_not_saturate_with_large_features() -> None:
    torch.manual_seed(0)
    model = Keypoints(SMALL)
    frames = squares(torch.randint(0, 26, (8, 2)))
    places = model.encode(frames)
    model.fuse.register_forward_hook(lambda *call: 1000 * call[-1])
    torch.testing.assert_close(model.encode(frames), places, atol=0.01, rtol=0)
