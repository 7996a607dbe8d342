"""Joint-embedding prediction: latents learned by predicting them (LeWorldModel, arXiv:2603.19312).

An encoder and a predictor are trained end to end: from the latents of the last frames and the
actions between them to the next latents.  SIGReg (`models/layers/sigreg.py`) prevents collapse by
keeping latents normally distributed; there is no EMA encoder and no stopped gradient.  A decoder is
trained at the same time to show model rollouts; its gradient does not reach the latents.

Stage 3 trains a dynamics model of its own on these latents, as on any others.

Letters: B clips, T frames, H W pixels, P patches, D latent width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated

import torch
from einops import rearrange
from torch import Tensor, nn

from data.actions import ActionSpec
from data.batch import Batch
from data.ranges import CheckedConfig, Range
from models.dynamics.predictor import Predictor, PredictorConfig
from models.layers.conv_encoder import ConvEncoder
from models.layers.pixel_decoder import PixelDecoder
from models.layers.sigreg import effective_rank, sigreg
from models.layers.transformer import Transformer, TransformerConfig
from models.method import Losses
from models.tokenizers.tokenizer import LatentSpec, Tokenizer


@dataclass(frozen=True)
class JepaConfig(CheckedConfig):
    image_size: Annotated[tuple[int, int], Range(1, 4096)] = (64, 64)
    """Height and width of a frame, in pixels."""
    patch_size: Annotated[int, Range(1, 256)] = 8
    """Side of the encoder's patches, in pixels."""
    encoder: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(dim=192, num_layers=12, num_heads=3, mlp_dim=512)
    )
    """ViT-Tiny's size; its `context_frames` has no effect."""
    conv_filters: Annotated[int, Range(0, 2**13)] = 0
    """Filters of the convolutional encoder, which trains in minutes on a CPU
    (`models/layers/conv_encoder.py`); 0 uses the ViT."""
    proj_hidden: Annotated[int, Range(1, 2**16)] = 768
    """Width of the encoder's output, before the projection to the latent."""
    latent_dim: Annotated[int, Range(1, 2**14)] = 192
    """Width of a frame's latent."""
    predictor: PredictorConfig = field(default_factory=lambda: PredictorConfig(rewards=False))
    """Its `clip_length` has no effect: `num_action_blocks` sets it."""
    num_action_blocks: Annotated[int, Range(1, 1000)] = 3
    """Action blocks of a training clip."""
    sigreg_weight: Annotated[float, Range(0, 10**6)] = 0.1
    """Weight of SIGReg; the prediction's is 1."""
    num_slices: Annotated[int, Range(1, 2**20)] = 1024
    """Random directions of SIGReg."""
    channels: Annotated[int, Range(1, 2**13)] = 64
    """Channels of the decoder."""
    num_res_blocks: Annotated[int, Range(0, 100)] = 2
    """Residual blocks of the decoder."""

    def check(self) -> None:
        super().check()
        if not self.conv_filters and any(side % self.patch_size for side in self.image_size):
            raise ValueError(
                f"--image-size {self.image_size[0]} {self.image_size[1]} is not divisible by "
                f"--patch-size {self.patch_size}; choose one that divides both sides"
            )


class VitEncoder(nn.Module):
    """A ViT with mean pooling: (B, 3, H, W) inverted frames -> (B, proj_hidden)."""

    def __init__(self, config: JepaConfig) -> None:
        super().__init__()
        rows, columns = (side // config.patch_size for side in config.image_size)
        positions = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
        dim = config.encoder.dim
        self.patch_emb = nn.Conv2d(3, dim, config.patch_size, config.patch_size)
        self.pos_emb = nn.Parameter(0.02 * torch.randn(len(positions), dim))
        self.layers = Transformer(
            replace(config.encoder, context_frames=1), positions, causal_within_frame=False
        )
        self.out = nn.Linear(dim, config.proj_hidden)

    def forward(self, inverted: Tensor) -> Tensor:
        x = rearrange(self.patch_emb(inverted), "B W h w -> B (h w) W") + self.pos_emb
        return self.out(self.layers(x)[0].mean(1))


class Jepa(Tokenizer):
    """Turn a frame into one vector that is predictable."""

    needs = frozenset({"frames", "actions"})

    def __init__(self, config: JepaConfig, actions: ActionSpec) -> None:
        super().__init__()
        self.config = config
        self.image_size = config.image_size
        self.latents = LatentSpec("continuous", (1, 1), config.latent_dim)
        self.encoder = (
            ConvEncoder(config.conv_filters, config.proj_hidden)
            if config.conv_filters
            else VitEncoder(config)
        )
        # A ViT's last norm puts its output on a sphere, which no normal distribution fits.  A batch
        # norm gives latents unit variance from the first step on, so that small objects count
        # before the predictor learns to ignore them.
        self.proj = nn.Sequential(nn.GELU(), nn.Linear(config.proj_hidden, config.latent_dim))
        self.norm = nn.BatchNorm1d(config.latent_dim, affine=False, momentum=0.05)
        self.predictor = Predictor(config.predictor, self.latents, actions)
        nn.init.normal_(self.predictor.delta_head.weight, std=0.02)
        self.decoder = PixelDecoder(
            self.latents, config.image_size, config.channels, config.num_res_blocks
        )

    @property
    def clip_length(self) -> int:
        return self.config.num_action_blocks * self.config.predictor.frameskip + 1

    def encode(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, 1, D) float."""
        inverted = 1 - frames.float() / 255
        return self.norm(self.proj(self.encoder(inverted)).float())[:, None]

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 1, D) -> (B, 3, H, W) uint8."""
        return (self.decoder(latents).float().clamp(0, 1) * 255).round().to(torch.uint8)

    def predict(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Latents (B, C, 1, D), action blocks (B, C, frameskip, A) -> the next (B, C, 1, D).

        The output is absolute, not a change.  If the first prediction is no change, moving objects
        are errors, and the encoder drops them before the predictor understands actions.
        """
        num_actions = torch.full(
            actions.shape[:2], self.config.predictor.frameskip, device=latents.device
        )
        return self.predictor.predict(latents, actions, num_actions)[0] - latents

    def loss(self, batch: Batch) -> Losses:
        """Squared error of predicted latents, SIGReg, and the decoder's squared error, times 100.

        SIGReg, the ratio of errors and the batch norm are computed over a (micro-)batch.
        """
        frames, actions = batch.require("frames", "actions")
        frameskip, num_blocks = self.config.predictor.frameskip, self.config.num_action_blocks
        sampled_frames = frames[:, ::frameskip]
        latents = self.encode(sampled_frames.flatten(0, 1)).unflatten(0, sampled_frames.shape[:2])
        action_blocks = actions[:, : num_blocks * frameskip].unflatten(1, (num_blocks, frameskip))
        predicted = self.predict(latents[:, :-1], action_blocks)
        flat = latents.flatten(0, 2)
        first_latents = latents[:, 0].detach()
        target = frames[:, 0].float() / 255
        with torch.no_grad():
            copy_mse = (latents[:, 1:] - latents[:, :-1]).square().mean()
        prediction = (predicted - latents[:, 1:]).float().square().mean()
        reconstruction = self.decoder(first_latents).float()
        return {
            "prediction": prediction,
            "sigreg": self.config.sigreg_weight * sigreg(flat, self.config.num_slices),
            "reconstruction": 100 * nn.functional.mse_loss(reconstruction, target),
            "relative_error": prediction.detach() / copy_mse.clamp(min=1e-8),
            "effective_rank": torch.tensor(effective_rank(flat.detach().float())),
            "variance": flat.detach().float().var(0).mean(),
        }
