"""Plain PyTorch with the gradient written out, where autograd would keep or copy too much.

Autograd through the definition of RMSNorm keeps float32 copies of every step, which took five to
ten times as long on a CPU in bfloat16 (5,200 rows of 128).  SwiGLU keeps nothing but its input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `kernels.rms_norm`; the mean square is summed in float32 at least."""
    return _RmsNorm.apply(x, weight, eps)  # type: ignore[return-value]


def swiglu(gate_up: Tensor) -> Tensor:
    """As `kernels.swiglu`."""
    return _SwiGlu.apply(gate_up)  # type: ignore[return-value]


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        scale = torch.rsqrt(length.square() / x.shape[-1] + eps).to(x.dtype)
        unit = x * scale
        ctx.save_for_backward(unit, weight, scale)
        return unit * weight.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        unit, weight, scale = ctx.saved_tensors
        (grad,) = grads
        narrow = weight.to(grad.dtype)
        along = grad * unit
        for_weight = along.reshape(-1, along.shape[-1]).sum(0, dtype=weight.dtype)
        share = (along @ narrow[:, None]) / grad.shape[-1]
        for_x = (grad * narrow).addcmul_(unit, share, value=-1).mul_(scale)
        return for_x, for_weight, None


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        (grad,) = grads
        gate, up = gate_up.chunk(2, dim=-1)
        result = torch.empty_like(gate_up)
        for_gate, for_up = result.chunk(2, dim=-1)
        torch.mul(grad, silu(gate), out=for_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=for_gate)
        return result
