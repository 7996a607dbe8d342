"""Linear layers with 8-bit weights, for CPUs.

A row of a weight is int8 times one scale, and so is each row of the input (symmetric, as in
LLM.int8, arXiv:2208.07339, section 2).  With few input rows only the weights are quantized: reading
them is then the cost.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

MAX_WEIGHT_ONLY_ROWS = 4  # input rows up to which only the weights are in 8 bits
# of an input row; without VNNI, sums of two 8-bit products overflow 16 bits
ZERO_POINT = 128 if torch.cpu._is_vnni_supported() else 64
PACKED = WeakIdKeyDictionary()
"""From a weight to oneDNN's form of it: packed weight, scale and zero point of each row."""


class Int8Linear(nn.Module):
    """Replace an `nn.Linear`, without gradients."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float().contiguous()
        scale = (
            weight.abs().amax(1).clamp(min=1e-8) / 127
        ).bfloat16()  # one of the two products needs bfloat16
        quantized = (weight / scale.float()[:, None]).round().clamp(-127, 127)
        self.register_buffer("weight", quantized.to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the dtype of an `nn.Linear`'s product."""
        rows = x.reshape(-1, self.in_features)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        # the few-row product reads past the end of widths that its registers do not divide
        aligned = self.in_features % 64 == 0 and self.out_features % 16 == 0
        # shape[0], not len: the compiler can keep it dynamic
        if rows.shape[0] <= MAX_WEIGHT_ONLY_ROWS and aligned:
            narrow = rows.bfloat16()  # the only dtype in which this product is fast everywhere
            y = torch.ops.aten._weight_int8pack_mm(narrow, self.weight, self.scale).float()
        else:
            # in the product's dtype, so that the scale is not rounded again
            row_max = 1.004 * rows.abs().amax(1, keepdim=True).float().clamp(min=1e-8)
            row_scale = (row_max / (ZERO_POINT - 1)).to(dtype)
            # truncation after + 0.5 rounds
            quantized = (rows.float() / row_scale).add_(ZERO_POINT + 0.5).to(torch.uint8)
            y = _int8_matmul(quantized, self.weight, self.scale, dtype == torch.bfloat16).mul_(
                row_scale
            )
        y = y if self.bias is None else y + self.bias
        return y.to(dtype).view(*x.shape[:-1], self.out_features)


def _int8_matmul(quantized: Tensor, weight: Tensor, scale: Tensor, bf16: bool) -> Tensor:
    """Multiply uint8 rows, offset by ZERO_POINT: (R, in), (out, in), (out,) -> (R, out)."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    if not torch.backends.mkldnn.is_available():
        return _float_matmul(quantized, weight, scale).to(dtype)
    if torch.compiler.is_exporting():  # the compiler folds constants
        packed = _pack(weight, scale)
    else:
        packed = PACKED.get(weight)
        if packed is None:
            packed = PACKED[weight] = _pack(weight, scale)
    return torch.ops.onednn.qlinear_pointwise(
        quantized, 1.0, ZERO_POINT, *packed, None, 1.0, 0, dtype, "none", [], ""
    )


def _pack(weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    return packed, scale.float(), torch.zeros(len(scale), dtype=torch.int64)


if torch.backends.mkldnn.is_available():  # elsewhere the operator may be missing

    @torch.library.register_fake("onednn::qlinear_prepack")
    def _(weight: Tensor, rows: list[int] | None) -> Tensor:
        return torch.empty_like(weight).t()  # only its shape is read


def _float_matmul(quantized: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return (quantized.float() - ZERO_POINT) @ weight.float().T * scale.float()


def quantize_linears(module: nn.Module) -> int:
    """Replace every `nn.Linear` inside `module`; return their number.

    ValueError on anything but a CPU.
    """
    device = next(module.parameters()).device
    if device.type != "cpu":
        raise ValueError(f"8-bit weights are for CPUs, and this model is on {device.type}")
    count = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, Int8Linear(child))
                count += 1
    return count
