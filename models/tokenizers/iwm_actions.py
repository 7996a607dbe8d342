"""Image world model of recordings: the next frame's latents, predicted from the last one's under
the actions between them.

What a view's numbers are to `iwm` (Garrido et al., arXiv:2403.00504), recorded actions are here: a
learned map makes 16 numbers of them, and the predictor gives the latents of the frame that they
lead to.  Targets are those of an encoder that follows by moving average.  Nothing is masked;
variances and covariances (models/layers/vicreg.py) keep the latents from collapsing.  Stage 3
trains the predictor on, over more frames (models/dynamics/iwm_dynamics.py).

Letters: B clips, T frames, H W pixels, P patches, D width, A action numbers.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from data.actions import ActionSpec
from data.batch import Batch
from data.ranges import MAX_STEPS, CheckedConfig, Range
from models.dynamics.frameskip_dynamics import ActionBlockEmbedding
from models.layers.iwm_predictor import IwmPredictor
from models.layers.pixel_decoder import PixelDecoder
from models.layers.vicreg import variance_covariance
from models.layers.views import SLOTS
from models.layers.vit import VitConfig
from models.layers.wide_encoder import PIXELS, WideEncoder
from models.method import Best, Losses
from models.tokenizers.tokenizer import LatentSpec, Tokenizer

LEAST_STD = 0.5  # of each number of the latents, which are about 1 with their mean
DECODED = 16  # frames of a batch that the decoder learns from, which the latents do not need


@dataclass(frozen=True)
class IwmActionsConfig(CheckedConfig):
    image_size: Annotated[tuple[int, int], Range(1, 4096)] = (64, 64)
    """Height and width of a frame, in pixels."""
    patch_size: Annotated[int, Range(4, 256)] = 32
    """Side of a patch, in pixels, a multiple of 4; divides both sides of the frame."""
    num_filters: Annotated[int, Range(1, 2**13)] = 768
    """Wide filters, 20 pixels a side, whose answers are pooled in each patch."""
    encoder: VitConfig = field(default_factory=lambda: VitConfig(384, 2, 6))
    """The encoder over these answers."""
    predictor: VitConfig = field(default_factory=lambda: VitConfig(384, 8, 12))
    """The predictor, told of the actions."""
    conditioning: Literal["sequence", "feature"] = "feature"
    """How the predictor is told of the actions: as features of each mask token, or as a sequence of
    16 tokens."""
    frameskip: Annotated[int, Range(1, 1000)] = 5
    """Actions from a frame to the one that is predicted."""
    action_dim: Annotated[int, Range(1, 2**12)] = 192
    """Width in which these actions are joined, before they are 16 numbers."""
    variance_weight: Annotated[float, Range(0, 10**6)] = 1.0
    """Weight of the variances and covariances of the latents; the prediction's is 1."""
    ema_decay: Annotated[float, Range(0, high=1)] = 0.99
    """Decay of the target encoder's moving average at the first step; it rises to 1."""
    ema_steps: Annotated[int, Range(1, MAX_STEPS)] = 100_000
    """Steps over which the decay rises, linearly; those of the training."""
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
        if self.patch_size % PIXELS:
            raise ValueError(
                f"--patch-size {self.patch_size} is no multiple of {PIXELS}, the pixels from one "
                f"answer of a filter to the next; give {PIXELS * -(-self.patch_size // PIXELS)}"
            )


class IwmActions(Tokenizer):
    """Frames to a vector per patch, which a predictor moves under actions."""

    needs = frozenset({"frames", "actions"})
    encoder_parts = ("target_encoder",)
    best = Best("total", higher_is_better=False)
    num_steps: Tensor

    def __init__(self, config: IwmActionsConfig, actions: ActionSpec) -> None:
        super().__init__()
        self.config = config
        self.image_size = config.image_size
        rows, columns = (side // config.patch_size for side in config.image_size)
        self.latents = LatentSpec("continuous", (rows, columns), config.encoder.dim)
        self.encoder = WideEncoder(
            config.encoder, config.num_filters, config.image_size, config.patch_size
        )
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.action_emb = ActionBlockEmbedding(actions, config.frameskip, config.action_dim)
        self.to_slots = nn.Linear(config.action_dim, SLOTS)
        self.predictor = IwmPredictor(
            config.predictor, config.encoder.dim, max(rows, columns), config.conditioning
        )
        self.decoder = PixelDecoder(
            self.latents, config.image_size, config.channels, config.num_res_blocks
        )
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.long))

    @property
    def clip_length(self) -> int:
        return self.config.frameskip + 1

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, P, D)."""
        return self._latents(self.target_encoder, frames)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, P, D) -> (B, 3, H, W) uint8."""
        return (self.decoder(latents).float().clamp(0, 1) * 255).round().to(torch.uint8)

    def loss(self, batch: Batch) -> Losses:
        """Squared error of the last frame's latents, predicted from the first one's; variances and
        covariances of the first one's; and the decoder's squared error, times 100.

        frames (B, T, 3, H, W), T = frameskip + 1.  The decoder's gradient does not reach the
        latents.
        """
        frames, actions = batch.require("frames", "actions")
        first, last = frames[:, 0], frames[:, -1]
        latents = self._latents(self.encoder, first)
        with torch.no_grad():
            targets = self._latents(self.target_encoder, last)
        found = self._predict(latents, actions[:, : self.config.frameskip]).float()
        error = (found - targets).square().mean()
        spread = (targets - targets.mean(0)).square().mean().clamp(min=1e-8)
        reconstruction = self.decoder(targets[:DECODED]).float()
        drawn = last[:DECODED].float() / 255
        losses = {
            "prediction": error,
            "variance": self.config.variance_weight * variance_covariance(latents, LEAST_STD),
            "reconstruction": 100 * nn.functional.mse_loss(reconstruction, drawn),
        }
        return losses | {"relative_error": (error / spread).detach()}

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the target encoder; the decay rises linearly to 1."""
        config = self.config
        share = (self.num_steps / config.ema_steps).clamp(max=1)
        decay = config.ema_decay + (1 - config.ema_decay) * share
        for mean, value in zip(
            self.target_encoder.parameters(), self.encoder.parameters(), strict=True
        ):
            mean.lerp_(value.to(mean.dtype), (1 - decay).to(mean.dtype))
        self.num_steps += 1

    @torch.no_grad()
    def validate(self, held_out: Batch) -> dict[str, float]:
        """The losses, and the sum of what trains the latents."""
        losses = {name: float(value) for name, value in self.loss(held_out).items()}
        return losses | {"total": losses["prediction"] + losses["variance"]}

    def _latents(self, encoder: WideEncoder, frames: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, P, D) float32."""
        return encoder(1 - frames.float() / 255).float()

    def _predict(self, latents: Tensor, actions: Tensor) -> Tensor:
        """(B, P, D), (B, frameskip, A) -> (B, P, D)."""
        count = torch.full((len(latents),), self.config.frameskip, device=latents.device)
        action = self.to_slots(self.action_emb(actions, count))
        places = self.encoder.positions.expand(len(latents), -1, -1)
        return self.predictor(latents, places, places, action)
