"""The predictor of an image world model, as dynamics under recorded actions.

The tokenizer's predictor has learned how 16 numbers change an image's latents (IWM,
arXiv:2403.00504).  Here a learned map makes these numbers of a block of actions, and the predictor
is trained on: masked patches are those of the next context frame, at the places of the last one.

Letters: B clips, C context frames, K frames that a prediction reads, P patches, D latent width, A
action numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from data.actions import ActionSpec
from data.ranges import Range
from models.dynamics.dynamics import Memory
from models.dynamics.frameskip_dynamics import (
    FrameskipConfig,
    FrameskipDynamics,
)
from models.layers.action_block_embedding import ActionBlockEmbedding
from models.layers.iwm_predictor import IwmPredictor
from models.layers.views import SLOTS
from models.layers.vit import VitConfig, patch_positions
from models.tokenizers.codes import HasCodebooks
from models.tokenizers.tokenizer import LatentSpec


@dataclass(frozen=True)
class IwmDynamicsConfig(FrameskipConfig):
    predictor: VitConfig = field(default_factory=lambda: VitConfig(384, 8, 12))
    """The predictor; that of the tokenizer, where its weights are taken."""
    conditioning: Literal["sequence", "feature"] = "feature"
    """How the predictor is told of the actions, as in the tokenizer."""
    context_frames: Annotated[int, Range(1, 64)] = 2
    """Frames that a prediction reads, `frameskip` apart; of one alone no speed is seen."""
    action_dim: Annotated[int, Range(1, 2**12)] = 192
    """Width in which the actions of a block are joined, before they are 16 numbers."""
    from_tokenizer: bool = True
    """Begin with the weights of the tokenizer's predictor, not with random ones."""


@dataclass
class Frames:
    """The context frames before the last one, oldest first: (B, j, P, D), j < K."""

    latents: Tensor

    def select(self, index: Tensor) -> Frames:
        return Frames(self.latents[index])


class IwmDynamics(FrameskipDynamics):
    """Predict the next context frame from the last K, as views of one another."""

    config: IwmDynamicsConfig
    positions: Tensor

    def __init__(self, config: IwmDynamicsConfig, latents: LatentSpec, actions: ActionSpec) -> None:
        super().__init__(config, latents, actions, config.context_frames)
        rows, columns = latents.grid
        self.register_buffer("positions", patch_positions(rows, columns), persistent=False)
        self.predictor = IwmPredictor(
            config.predictor, latents.dim, max(rows, columns), config.conditioning
        )
        self.frame_emb = nn.Parameter(torch.zeros(config.context_frames, 1, latents.dim))
        self.action_emb = ActionBlockEmbedding(actions, self.frameskip, config.action_dim)
        self.to_slots = nn.Linear(config.action_dim, SLOTS)
        # the first prediction is no change (ReZero, arXiv:2003.04887)
        self.gate = nn.Parameter(torch.zeros(latents.dim))
        self.add_heads(latents.dim)

    def begin_with(self, tokenizer: HasCodebooks) -> None:
        """Take the weights of the tokenizer's predictor, and of what tells it of as many actions;
        ValueError where it has no predictor like this one."""
        if not self.config.from_tokenizer:
            return
        theirs = getattr(tokenizer, "predictor", None)
        if not isinstance(theirs, IwmPredictor):
            raise ValueError(
                f"the run's tokenizer is a {type(tokenizer).__name__}, which has no predictor of "
                f"views to begin with; train an IWM (--preset iwm), or give "
                f"--model.no-from-tokenizer"
            )
        config = tokenizer.config  # type: ignore[attr-defined]
        for name in ("predictor", "conditioning"):
            mine, other = getattr(self.config, name), getattr(config, name)
            if mine != other:
                raise ValueError(
                    f"--model.{name} of the dynamics is {mine}, and that of the run's tokenizer "
                    f"{other}; give both the same sizes, or give --model.no-from-tokenizer"
                )
        self.predictor.load_state_dict(theirs.state_dict())
        told = ("frameskip", "action_dim")
        if all(getattr(config, name, None) == getattr(self.config, name) for name in told):
            for name in ("action_emb", "to_slots"):
                getattr(self, name).load_state_dict(getattr(tokenizer, name).state_dict())

    def predict(
        self, context: Tensor, actions: Tensor, num_actions: Tensor
    ) -> tuple[Tensor, Tensor]:
        missing = self.context_frames - 1
        before = context[:, :1].expand(-1, missing, -1, -1)
        windows = torch.cat([before, context], 1).unfold(1, self.context_frames, 1)  # (B C P D K)
        windows = windows.movedim(-1, 2).flatten(0, 1)
        out = self._predict_blocks(windows, actions.flatten(0, 1), num_actions.flatten(0, 1))
        out = out.unflatten(0, context.shape[:2])
        return self._towards(context, out), out

    def predict_next(
        self, context_frame: Tensor, actions: Tensor, num_actions: Tensor, past: Memory | None
    ) -> tuple[Tensor, Tensor, Frames]:
        assert past is None or isinstance(past, Frames)
        frames = context_frame[:, None]
        if past is not None:
            frames = torch.cat([past.latents, frames], 1)
        first = frames[:, :1].expand(-1, self.context_frames - frames.shape[1], -1, -1)
        out = self._predict_blocks(torch.cat([first, frames], 1), actions[:, 0], num_actions[:, 0])
        kept = frames[:, max(0, frames.shape[1] - self.context_frames + 1) :]
        return out, self._towards(context_frame, out), Frames(kept)

    def read_past(self, context: Tensor, actions: Tensor, num_actions: Tensor) -> Frames:
        return Frames(context)

    def _predict_blocks(self, frames: Tensor, actions: Tensor, num_actions: Tensor) -> Tensor:
        """(B, K, P, D), (B, frameskip, A), (B,) -> (B, P, D): where an episode has no earlier
        frame, its first one stands for it."""
        action = self.to_slots(self.action_emb(actions, num_actions))
        tokens = (frames + self.frame_emb.to(frames.dtype)).flatten(1, 2)
        places = self.positions.expand(len(frames), -1, -1)
        seen = self.positions.repeat(self.context_frames, 1).expand(len(frames), -1, -1)
        return self.predictor(tokens, seen, places, action)

    def _towards(self, latents: Tensor, out: Tensor) -> Tensor:
        return latents + (self.gate * (out - latents)).to(latents.dtype)
