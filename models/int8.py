"""Linear layers that hold their weights in 8 bits, for CPUs.

A row of a weight is whole numbers times one scale (symmetric, as in LLM.int8, arXiv:2208.07339,
section 2).  What is multiplied stays wide where there are few rows, since reading the weights is
what takes time then; with many rows it is rounded to 8 bits too, token by token of the product.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

FEW = 4  # rows up to which only the weights are in 8 bits


class Int8Linear(nn.Module):
    """Stands in for an `nn.Linear`, without gradients."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        wide = linear.weight.detach().float().contiguous()
        scale = wide.abs().amax(1).clamp(min=1e-8) / 127
        whole = (wide / scale[:, None]).round().to(torch.int8)
        self.register_buffer("weight", whole)
        self.register_buffer("scale", scale.bfloat16())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())
        zero = torch.zeros(len(scale), dtype=torch.int64)
        with warnings.catch_warnings():  # these tensors will move to torchao one day
            warnings.simplefilter("ignore", UserWarning)
            make: Any = torch._make_per_channel_quantized_tensor  # type: ignore[attr-defined]
            kept = make(whole, scale.double(), zero, 0)
        self._packed = torch.ops.quantized.linear_prepack(kept, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in x's dtype."""
        rows = x.reshape(-1, self.in_features)
        # the product of a few rows reads past the end of widths that its registers do not divide
        even = self.in_features % 64 == 0 and self.out_features % 16 == 0
        if len(rows) <= FEW and even:
            narrow = rows.bfloat16()  # the only type in which this product is quick everywhere
            y = torch.ops.aten._weight_int8pack_mm(narrow, self.weight, self.scale).float()
            y = y if self.bias is None else y + self.bias
        else:
            # 7 bits of activations: without VNNI, sums of two products of 8 overflow 16
            y = torch.ops.quantized.linear_dynamic(rows.float(), self._packed, reduce_range=True)
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)


def quantise_linears(module: nn.Module) -> int:
    """Replace every `nn.Linear` inside `module`; give how many there were.

    ValueError on anything but a CPU.
    """
    device = next(module.parameters()).device
    if device.type != "cpu":
        raise ValueError(f"weights in 8 bits are for CPUs, and this model is on {device.type}")
    found = 0
    for part in list(module.modules()):
        for name, child in list(part.named_children()):
            if type(child) is nn.Linear:
                setattr(part, name, Int8Linear(child))
                found += 1
    return found
