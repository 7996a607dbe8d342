"""A training step that one would write with transformers and PEFT alone: frames and actions in turn
through small encoders, a causal language model, and a linear layer to the next frame.

Letters: B clips, K blocks, N actions of a block, A numbers of one, D latent width, W width.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn

INSTALL = "-r requirements-lora.txt"
Tuning = Literal["full", "lora"]


class PlainLanguageModel(nn.Module):
    """Frames (B, K, D) and actions (B, K, N, A) to the next frames, (B, K, D)."""

    def __init__(
        self, backbone: Any, width: int, latent_dim: int, actions: tuple[int, int], tuning: Tuning,
        rank: int,
    ) -> None:  # fmt: skip
        """actions: N and A.  backbone: a model of transformers, whose weights are copied.

        ImportError without PEFT where there are adapters."""
        super().__init__()
        self.backbone = copy.deepcopy(backbone)
        if tuning == "lora":
            import peft

            adapters = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # PEFT reads an older name
                self.backbone = peft.get_peft_model(self.backbone, adapters)
        self.frame_in = nn.Linear(latent_dim, width)
        count, numbers = actions
        self.action_in = nn.Sequential(
            nn.Linear(numbers, width), nn.GELU(), nn.Flatten(-2), nn.Linear(count * width, width)
        )
        self.out = nn.Linear(width, latent_dim)

    def forward(self, frames: Tensor, actions: Tensor) -> Tensor:
        tokens = torch.stack([self.frame_in(frames), self.action_in(actions)], dim=2)
        # float32, as what a table of words gives under autocast
        read = self.backbone(inputs_embeds=tokens.flatten(1, 2).float(), use_cache=False)
        return frames + self.out(read.last_hidden_state[:, 1::2])
