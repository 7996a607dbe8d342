"""FSDP: each process holds a share of the trained weights, of their gradients and averages.

Accelerate shards on accelerators only; this is the call underneath (torch's fully_shard), which
also works between processes on CPUs.  Checkpoints hold whole tensors, so that they are read by any
number of processes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from models.layers.transformer import Layer


def shard(objective: nn.Module, device: torch.device) -> None:
    """Part the trained weights of `objective`, whose forward pass is the loss, among all processes.

    A transformer layer is put together only while it is needed, the rest for a whole step.  What
    is not trained stays whole everywhere: a model may change it as it goes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    _tell_all([*objective.parameters(), *objective.buffers()])
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    whole = {p for p in objective.parameters() if not p.requires_grad}
    for part in objective.modules():
        if isinstance(part, Layer):
            fully_shard(part, mesh=mesh, ignored_params=whole)
    fully_shard(objective, mesh=mesh, ignored_params=whole)
    # as DDP does: running averages are those of the first process
    objective.register_forward_pre_hook(lambda module, _: _tell_all([*module.buffers()]))


def whole(value: Any, device: str | torch.device = "cpu") -> Any:
    """Gather what is parted in a tensor, dict or list; every process has to call it."""
    if isinstance(value, DTensor):
        return value.full_tensor().to(device)
    if isinstance(value, dict):
        return {k: whole(v, device) for k, v in value.items()}
    return [whole(v, device) for v in value] if isinstance(value, list) else value


def parted(values: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """Part whole tensors, the same in every process, as those of `like` are."""
    return {k: _share(v.to(like[k].device), like[k]) if k in like else v for k, v in values.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a whole state, of one process, into an optimizer whose weights may be parted."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    parts = {
        index: {k: _share(v, weights[index]) for k, v in moments.items()}
        for index, moments in state["state"].items()
    }
    optimizer.load_state_dict(state | {"state": parts})


def _share(value: Tensor, like: Tensor) -> Tensor:
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value  # the optimizer's count of steps is whole too
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def _tell_all(tensors: list[Tensor]) -> None:
    for tensor in tensors:
        dist.broadcast(tensor.detach(), src=0)
