"""A vision transformer's layers for inference on a CPU: weights in oneDNN's own order, in one
precision, so that no call orders or casts them again.

Letters: B frames, N tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from models.layers.precision import DTYPES, Precision
from models.layers.vit import VitLayer

_linear = torch.ops.mkldnn._linear_pointwise.default


class PackedLinear(nn.Module):
    """A product, its bias, and a GELU where one follows: (..., K) -> (..., N)."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, gelu: bool = False):
        super().__init__()
        # the rows of later calls are not known, and oneDNN takes any number of them
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype), None)
        self.bias = bias.detach().to(dtype)
        self.after = ("gelu", [], "none") if gelu else ("none", [], "")  # exact, not by tanh

    def forward(self, x: Tensor) -> Tensor:
        return _linear(x, self.weight, self.bias, *self.after)


class PackedVitLayer(nn.Module):
    """What VitLayer computes, its sums in float32: (B, N, D) -> (B, N, D)."""

    def __init__(self, layer: VitLayer, precision: Precision) -> None:
        super().__init__()
        attention, dtype = layer.self_attn, DTYPES[precision]
        self.dtype, self.num_heads = dtype, attention.num_heads
        self.norms = [_norm(layer.norm1), _norm(layer.norm2)]
        self.qkv = PackedLinear(attention.in_proj_weight, attention.in_proj_bias, dtype)
        self.out = PackedLinear(attention.out_proj.weight, attention.out_proj.bias, dtype)
        self.up = PackedLinear(layer.linear1.weight, layer.linear1.bias, dtype, gelu=True)
        self.down = PackedLinear(layer.linear2.weight, layer.linear2.bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        frames, tokens, width = x.shape
        first, second = self.norms
        qkv = self.qkv.forward(torch.layer_norm(x, *first).to(self.dtype))
        # a view: einops takes as long as a small product
        heads = qkv.view(frames, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = heads.unbind(0)
        attended = scaled_dot_product_attention(q, k, v)
        x = x + self.out.forward(attended.transpose(1, 2).reshape(frames, tokens, width))
        hidden = self.up.forward(torch.layer_norm(x, *second).to(self.dtype))
        return x.add_(self.down.forward(hidden))


def _norm(norm: nn.LayerNorm) -> tuple[tuple[int, ...], Tensor, Tensor, float]:
    """What torch.layer_norm takes: a call of the module takes a third as long as the norm."""
    return tuple(norm.normalized_shape), norm.weight.detach(), norm.bias.detach(), norm.eps


def can_pack(precision: Precision) -> bool:
    """Whether oneDNN is there, and multiplies in this precision on this CPU: 16 bits need more
    than AVX2."""
    if not torch.backends.mkldnn.is_available():
        return False
    if precision == "bf16":
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return precision == "fp32" or torch.ops.mkldnn._is_mkldnn_fp16_supported()


@torch.no_grad()
def pack_vit_layers(module: nn.Module, precision: Precision) -> None:
    """Replace the layers of every vision transformer inside; on a CPU, where PyTorch has oneDNN.

    The module cannot be trained or saved afterwards.
    """
    weights = next(module.parameters())
    if weights.device.type != "cpu" or not can_pack(precision):
        return
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, VitLayer):
                setattr(parent, name, PackedVitLayer(child, precision))
