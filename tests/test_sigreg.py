"""SIGReg and the effective rank."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from models.layers.sigreg import effective_rank, sigreg


def test_the_effective_rank_counts_directions() -> None:
    torch.manual_seed(0)
    three = torch.randn(1000, 3) @ torch.linalg.qr(torch.randn(10, 10)).Q[:3]
    assert 2.8 < effective_rank(three) <= 3.01
    assert effective_rank(torch.ones(100, 4)) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda x: 0 * x,  # collapsed
        lambda x: 2 * x,
        lambda x: x + 0.5,
        lambda x: x[:, :1].expand_as(x),  # one direction
        lambda x: x.sign(),
    ],
)
def test_latents_that_are_not_unit_normal_cost_more(change) -> None:
    torch.manual_seed(0)
    x = torch.randn(1000, 8)
    assert 0.3 < sigreg(x) < 1.5
    assert sigreg(change(x)) > 3


def test_its_gradient_undoes_a_collapse() -> None:
    torch.manual_seed(0)
    x = (0.1 * torch.randn(256, 4)).requires_grad_()
    optimizer = torch.optim.Adam([x], 0.05)
    for _ in range(100):
        optimizer.zero_grad()
        sigreg(x, 64).backward()
        optimizer.step()
    assert effective_rank(x.detach()) > 3.8
    assert 0.8 < float(x.detach().std()) < 1.2


def _share(rank: int, port: int, x: torch.Tensor, found: torch.Tensor) -> None:
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    torch.manual_seed(3)
    own = x[rank::2].clone().requires_grad_()
    loss = sigreg(own, 32)
    loss.backward()
    assert own.grad is not None
    found[rank::2] = torch.cat([own.grad, loss.detach().expand(len(own), 1)], 1)
    dist.destroy_process_group()


def test_two_processes_use_the_statistics_of_all_latents() -> None:
    torch.manual_seed(0)
    x = torch.rand(40, 4)
    found = torch.zeros(40, 5).share_memory_()
    spawn(_share, (free_port(), x, found), nprocs=2)
    torch.manual_seed(3)
    whole = x.clone().requires_grad_()
    loss = sigreg(whole, 32)
    loss.backward()
    assert whole.grad is not None
    assert torch.allclose(found[:, 4], loss.detach())
    # twice: DDP takes the mean of the processes' gradients
    assert torch.allclose(found[:, :4], 2 * whole.grad, rtol=1e-3, atol=1e-6)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
