"""FSDP: each process holds a share of the trained weights, of their gradients and averages.

Accelerate shards on accelerators only; this is the call underneath (torch's fully_shard), which
also works between processes on CPUs.  Checkpoints hold whole tensors, so that they are read by any
number of processes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(loss_module: nn.Module, units: list[nn.Module], device: torch.device) -> None:
    """Shard the trained weights of `loss_module`, whose forward pass is the loss.

    A unit is gathered only while it is needed, the rest for a whole step.  What is not trained
    stays whole everywhere: a model may change it as it goes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # a layer also gives keys and values, which are views; nothing writes into them
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    _broadcast([*loss_module.parameters(), *loss_module.buffers()])
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    frozen = {p for p in loss_module.parameters() if not p.requires_grad}
    for unit in units:
        fully_shard(unit, mesh=mesh, ignored_params=frozen)
    fully_shard(loss_module, mesh=mesh, ignored_params=frozen)
    # as DDP does: running averages are those of the first process
    loss_module.register_forward_pre_hook(lambda module, _: _broadcast([*module.buffers()]))


@contextmanager
def gathered(loss_module: nn.Module) -> Iterator[None]:
    """Whole weights in here, to be read; what is written to those that are trained is lost."""
    from torch.distributed.fsdp import FSDPModule

    units = [module for module in loss_module.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()


def full_tensors(value: Any, device: str | torch.device = "cpu") -> Any:
    """Gather what is sharded in a tensor, dict or list; every process has to call it."""
    if isinstance(value, DTensor):
        return value.full_tensor().to(device)
    if isinstance(value, dict):
        return {k: full_tensors(v, device) for k, v in value.items()}
    return [full_tensors(v, device) for v in value] if isinstance(value, list) else value


def shard_like(values: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """Shard full tensors, the same in every process, as those of `like` are."""
    return {
        k: _shard_tensor(v.to(like[k].device), like[k]) if k in like else v
        for k, v in values.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an unsharded state into an optimizer whose weights may be sharded."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    sharded = {
        index: {k: _shard_tensor(v, weights[index]) for k, v in moments.items()}
        for index, moments in state["state"].items()
    }
    optimizer.load_state_dict(state | {"state": sharded})


def _shard_tensor(value: Tensor, like: Tensor) -> Tensor:
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value  # the optimizer's count of steps is whole too
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def _broadcast(tensors: list[Tensor]) -> None:
    for tensor in tensors:
        dist.broadcast(tensor.detach(), src=0)
