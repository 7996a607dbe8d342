"""Sampling of codes from logits.

Letters: K codes of a codebook.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from data.ranges import CheckedConfig, Range


@dataclass(frozen=True)
class Sampling(CheckedConfig):
    """How a code is drawn from the probabilities that a model predicts."""

    temperature: Annotated[float, Range(0, 1000)] = 0.0
    """0 takes the likeliest code, MaskGIT that of least risk; 1 samples from probabilities."""
    top_k: Annotated[int, Range(0, 2**20)] = 0
    """Number of likeliest codes to sample from; 0 is all."""
    top_p: Annotated[float, Range(above=0, high=1)] = 1.0
    """Probability of the likeliest codes to sample from (nucleus sampling, arXiv:1904.09751); 1 is
    all."""
    steps: Annotated[int, Range(0, 1000)] = 0
    """Passes over a frame that is predicted in parts (MaskGIT); 0 is as the model says."""
    order: Literal["confidence", "random"] = "confidence"
    """Which codes are kept first, where there are several passes."""

    def sample(self, logits: Tensor) -> Tensor:
        """logits: (..., K) -> codes, (...) int64, without waiting for the device."""
        if not self.temperature:
            return logits.argmax(-1)
        logits = logits.float()
        logits = (logits - logits.amax(-1, keepdim=True)) / self.temperature  # safe with a tiny one
        if not self.top_k and self.top_p == 1:
            return sample_categorical(torch.softmax(logits, dim=-1))
        # stable: among equals the first stays the likeliest, as for argmax
        logits, codes = logits.sort(dim=-1, descending=True, stable=True)
        probs = torch.softmax(logits[..., : self.top_k or None], dim=-1)
        if self.top_p < 1:
            cumulative = nn.functional.pad(probs.cumsum(-1)[..., :-1], (1, 0))
            probs = probs.where(cumulative < self.top_p, 0.0)
        return codes.gather(-1, sample_categorical(probs)[..., None])[..., 0]


def sample_categorical(probs: Tensor) -> Tensor:
    """Sample an index by its probability, (..., K) -> (...); they need not sum to 1."""
    return _exponential_race(probs).argmax(-1)


def sample_rows(probs: Tensor, count: int) -> Tensor:
    """Sample `count` indices without replacement by probability, (K,): (count,) int64."""
    return _exponential_race(probs).topk(count).indices


def _exponential_race(probs: Tensor) -> Tensor:
    """Race exponential clocks, as torch.multinomial does, without its input check, which waits for
    the GPU."""
    exponential = torch.empty_like(probs).exponential_().clamp_(min=torch.finfo(probs.dtype).tiny)
    return probs / exponential
