"""What a computation cannot be faster than: its products, its chunks, a copy."""

import numpy as np
import pytest
import torch
from torch import nn

from bench.peers import plain_reads
from bench.races.ceiling import share_of_ceiling
from bench.races.products import LinearsAlone, ProductsOf
from data.clips import Clips
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from models.layers.int8 import quantize_linears

LAYERS = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64))


def test_a_share_is_of_the_same_rounds():
    row = share_of_ceiling("area", "work", [2.0, 4.0, 5.0], [1.0, 3.0, 4.9], "products")
    assert row.ours == pytest.approx(75.0) and row.passed is False
    assert row.note == "3e+03 of 4e+03 ms" and row.baseline == "(products)"
    assert share_of_ceiling("area", "work", [1.0], [0.9], "products").passed


def test_all_products_of_a_step_are_repeated_with_their_shapes():
    x = torch.randn(8, 64)
    products = ProductsOf(lambda: LAYERS(x).sum().backward())
    LAYERS.zero_grad()
    sizes = sorted(
        args[-2].shape[0] * args[-2].shape[1] * args[-1].shape[1] for _, args, _ in products.calls
    )
    # two products forward; of the input of the first one no gradient is asked
    assert sizes == [8 * 64 * 96] * 5
    products()


@pytest.mark.parametrize("int8", [False, True])
def test_linear_layers_are_repeated_as_often_as_they_were_asked(int8):
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)))
    if int8:
        quantize_linears(model)
    x, asked = torch.randn(8, 64), []

    def run() -> None:
        with torch.no_grad():
            for _ in range(4):
                model(x)

    alone = LinearsAlone(model, run, times=2, precision="fp32", compile_fn=None)
    assert len(alone.linears) == 3 and [tuple(y.shape) for y in alone.inputs] == [(8, 64)]
    for linear in alone.linears:
        linear.register_forward_hook(lambda *_: asked.append(1))
    alone()
    assert len(asked) == 2 * 4 * 3


def test_plain_reads_give_the_clips_and_nothing_less(tmp_path, monkeypatch):
    dataset = EpisodeDataset(write_toy_shards(tmp_path, 8, 40, size=64))
    memory, shards = (Clips(dataset, "train", 16, memory_limit=m) for m in (2**62, 0))
    wanted = np.random.default_rng(0).integers(0, len(memory), 32)
    truth = memory.batch(wanted).frames
    assert torch.equal(plain_reads.PlainCopy(memory)(wanted), truth)
    chunks = plain_reads.PlainChunks(shards)
    assert torch.equal(chunks(wanted), truth)
    chunks.most_kept = 1  # what is pushed out is read again
    chunks.kept.clear()
    assert torch.equal(chunks(wanted), truth) and len(chunks.kept) == 1
    monkeypatch.setattr(plain_reads.blosc, "decompress", lambda packed, out: None)
    assert not torch.equal(chunks(wanted), truth)
