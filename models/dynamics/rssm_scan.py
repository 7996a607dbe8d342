"""The loop of an RSSM over the frames of a clip, with its gradient written out.

In the loop are only the products that need the state before; gradients of weights are products over
all frames at once.  Autograd through the same loop (`RssmCell.follow`) is the definition; on a CPU,
where launching small operations takes most of the time, it is slower.

Letters: B rows, T frames, H width of h, N blocks of width E, G groups of C classes of z, S = G C,
U hidden units.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from models.layers.categorical_groups import UNIMIX

EPS = 1e-6  # of RMSNorm


class Weights(NamedTuple):
    """What the loop reads of an `RssmCell`."""

    deter_weight: Tensor  # (2 U, H): of `deter_in`, then of `deter_proj`
    deter_bias: Tensor  # (2 U,)
    deter_norm: Tensor  # (U,)
    stoch_weight: Tensor  # (U, S)
    stoch_bias: Tensor  # (U,)
    stoch_norm: Tensor  # (U,)
    input_weight: Tensor  # (H, 3 U)
    input_bias: Tensor  # (H,)
    state_weight: Tensor  # (N, E, E)
    gru_norm: Tensor  # (H,)
    gate_weight: Tensor  # (N, E, 3 E)
    gate_bias: Tensor  # (N, 3 E)
    posterior_norm: Tensor  # (U,)
    out_weight: Tensor  # (S, U)
    out_bias: Tensor  # (S,)


def scan(
    embeds: Tensor, action_embs: Tensor, exponential: Tensor | None, classes: int, weights: Weights
) -> tuple[Tensor, Tensor, Tensor]:
    """Follow the frames of clips.

    embeds: (T, B, U), projected.  action_embs: (T, B, U), zeros at the first frame.  exponential:
    (T, B, G, C) random numbers that choose z, of C classes; None takes the expected z.  Returns h
    (T, B, H), z (T, B, S), one-hot or expected, and the posterior's probabilities (T, B, G, C).
    """
    with torch.autocast(embeds.device.type, enabled=False):  # small products are faster in float32
        wide = torch.promote_types(embeds.dtype, torch.float32)
        return _Scan.apply(embeds.to(wide), action_embs.to(wide), exponential, classes, *weights)  # type: ignore[return-value]


class _NormSilu(NamedTuple):
    """What the gradient of silu(rms_norm(x)) reads."""

    unit: Tensor
    scale: Tensor
    pre: Tensor


def _norm_silu(x: Tensor, weight: Tensor) -> tuple[Tensor, _NormSilu]:
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scale = torch.rsqrt(length.square_().div_(x.shape[-1]).add_(EPS))
    unit = x * scale
    pre = unit * weight
    return silu(pre), _NormSilu(unit, scale, pre)


def _norm_silu_backward(grad: Tensor, kept: _NormSilu, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of x, and that before the weight is applied, of which the weight's is made."""
    grad_pre = torch.ops.aten.silu_backward(grad, kept.pre)
    along = grad_pre * weight
    share = torch.linalg.vecdot(along, kept.unit)[..., None] / grad.shape[-1]
    return along.addcmul_(kept.unit, share, value=-1).mul_(kept.scale), grad_pre


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        embeds: Tensor,
        action_embs: Tensor,
        exponential: Tensor | None,
        classes: int,
        *given: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        w = Weights(*given)
        length, rows, units = embeds.shape
        blocks, block_dim = w.state_weight.shape[:2]
        groups = len(w.out_weight) // classes
        h = embeds.new_zeros(rows, blocks * block_dim)
        z = embeds.new_zeros(rows, groups * classes)
        deter = w.deter_bias.expand(rows, -1)
        steps: list[tuple[Any, ...]] = []
        hs, zs, softs = [], [], []
        for t in range(length):
            x_deter, kept_deter = _norm_silu(deter[:, :units], w.deter_norm)
            stoch = torch.addmm(w.stoch_bias, z, w.stoch_weight.t())
            x_stoch, kept_stoch = _norm_silu(stoch, w.stoch_norm)
            x = torch.cat([x_deter, x_stoch, action_embs[t]], dim=1)
            own = torch.bmm(h.view(rows, blocks, -1).transpose(0, 1), w.state_weight)
            mixed = torch.addmm(w.input_bias, x, w.input_weight.t())
            mixed.view(rows, blocks, -1).add_(own.transpose(0, 1))
            gru, kept_gru = _norm_silu(mixed, w.gru_norm)
            gru = gru.view(rows, blocks, -1).transpose(0, 1)
            parts = torch.baddbmm(w.gate_bias[:, None], gru, w.gate_weight).transpose(0, 1)
            reset, candidate, update = parts.chunk(3, dim=-1)
            reset, update = torch.sigmoid(reset), torch.sigmoid(update - 1)
            fresh = torch.tanh(reset * candidate)
            before = h.view(rows, blocks, -1)
            h = torch.lerp(before, fresh, update).view(rows, -1)
            deter = torch.addmm(w.deter_bias, h, w.deter_weight.t())
            seen, kept_seen = _norm_silu(deter[:, units:] + embeds[t], w.posterior_norm)
            logits = torch.addmm(w.out_bias, seen, w.out_weight.t())
            soft = torch.softmax(logits.view(rows, groups, classes), dim=-1)
            probs = soft * (1 - UNIMIX) + UNIMIX / classes
            z = probs
            if exponential is not None:
                index = (probs / exponential[t]).argmax(-1, keepdim=True)
                z = torch.zeros_like(probs).scatter_(-1, index, 1.0)
            z = z.view(rows, -1)
            hs.append(h)
            zs.append(z)
            softs.append(soft)
            gates = reset, candidate, update, fresh, before
            steps.append((kept_deter, kept_stoch, x, kept_gru, gru, gates, kept_seen, seen))
        h_all, z_all, soft_all = torch.stack(hs), torch.stack(zs), torch.stack(softs)
        ctx.save_for_backward(h_all, z_all, soft_all, *given)
        ctx.steps = steps
        return h_all, z_all, soft_all * (1 - UNIMIX) + UNIMIX / classes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_h, grad_z, grad_probs = grads
        h_all, z_all, soft_all, *given = ctx.saved_tensors
        w, steps = Weights(*given), ctx.steps
        length, rows, _ = h_all.shape
        units, blocks = len(w.stoch_bias), len(w.state_weight)
        grad_probs = grad_probs + grad_z.view_as(grad_probs)  # straight through
        from_after = torch.zeros_like(grad_probs[0])  # to z, of the step after
        h_after = torch.zeros_like(h_all[0])
        deter_after = h_all.new_zeros(rows, units)
        found: dict[str, list[Tensor]] = {name: [] for name in _KEPT}
        for t in range(length - 1, -1, -1):
            kept_deter, kept_stoch, _, kept_gru, _, gates, kept_seen, _ = steps[t]
            grad_soft = (grad_probs[t] + from_after) * (1 - UNIMIX)
            logits = torch.ops.aten._softmax_backward_data(
                grad_soft, soft_all[t], -1, soft_all.dtype
            )
            logits = logits.view(rows, -1)
            seen, seen_pre = _norm_silu_backward(logits @ w.out_weight, kept_seen, w.posterior_norm)
            deter = torch.cat([deter_after, seen], dim=1)
            grad = torch.addmm(grad_h[t] + h_after, deter, w.deter_weight).view(rows, blocks, -1)
            reset, candidate, update, fresh, before = gates
            parts = grad.new_empty(*grad.shape[:-1], 3 * grad.shape[-1])
            part_reset, part_candidate, part_update = parts.chunk(3, dim=-1)
            taken = grad * update
            inner = torch.ops.aten.tanh_backward(taken, fresh)
            torch.mul(inner, reset, out=part_candidate)
            part_reset.copy_(torch.ops.aten.sigmoid_backward(inner * candidate, reset))
            part_update.copy_(torch.ops.aten.sigmoid_backward(grad * (fresh - before), update))
            blockwise = parts.transpose(0, 1)
            gru = torch.bmm(blockwise, w.gate_weight.mT).transpose(0, 1).reshape(rows, -1)
            mixed, gru_pre = _norm_silu_backward(gru, kept_gru, w.gru_norm)
            own = torch.bmm(mixed.view(rows, blocks, -1).transpose(0, 1), w.state_weight.mT)
            h_after = (grad - taken).add_(own.transpose(0, 1)).view(rows, -1)
            x_deter, x_stoch, action = (mixed @ w.input_weight).split(units, dim=1)
            deter_after, deter_pre = _norm_silu_backward(x_deter, kept_deter, w.deter_norm)
            stoch, stoch_pre = _norm_silu_backward(x_stoch, kept_stoch, w.stoch_norm)
            from_after = (stoch @ w.stoch_weight).view_as(from_after)
            values = logits, seen, seen_pre, deter, blockwise, mixed, gru_pre, action, deter_pre
            for name, value in zip(_KEPT, (*values, stoch, stoch_pre), strict=True):
                found[name].append(value)
        kept = {name: torch.stack(values[::-1]) for name, values in found.items()}
        return (
            kept["seen"], kept["action"], None, None,
            *_weight_grads(kept, steps, h_all, z_all, w, deter_after),
        )  # fmt: skip


