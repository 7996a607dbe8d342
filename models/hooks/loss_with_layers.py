"""A dynamics model's loss on a batch, and what its layers gave of each frame meanwhile.

Letters: B clips, T frames, C frames that a layer's output stands for, K tokens of a frame, D width.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from data.batch import Batch
from models.dynamics.dynamics import Dynamics
from models.hooks.layer_collector import LayerCollector
from models.method import Losses


def loss_with_layers(
    model: Dynamics, batch: Batch, paths: Iterable[str], detach: bool = True
) -> tuple[Losses, dict[str, Tensor], range]:
    """Give the model's losses, the outputs of the layers at `paths`, (B, C, K, D) each, and the C
    frames of the clips that they stand for.

    Where a layer is called more than once, its first output counts: it is of real frames.  What a
    method computes under `no_grad`, such as scheduled sampling, does not.
    """
    with (
        torch.enable_grad(),
        LayerCollector(model, paths, detach, keep="first", with_grad=True) as layers,
    ):
        losses = model.loss(batch)
    given = batch.latents if batch.latents is not None else batch.frames
    assert given is not None
    frames = model.layer_frames(given.shape[1])
    outputs = {p: by_frame(layers[p], len(batch), frames, p) for p in layers.layers}
    return losses, outputs, frames


def by_frame(output: Tensor, batch_size: int, frames: range, path: str) -> Tensor:
    """What a layer gives, as (B, C, K, D): of itself, of (B, C K, D), tokens of a frame after one
    another, or of (B C, ...), frames alone.  ValueError where it is laid out in no such way."""
    if output.dim() > 3 and output.shape[:2] == (batch_size, len(frames)):
        return output.flatten(3)
    if output.dim() == 3 and len(output) == batch_size and output.shape[1] % len(frames) == 0:
        return output.unflatten(1, (len(frames), -1))
    if len(output) == batch_size * len(frames) and len(frames) > 1 and output.dim() > 1:
        by_clip = output.unflatten(0, (batch_size, len(frames)))
        return by_clip[:, :, None] if output.dim() == 2 else by_clip.flatten(3)
    raise ValueError(
        f"{path} gives {tuple(output.shape)} of {batch_size} clips, which are not the "
        f"{len(frames)} frames of each; name a layer that gives (clips, frames and tokens, width)"
    )
