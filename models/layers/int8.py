"""Linear layers that hold their weights in 8 bits, for CPUs.

A row of a weight is whole numbers times one scale, and so is each row that comes in (symmetric, as
in LLM.int8, arXiv:2208.07339, section 2), unless there are few of those: reading the weights is
what takes time then, and what is multiplied stays wide.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

MAX_WEIGHT_ONLY_ROWS = 4  # rows up to which only the weights are in 8 bits
# what stands for 0 in a row: without VNNI, sums of two products of 8 bits overflow 16
ZERO_POINT = 128 if torch.cpu._is_vnni_supported() else 64
PACKED = WeakIdKeyDictionary()
"""From a weight to what oneDNN reads: its packed form, the scale of each row, and their zeros."""


class Int8Linear(nn.Module):
    """Stands in for an `nn.Linear`, without gradients."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float().contiguous()
        scale = (weight.abs().amax(1).clamp(min=1e-8) / 127).bfloat16()  # as one product wants it
        quantized = (weight / scale.float()[:, None]).round().clamp(-127, 127)
        self.register_buffer("weight", quantized.to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the dtype of an `nn.Linear`'s product."""
        rows = x.reshape(-1, self.in_features)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        # the product of a few rows reads past the end of widths that its registers do not divide
        aligned = self.in_features % 64 == 0 and self.out_features % 16 == 0
        if (
            rows.shape[0] <= MAX_WEIGHT_ONLY_ROWS and aligned
        ):  # what the compiler can leave open, which len it cannot
            narrow = rows.bfloat16()  # the only type in which this product is quick everywhere
            y = torch.ops.aten._weight_int8pack_mm(narrow, self.weight, self.scale).float()
        else:
            # a scale that the product's dtype holds, so that it is not rounded again
            row_max = 1.004 * rows.abs().amax(1, keepdim=True).float().clamp(min=1e-8)
            row_scale = (row_max / (ZERO_POINT - 1)).to(dtype)
            # cut off, which rounds
            quantized = (rows.float() / row_scale).add_(ZERO_POINT + 0.5).to(torch.uint8)
            y = _int8_matmul(quantized, self.weight, self.scale, dtype == torch.bfloat16).mul_(
                row_scale
            )
        y = y if self.bias is None else y + self.bias
        return y.to(dtype).view(*x.shape[:-1], self.out_features)


def _int8_matmul(quantized: Tensor, weight: Tensor, scale: Tensor, bf16: bool) -> Tensor:
    """Multiply rows of whole numbers above MIDDLE: (R, in), (out, in), (out,) -> (R, out)."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    if not torch.backends.mkldnn.is_available():
        return _float_matmul(quantized, weight, scale).to(dtype)
    if torch.compiler.is_exporting():  # what does not change is worked out once, by the compiler
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


if torch.backends.mkldnn.is_available():  # elsewhere there may be no such operator

    @torch.library.register_fake("onednn::qlinear_prepack")
    def _(weight: Tensor, rows: list[int] | None) -> Tensor:
        return torch.empty_like(weight).t()  # all that is looked at of it


def _float_matmul(quantized: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return (quantized.float() - ZERO_POINT) @ weight.float().T * scale.float()


def quantize_linears(module: nn.Module) -> int:
    """Replace every `nn.Linear` inside `module`; give how many there were.

    ValueError on anything but a CPU.
    """
    device = next(module.parameters()).device
    if device.type != "cpu":
        raise ValueError(f"weights in 8 bits are for CPUs, and this model is on {device.type}")
    count = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, Int8Linear(child))
                count += 1
    return count