_KEPT = (
    "logits", "seen", "seen_pre", "deter", "parts", "mixed", "gru_pre", "action", "deter_pre",
    "stoch", "stoch_pre",
)  # fmt: skip


def _weight_grads(
    grads: dict[str, Tensor],
    steps: list[tuple[Any, ...]],
    h_all: Tensor,
    z_all: Tensor,
    w: Weights,
    first_deter: Tensor,
) -> Weights:
    """Gradients of the weights, of all frames at once; grads: (T, ...) of what each step made."""
    units, blocks = len(w.stoch_bias), len(w.state_weight)
    x, seen = (torch.stack([step[i] for step in steps]) for i in (2, 7))
    gru = torch.stack([step[4] for step in steps])  # (T, N, B, E)
    kept = [[step[i].unit for step in steps] for i in (0, 1, 3, 6)]
    unit_deter, unit_stoch, unit_gru, unit_seen = (torch.stack(values) for values in kept)

    def product(grad: Tensor, value: Tensor) -> Tensor:
        return grad.flatten(0, 1).t() @ value.flatten(0, 1)

    def total(grad: Tensor) -> Tensor:
        return grad.flatten(0, 1).sum(0)

    def by_block(value: Tensor) -> Tensor:  # (T, B, H) -> (N, T B, E)
        return value.flatten(0, 1).unflatten(1, (blocks, -1)).transpose(0, 1)

    parts = grads["parts"].transpose(0, 1).flatten(1, 2)  # (N, T B, 3 E)
    deter_bias = total(grads["deter"])
    deter_bias[:units] += first_deter.sum(0)  # before the first frame, where h is 0
    return Weights(
        deter_weight=product(grads["deter"], h_all),
        deter_bias=deter_bias,
        deter_norm=total(grads["deter_pre"] * unit_deter),
        stoch_weight=product(grads["stoch"][1:], z_all[:-1]),
        stoch_bias=total(grads["stoch"]),
        stoch_norm=total(grads["stoch_pre"] * unit_stoch),
        input_weight=product(grads["mixed"], x),
        input_bias=total(grads["mixed"]),
        state_weight=by_block(h_all[:-1]).mT @ by_block(grads["mixed"][1:]),
        gru_norm=total(grads["gru_pre"] * unit_gru),
        gate_weight=gru.transpose(0, 1).flatten(1, 2).mT @ parts,
        gate_bias=parts.sum(1),
        posterior_norm=total(grads["seen_pre"] * unit_seen),
        out_weight=product(grads["logits"], seen),
        out_bias=total(grads["logits"]),
    )
