"""Linear layers that hold their weights in 8 bits, for CPUs.

A row of a weight is whole numbers times one scale, and so is each row that comes in (symmetric, as
in LLM.int8, arXiv:2208.07339, section 2), unless there are few of those: reading the weights is
what takes time then, and what is multiplied stays wide.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

FEW = 4  # rows up to which only the weights are in 8 bits
# what stands for 0 in a row: without VNNI, sums of two products of 8 bits overflow 16
MIDDLE = 128 if torch.cpu._is_vnni_supported() else 64
LAID_OUT = WeakIdKeyDictionary()
"""From a weight to what oneDNN reads: its packed form, the scale of each row, and their zeros."""


class Int8Linear(nn.Module):
    """Stands in for an `nn.Linear`, without gradients."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        wide = linear.weight.detach().float().contiguous()
        scale = (wide.abs().amax(1).clamp(min=1e-8) / 127).bfloat16()  # as one product wants it
        whole = (wide / scale.float()[:, None]).round().clamp(-127, 127)
        self.register_buffer("weight", whole.to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the dtype of an `nn.Linear`'s product."""
        rows = x.reshape(-1, self.in_features)
        kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        # the product of a few rows reads past the end of widths that its registers do not divide
        even = self.in_features % 64 == 0 and self.out_features % 16 == 0
        if rows.shape[0] <= FEW and even:  # what the compiler can leave open, which len it cannot
            narrow = rows.bfloat16()  # the only type in which this product is quick everywhere
            y = torch.ops.aten._weight_int8pack_mm(narrow, self.weight, self.scale).float()
        else:
            # a scale that the product's dtype holds, so that it is not rounded again
            far = 1.004 * rows.abs().amax(1, keepdim=True).float().clamp(min=1e-8)
            reach = (far / (MIDDLE - 1)).to(kind)
            # cut off, which rounds
            whole = (rows.float() / reach).add_(MIDDLE + 0.5).to(torch.uint8)
            y = _product(whole, self.weight, self.scale, kind == torch.bfloat16).mul_(reach)
        y = y if self.bias is None else y + self.bias
        return y.to(kind).view(*x.shape[:-1], self.out_features)


def _product(whole: Tensor, weight: Tensor, scale: Tensor, narrow: bool) -> Tensor:
    """Multiply rows of whole numbers above MIDDLE: (R, in), (out, in), (out,) -> (R, out)."""
    kind = torch.bfloat16 if narrow else torch.float32
    if not torch.backends.mkldnn.is_available():
        return _product_in_float(whole, weight, scale).to(kind)
    if torch.compiler.is_exporting():  # what does not change is worked out once, by the compiler
        laid_out = _lay_out(weight, scale)
    else:
        laid_out = LAID_OUT.get(weight)
        if laid_out is None:
            laid_out = LAID_OUT[weight] = _lay_out(weight, scale)
    return torch.ops.onednn.qlinear_pointwise(
        whole, 1.0, MIDDLE, *laid_out, None, 1.0, 0, kind, "none", [], ""
    )


def _lay_out(weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    return packed, scale.float(), torch.zeros(len(scale), dtype=torch.int64)


if torch.backends.mkldnn.is_available():  # elsewhere there may be no such operator

    @torch.library.register_fake("onednn::qlinear_prepack")
    def _(weight: Tensor, rows: list[int] | None) -> Tensor:
        return torch.empty_like(weight).t()  # all that is looked at of it


def _product_in_float(whole: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return (whole.float() - MIDDLE) @ weight.float().T * scale.float()


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
