"""Fit a readout on what a trained world's layers give of the training clips."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from data.clips import Clips
from data.shards.episode_dataset import EpisodeDataset
from evaluation.readers.fit import fit
from models.hooks.layer_readout import LayerReadout
from models.hooks.loss_with_layers import loss_with_layers
from models.layers.precision import autocast
from models.world import World
from pipeline.batches.clip_batches import ClipBatches


def fit_layer_readout(
    world: World,
    dataset: EpisodeDataset,
    paths: Sequence[str],
    steps: int = 400,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> LayerReadout:
    """Train a readout of the layers of `world.dynamics` at `paths`; the world does not change."""
    model = world.dynamics.eval()
    clips = Clips(dataset, "train", model.clip_length)
    batches = ClipBatches(clips, (model.needs | {"frames"}) - {"latents"})
    generator = np.random.default_rng(seed)

    def example() -> tuple[dict[str, Tensor], Tensor]:
        """Outputs of some frames by path, (n, K, D), and the frames."""
        batch = batches.batch(generator.integers(len(clips), size=batch_size)).to(world.device)
        assert batch.frames is not None
        with torch.no_grad(), autocast(world.device, world.precision):
            if "latents" in model.needs:
                batch.latents = world.encode_clip(batch.frames)
            _, outputs, frames = loss_with_layers(model, batch, paths)
        shown = batch.frames[:, frames.start : frames.stop : frames.step].flatten(0, 1)
        return {path: output.flatten(0, 1) for path, output in outputs.items()}, shown

    torch.manual_seed(seed)
    readout = LayerReadout(example()[0], world.latents.grid, world.image_size).to(world.device)
    fit(
        readout,
        lambda: readout.loss(*example()),
        steps,
        learning_rate=3e-3,
        weight_decay=0.01,
        max_grad_norm=1.0,
        progress="readout" if progress else None,
    )
    return readout
