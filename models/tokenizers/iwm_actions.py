"""Image world model of recordings: the next frame's latents, predicted from the last one's under
the actions between them.

What a view's numbers are to `iwm` (Garrido et al., arXiv:2403.00504), recorded actions are here: a
learned map makes 16 numbers of them, and the predictor gives the latents of the frame that they
lead to.  Prediction teaches the predictor alone.  The encoder keeps the main components of what
wide filters answer (models/layers/wide_encoder.py): one that was taught by prediction, with a
target by moving average, said less of where a block is than before (docs/concepts/iwm.md).  Stage 3
trains the predictor on, over more frames (models/dynamics/iwm_dynamics.py).

Letters: B clips, T frames, H W pixels, P patches, D width, A action numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from data.actions import ActionSpec
from data.batch import Batch
from data.ranges import CheckedConfig, Range
from models.layers.action_block_embedding import ActionBlockEmbedding
from models.layers.iwm_predictor import IwmPredictor
from models.layers.pixel_decoder import PixelDecoder
from models.layers.views import SLOTS
from models.layers.vit import VitConfig
from models.layers.wide_encoder import PIXELS, WideEncoder
from models.method import Best, Losses
from models.tokenizers.tokenizer import LatentSpec, Tokenizer

DECODED = 16  # frames of a batch that the decoder learns from, which the latents do not need


@dataclass(frozen=True)
class IwmActionsConfig(CheckedConfig):
    image_size: Annotated[tuple[int, int], Range(1, 4096)] = (64, 64)
    """Height and width of a frame, in pixels."""
    patch_size: Annotated[int, Range(4, 256)] = 32
    """Side of a patch, in pixels, a multiple of 4; divides both sides of the frame."""
    num_filters: Annotated[int, Range(1, 2**13)] = 768
    """Wide filters, 20 pixels a side, whose mean and largest answers in each patch are encoded."""
    latent_dim: Annotated[int, Range(1, 2**14)] = 384
    """Numbers of a patch: the main components of twice as many answers as there are filters."""
    predictor: VitConfig = field(default_factory=lambda: VitConfig(384, 8, 12))
    """The predictor, told of the actions."""
    conditioning: Literal["sequence", "feature"] = "feature"
    """How the predictor is told of the actions: as features of each mask token, or as a sequence of
    16 tokens."""
    frameskip: Annotated[int, Range(1, 1000)] = 5
    """Actions from a frame to the one that is predicted."""
    action_dim: Annotated[int, Range(1, 2**12)] = 192
    """Width in which these actions are joined, before they are 16 numbers."""
    channels: Annotated[int, Range(1, 2**13)] = 64
    """Channels of the decoder."""
    num_res_blocks: Annotated[int, Range(0, 100)] = 2
    """Residual blocks of the decoder."""

    def check(self) -> None:
        super().check()
        size = f"--image-size {self.image_size[0]} {self.image_size[1]}"
        if any(side % self.patch_size for side in self.image_size):
            raise ValueError(
                f"{size} is not divisible by --patch-size {self.patch_size}; choose one that "
                f"divides both sides"
            )
        if self.latent_dim > 2 * self.num_filters:
            raise ValueError(
                f"--latent-dim {self.latent_dim} is more than the {2 * self.num_filters} answers "
                f"of --num-filters {self.num_filters}; lower the first, or raise the second"
            )
        if self.patch_size % PIXELS:
            raise ValueError(
                f"--patch-size {self.patch_size} is no multiple of {PIXELS}, the pixels from one "
                f"answer of a filter to the next; give {PIXELS * -(-self.patch_size // PIXELS)}"
            )


class IwmActions(Tokenizer):
    """Frames to a vector per patch, which a predictor moves under actions."""

    needs = frozenset({"frames", "actions"})
    encoder_parts = ("encoder",)
    best = Best("relative_error", higher_is_better=False)

    def __init__(self, config: IwmActionsConfig, actions: ActionSpec) -> None:
        super().__init__()
        self.config = config
        self.image_size = config.image_size
        rows, columns = (side // config.patch_size for side in config.image_size)
        self.latents = LatentSpec("continuous", (rows, columns), config.latent_dim)
        self.encoder = WideEncoder(
            config.latent_dim, config.num_filters, config.image_size, config.patch_size
        )
        self.action_emb = ActionBlockEmbedding(actions, config.frameskip, config.action_dim)
        self.to_slots = nn.Linear(config.action_dim, SLOTS)
        self.predictor = IwmPredictor(
            config.predictor, config.latent_dim, max(rows, columns), config.conditioning
        )
        self.decoder = PixelDecoder(
            self.latents, config.image_size, config.channels, config.num_res_blocks
        )

    @property
    def clip_length(self) -> int:
        return self.config.frameskip + 1

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, P, D)."""
        return self.encoder(1 - frames.float() / 255).float()

    def decode(self, latents: Tensor) -> Tensor:
        """(B, P, D) -> (B, 3, H, W) uint8."""
        return (self.decoder(latents).float().clamp(0, 1) * 255).round().to(torch.uint8)

    def loss(self, batch: Batch) -> Losses:
        """Squared error of the last frame's latents, predicted from the first one's; what the
        latents lose of the filters' answers; and the decoder's squared error, times 100.

        frames (B, T, 3, H, W), T = frameskip + 1.  The gradients of predictor and decoder do not
        reach the latents.
        """
        frames, actions = batch.require("frames", "actions")
        both = torch.cat([frames[:, 0], frames[:, -1]]).float() / 255
        answers = self.encoder.answers(1 - both)
        encoded = self.encoder.project(answers)
        first, last = encoded.detach().float().chunk(2)
        found = self._predict(first, actions[:, : self.config.frameskip]).float()
        error = (found - last).square().mean()
        copy_mse = (first - last).square().mean().clamp(min=1e-8)
        drawn = self.decoder(last[:DECODED]).float()
        return {
            "prediction": error,
            "lost": self.encoder.lost(answers, encoded),
            "reconstruction": 100 * nn.functional.mse_loss(drawn, both.chunk(2)[1][:DECODED]),
            "relative_error": (error / copy_mse).detach(),
        }

    @torch.no_grad()
    def validate(self, held_out: Batch) -> dict[str, float]:
        """The losses; the relative error is 1 where no change is predicted."""
        return {name: float(value) for name, value in self.loss(held_out).items()}

    def _predict(self, latents: Tensor, actions: Tensor) -> Tensor:
        """(B, P, D), (B, frameskip, A) -> (B, P, D)."""
        count = torch.full((len(latents),), self.config.frameskip, device=latents.device)
        action = self.to_slots(self.action_emb(actions, count))
        places = self.encoder.positions.expand(len(latents), -1, -1)
        return self.predictor(latents, places, places, action)
