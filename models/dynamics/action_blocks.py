"""Blocks of up to `frameskip` actions, as one action of a recurrent model, which then looks as far
ahead in fewer steps.

Letters: B rows, T frames, N blocks, k the frameskip, A action numbers, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data.actions import ActionSpec
from data.batch import Batch
from models.layers.action_block_embedding import ActionBlockEmbedding


class ActionBlocks(nn.Module):
    """One vector for a block, which is held as (k, A + 1) numbers, or (k, 2) int64 of codes: each
    action, and 1 where it is given; those not given are 0."""

    def __init__(self, spec: ActionSpec, frameskip: int, dim: int) -> None:
        super().__init__()
        self.spec, self.frameskip = spec, frameskip
        self.embedding = ActionBlockEmbedding(spec, frameskip, dim)

    def pack(self, actions: Tensor) -> Tensor:
        """A block's first actions, (B, j, A) or (B, j) codes, 1 <= j <= k -> (B, k, A + 1)."""
        numbers = actions[..., None] if self.spec.kind == "discrete" else actions
        given = torch.cat([numbers, torch.ones_like(numbers[..., :1])], dim=-1)
        return nn.functional.pad(given, (0, 0, 0, self.frameskip - given.shape[-2]))

    def forward(self, blocks: Tensor) -> Tensor:
        """(..., k, A + 1) -> (..., D); of a block without an action that of its first."""
        numbers, given = blocks[..., :-1], blocks[..., -1]
        if self.spec.kind == "discrete":
            numbers = numbers[..., 0]
        return self.embedding(numbers, given.sum(-1).long().clamp(min=1))

    def last(self, blocks: Tensor) -> Tensor:
        """The last action of each block, which leads to its end: (..., k, A + 1) -> (..., A)."""
        at = (blocks[..., -1].sum(-1).long() - 1).clamp(min=0)
        numbers = torch.take_along_dim(blocks[..., :-1], at[..., None, None], dim=-2)[..., 0, :]
        return numbers[..., 0] if self.spec.kind == "discrete" else numbers

    def spaced(self, batch: Batch) -> Batch:
        """Every k-th frame of clips, and the blocks between them, (B, N, k, A + 1).

        The last block has a random number of actions from 1 to k, since a rollout may stop within
        one.  A frame begins an episode where one since the frame before does.
        """
        (actions,) = batch.require("actions")
        rows, length, k = *actions.shape[:2], self.frameskip
        count = (length - 1) // k
        last = torch.randint(1, k + 1, (rows,), device=actions.device)
        at = (torch.arange(count + 1, device=actions.device) * k).repeat(rows, 1)
        at[:, -1] += last - k
        each = torch.arange(rows, device=actions.device)[:, None]
        blocks = self.pack(actions[:, : count * k].unflatten(1, (count, k)))
        late = torch.arange(k, device=actions.device) >= last[:, None]
        blocks[:, -1] = blocks[:, -1].masked_fill(late[..., None], 0)
        spaced = batch.map(lambda values: values[each, at])
        spaced.actions = torch.cat([blocks, torch.zeros_like(blocks[:, :1])], dim=1)
        if (is_first := batch.extra.get("is_first")) is not None:
            begun = torch.nn.functional.pad(is_first.cumsum(1), (1, 0))  # up to each frame
            since = nn.functional.pad(at[:, :-1] + 1, (1, 0))
            spaced.extra["is_first"] = begun[each, at + 1] > begun[each, since]
        return spaced
