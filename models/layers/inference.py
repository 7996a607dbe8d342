"""Faster inference: how weights lie in memory, and in which precision."""

from __future__ import annotations

import torch
from torch import nn

from models.layers.precision import DTYPES, Precision
from models.layers.transformer import Transformer


@torch.no_grad()
def use_column_major(module: nn.Module) -> None:
    """Store the weights of autoregressive transformers column by column, on a CPU.

    A product with one row then reads memory in order, which is faster.  With hundreds of rows it
    may be slower, so transformers that process whole blocks are left as they are.  Results and
    saved weights are the same.
    """
    for submodule in module.modules():
        if isinstance(submodule, Transformer) and submodule.block_mask.causal_within_block:
            for linear in submodule.modules():
                if isinstance(linear, nn.Linear) and linear.weight.device.type == "cpu":
                    linear.weight.data = linear.weight.t().contiguous().t()


@torch.no_grad()
def cast_weights(module: nn.Module, precision: Precision) -> None:
    """Store the weights of products in `precision`; the module must run under autocast.

    Autocast casts weights without gradient at every call, which takes a launch each on a GPU and
    time on a CPU.  Results are the same.
    """
    if precision == "fp32":
        return
    dtype = DTYPES[precision]
    kinds = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.MultiheadAttention)
    for submodule in module.modules():
        if isinstance(submodule, kinds):
            for weight in submodule.parameters(recurse=False):
                weight.data = weight.data.to(dtype)
