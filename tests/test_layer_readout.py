"""Frames from chosen layers: a decoder that looks into a model and leaves it as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_predictor import GRID, episode, predictor
from torch import Tensor, nn
from untrained_run import write_run

from data.batch import Batch
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from evaluation.readers.fit_layer_readout import fit_layer_readout
from models.hooks.layer_collector import LayerCollector
from models.hooks.layer_readout import LayerReadout
from models.hooks.loss_with_layers import loss_with_layers
from pipeline.inference.load_world import load_world

LAYERS = ["transformer.layers.0", "transformer.layers.1"]


def train(with_readout: bool, detach: bool = True) -> tuple[list[Tensor], list[float]]:
    """Train dynamics with dropout for three steps: each step's gradients, and what a readout that
    is trained at its side loses."""
    model = predictor(GRID).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.2
    seen, acts = episode(GRID)
    frames = torch.randint(0, 256, (3, 10, 3, 16, 16), dtype=torch.uint8)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    kept, readout, own, errors = [], None, None, []
    for step in range(3):
        torch.manual_seed(step)
        batch = Batch(None, seen, acts)
        if not with_readout:
            losses = model.loss(batch)
        else:
            losses, outputs, which = loss_with_layers(model, batch, LAYERS, detach)
            given = {path: output.flatten(0, 1) for path, output in outputs.items()}
            if readout is None or own is None:
                readout = LayerReadout(given, GRID.grid, (16, 16), channels=8)
                own = torch.optim.AdamW(readout.parameters(), 1e-2)
            error = readout.loss(
                given, frames[:, which.start : which.stop : which.step].flatten(0, 1)
            )
            errors.append(float(error.detach()))
            if detach:
                error.backward()
                own.step()
                own.zero_grad()
            else:
                losses = losses | {"readout": error}
        optimizer.zero_grad()
        sum(losses.values(), torch.zeros(())).backward()
        kept += [v.detach().clone() for name, v in losses.items() if name != "readout"]
        kept += [p.grad.clone() for p in model.parameters() if p.grad is not None]
        optimizer.step()
    return kept, errors


def test_losses_and_gradients_of_the_dynamics_are_bit_equal_with_and_without_it():
    alone, watched = train(with_readout=False)[0], train(with_readout=True)
    assert len(alone) == len(watched[0]) > 30
    assert all(torch.equal(a, b) for a, b in zip(alone, watched[0], strict=True))
    assert watched[1][-1] < watched[1][0]


def test_where_it_is_asked_for_it_is_one_of_the_losses():
    alone, asked = train(with_readout=False)[0], train(with_readout=True, detach=False)[0]
    assert not all(torch.equal(a, b) for a, b in zip(alone, asked, strict=True))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_toy_shards(folder / "shards", episodes=12)
    return write_run(folder, EpisodeDataset(folder / "shards"), False, method="keypoints")


def test_a_fitted_readout_draws_what_the_frame_shows_and_the_world_is_unchanged(run: Path):
    world, dataset = load_world(run, "cpu"), EpisodeDataset(run / "shards")
    before = {name: value.clone() for name, value in world.state_dict().items()}
    readout = fit_layer_readout(world, dataset, LAYERS[:1], steps=150, batch_size=8, progress=False)
    assert all(torch.equal(v, before[k]) for k, v in world.state_dict().items())
    frames = torch.from_numpy(dataset.read(dataset.episodes("test")[0], "frames"))
    frames = frames.permute(0, 3, 1, 2)[:8]
    with torch.no_grad(), LayerCollector(world.dynamics, LAYERS[:1]) as layers:
        state = world.reset(frames[:, None], world.actions.empty(8, 0))
        world.step(state, torch.zeros(8, 2))
        drawn = readout.draw(layers.take())
    assert drawn.shape == frames.shape and drawn.dtype == torch.uint8
    error = (drawn.float() - frames.float()).square().mean()
    others = (drawn.float() - frames.float().roll(4, 0)).square().mean()
    assert error < 0.95 * others  # one image for all would be as near to others


def test_layers_of_other_tokens_are_refused_together():
    outputs = {"a": torch.zeros(2, 4, 3), "b": torch.zeros(2, 5, 3)}
    with pytest.raises(ValueError, match=r"layers give a: \(2, 4, 3\), b: \(2, 5, 3\); a readout"):
        LayerReadout(outputs, (2, 2), (16, 16))
    one = LayerReadout({"b": outputs["b"]}, (2, 2), (16, 16), channels=8)
    assert one({"b": outputs["b"]}).shape == (2, 3, 16, 16)
