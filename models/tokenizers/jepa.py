"""Latents learnt from their own prediction, with no picture drawn (LeWorldModel, arXiv:2603.19312).

An encoder and a predictor are trained end to end: from the latents of the last frames and the
actions between, those of the next.  What keeps all latents from becoming one is that they have to
be spread like a normal distribution (SIGReg, `models/layers/sigreg.py`): no second encoder that follows
the first, no stopped gradient.  A decoder is trained beside, to look at what is imagined; nothing
that it learns reaches the latents.

Stage 3 then fits dynamics of its own to the finished latents, as to any others.

Letters: B clips, T frames, H W pixels, P patches, D latent width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from einops import rearrange
from torch import Tensor, nn

from data.actions import ActionSpec
from models.dynamics.predictor import Predictor, PredictorConfig
from models.layers.conv_encoder import ConvEncoder
from models.layers.pixel_decoder import PixelDecoder
from models.layers.sigreg import effective_rank, sigreg
from models.layers.transformer import Transformer, TransformerConfig
from models.tokenizers.tokenizer import LatentSpec


@dataclass(frozen=True)
class JepaConfig:
    image_size: tuple[int, int] = (64, 64)
    """Height and width of a frame, in pixels."""
    patch_size: int = 8
    """Pixels along each side of what the encoder reads as one."""
    encoder: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(dim=192, num_layers=12, num_heads=3, mlp_dim=512)
    )
    """ViT-Tiny's size; its context does not count."""
    conv_filters: int = 0
    """Wide filters that read the frame in the ViT's place (`models/layers/conv_encoder.py`): what minutes on a
    CPU suffice for; 0 is the ViT."""
    proj_hidden: int = 768
    """Width between encoder and latent."""
    latent_dim: int = 192
    """Numbers of a frame's latent."""
    predictor: PredictorConfig = field(default_factory=lambda: PredictorConfig(rewards=False))
    num_action_blocks: int = 3
    """Blocks of actions in a training clip."""
    sigreg_weight: float = 0.1
    """Weight of the latents' distance from a normal distribution, beside 1 for the prediction."""
    num_slices: int = 1024
    """Directions along which that is measured."""
    channels: int = 64
    """Channels of the decoder."""
    num_res_blocks: int = 2
    """Residual blocks of the decoder."""

    def __post_init__(self) -> None:
        if not self.conv_filters and any(side % self.patch_size for side in self.image_size):
            raise ValueError(
                f"frames of {self.image_size} pixels do not part into patches of {self.patch_size}; "
                f"choose a --model.patch that divides both sides"
            )


class VitEncoder(nn.Module):
    """(B, 3, H, W) ink -> (B, hidden): a ViT, its patches averaged."""

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


class Jepa(nn.Module):
    """Turn a frame into one vector that can be foretold."""

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
        # A ViT's last norm puts its output on a sphere, where nothing is normal. Normalised over
        # the batch, latents have a spread from the first step on, and what stands on few pixels
        # counts in them before the predictor has found it unforeseeable.
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

    @property
    def codebooks(self) -> Tensor:
        return torch.zeros(0)

    def encode(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, 1, D) float."""
        inverted = 1 - frames.float() / 255
        return self.norm(self.proj(self.encoder(inverted)).float())[:, None]

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 1, D) -> (B, 3, H, W) uint8."""
        return (self.decoder(latents).float().clamp(0, 1) * 255).round().to(torch.uint8)

    def predict(self, latents: Tensor, actions: Tensor) -> Tensor:
        """(B, C, 1, D) and their blocks of actions (B, C, skip, A) -> the next (B, C, 1, D).

        Said anew, not as a change.  Where the first guess is that all stays, what moves is a
        surprise, and the encoder gives it up (the agent first) before any action is understood.
        """
        num_actions = torch.full(
            actions.shape[:2], self.config.predictor.frameskip, device=latents.device
        )
        return self.predictor.predict(latents, actions, num_actions)[0] - latents

    def loss(self, frames: Tensor, actions: Tensor) -> dict[str, Tensor]:
        """Squared error of foretold latents, their distance from a normal distribution, and, apart
        from both, that of the decoder's picture.

        frames (B, T, 3, H, W) uint8, T = `clip`; actions (B, T, A) normalised, or (B, T) codes.
        """
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
        return {
            "prediction": prediction,
            "regularity": self.config.sigreg_weight * sigreg(flat, self.config.num_slices),
            "reconstruction": 100
            * nn.functional.mse_loss(self.decoder(first_latents).float(), target),
            "of_staying": prediction.detach() / copy_mse.clamp(min=1e-8),
            "rank": torch.tensor(effective_rank(flat.detach().float())),
            "variance": flat.detach().float().var(0).mean(),
        }
