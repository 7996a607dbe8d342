"""The EMA codebook equals vector-quantize-pytorch's, and dead codes are reset."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from test_sigreg import free_port
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from vector_quantize_pytorch import VectorQuantize

from kernels import nearest_code
from models.tokenizers.codebook import init_codebook, reset_dead_codes, update_codebook_ema


def quantizer(codes: int = 16, kmeans: bool = True) -> Any:
    return VectorQuantize(
        dim=4, codebook_size=codes, decay=0.9, kmeans_init=kmeans,
        threshold_ema_dead_code=0.1,  # type: ignore[arg-type]
    ).train()  # fmt: skip


def weights_of(layer: Any, vectors: Tensor) -> Tensor:
    codes, counts, _ = nearest_code(vectors, layer.codebook.float())
    return 1 / counts[codes].float()


def test_the_codebook_update_equals_the_librarys():
    torch.manual_seed(0)
    ours = quantizer()
    theirs = copy.deepcopy(ours)
    vectors = torch.randn(256, 4)
    torch.manual_seed(0)
    init_codebook(ours, vectors)
    torch.manual_seed(0)
    theirs._codebook.init_embed_(vectors[torch.multinomial(torch.ones(256), 64)][None])
    for step in range(30):
        vectors = (1 + 0.1 * step) * torch.randn(256, 4)
        weights = weights_of(theirs, vectors)
        torch.manual_seed(step)
        update_codebook_ema(ours, vectors, weights)
        torch.manual_seed(step)
        theirs(vectors[torch.multinomial(weights, 64)][None])
        assert theirs._codebook.cluster_size.min() > 0.1, "a code is dead"
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-5)


def dying(codes: int = 16) -> tuple[Any, Tensor]:
    """A codebook of which two codes of three are dead, and which are."""
    torch.manual_seed(0)
    book = quantizer(codes, kmeans=False)._codebook
    dead = torch.arange(codes) % 3 > 0
    book.cluster_size.copy_(torch.where(dead, 0.01, 5.0))
    return book, dead


@pytest.mark.parametrize("vectors", [100, 16, 5])
def test_only_dead_codes_are_replaced_by_vectors_of_the_batch(vectors):
    book, dead = dying()
    before = copy.deepcopy(book.state_dict())
    batch = torch.randn(vectors, 4)
    reset_dead_codes(book, batch)
    took = (book.embed[0] != before["embed"][0]).any(-1)
    assert took.sum() == min(int(dead.sum()), vectors)  # with fewer vectors, some wait
    assert not (took & ~dead).any()
    for name in ("embed", "embed_avg", "cluster_size"):
        same, old = getattr(book, name)[0][~took], before[name][0][~took]
        assert torch.equal(same, old), name
    taken = [(batch == row).all(-1).nonzero().item() for row in book.embed[0][took]]
    assert len(set(taken)) == len(taken), "a vector is used twice"
    assert torch.equal(book.cluster_size[0][took], torch.full((int(took.sum()),), 0.1))
    assert torch.allclose(book.embed_avg[0][took], 0.1 * book.embed[0][took])


def test_dead_codes_are_used_again_after_a_reset():
    torch.manual_seed(0)
    layer = quantizer()
    corners = 10.0 * torch.cartesian_prod(*[torch.arange(2.0)] * 4)
    for step in range(120):  # k-means sees a spot that most codes do not leave by themselves
        vectors = corners.repeat(16, 1) if step else torch.full((256, 4), -5.0)
        vectors = vectors + 0.1 * torch.randn_like(vectors)
        if step:
            update_codebook_ema(layer, vectors, weights_of(layer, vectors))
        else:
            init_codebook(layer, vectors)
    _, counts, _ = nearest_code(corners, layer.codebook.float())
    assert (counts > 0).sum() >= 8, "without resets 3 are used"


def test_the_update_compiles():
    """Also with as many vectors as codes, where torch.compile fails on k-means."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer, vectors = quantizer(), torch.randn(64, 4)

    @torch.compile
    def start() -> None:  # compiled by itself, `disable` would have no effect
        init_codebook(layer, vectors)

    start()
    assert layer._codebook.initted and layer.codebook.abs().sum(-1).min() > 0
    before = layer.codebook.clone()
    update = torch.compile(update_codebook_ema, backend="aot_eager", fullgraph=True)
    update(layer, vectors, torch.ones(64))
    assert not torch.equal(layer.codebook, before)
    torch._dynamo.reset()


def _reset(rank: int, port: int, found: Tensor) -> None:
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    book, _ = dying()
    assert book.use_ddp
    torch.manual_seed(1)
    reset_dead_codes(book, 100 * rank + torch.rand(32, 4))
    found[rank] = book.embed[0]
    dist.destroy_process_group()


def test_processes_reset_the_same_codes_with_vectors_of_each():
    found = torch.zeros(2, 16, 4).share_memory_()
    spawn(_reset, (free_port(), found), nprocs=2)
    assert torch.equal(found[0], found[1])
    _, dead = dying()
    of_second = found[0][dead] >= 100
    assert of_second.all(-1).sum() == dead.sum() // 2 and of_second.any(-1).sum() == dead.sum() // 2
