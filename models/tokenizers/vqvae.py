"""VQ-VAE (van den Oord et al., arXiv:1711.00937) with an EMA codebook.

Letters: B frames, H W pixels, h w latent grid, P = h * w patches, C channels, D latent width,
G codebooks of K codes, N = P * G codes a frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize

from kernels import nearest_code
from models.config import check_positive
from models.layers.laplacian import laplacian_l1
from models.tokenizers.codebook import update_codebook_ema
from models.tokenizers.codes import code_counts, perplexity
from models.tokenizers.tokenizer import LatentSpec


@dataclass(frozen=True)
class VqVaeConfig:
    image_size: tuple[int, int] = (64, 64)
    """Height and width of a frame, in pixels."""
    downsample: int = 8
    """Pixels between neighbouring latents; divides both sides of the frame."""
    patch_size: int = 4
    """Side of the patch that the first layer folds into channels, in pixels; the rest of the
    downsampling is done by halvings."""
    block_type: Literal["resnet", "convnext"] = "convnext"
    """Kind of residual block."""
    encoder_kernel: int = 1
    """Side of the encoder's kernels. At 1 a code depends on its own patch alone, so codes are
    still where the picture is still; wider kernels flicker."""
    decoder_kernel: int = 3
    """Side of the decoder's kernels; above 1 a patch is drawn with its neighbours in view."""
    channels: int = 256
    """Channels on the latent grid."""
    channel_mult: float = 0.5
    """Factor on the channels, for each halving away from the latent grid."""
    num_res_blocks: int = 2
    """Residual blocks at every resolution, in the encoder and again in the decoder."""
    num_codebooks: int = 4
    """Codes of one patch, each for its own share of the patch's vector (product quantisation).
    Edges move by less than a pixel a step: one code of 1,024 is too coarse to tell."""
    codebook_size: int = 256
    """Vectors in a codebook."""
    latent_dim: int = 32
    """Numbers that stand for one patch, shared out among its codebooks."""
    decay: float = 0.98
    """Moving average of the codebook, per step."""
    commitment_weight: float = 0.25
    """Weight of the commitment loss."""
    laplacian_weight: float = 0.0
    """Weight of a perceptual term that needs no download, an L1 between Laplacian pyramids."""
    vq_start_step: int = 150
    """Training steps before the first quantisation: k-means then starts from an encoder that
    already tells patches apart."""

    def __post_init__(self) -> None:
        counts = ("downsample", "stem", "channels", "codebooks", "codes", "code_width")
        check_positive(self, "--model.", *counts)
        height, width = self.image_size
        if height % self.downsample or width % self.downsample:
            raise ValueError(
                f"frames of {height} x {width} pixels do not divide into patches of "
                f"{self.downsample}; choose a downsample that divides both sides"
            )
        halvings = self.downsample / self.patch_size
        if halvings < 1 or 2 ** round(_log2(halvings)) != halvings:
            raise ValueError(
                f"downsample {self.downsample} is not stem {self.patch_size} times a power of two; "
                f"choose a stem of {self.downsample} or half, a quarter ... of it"
            )

        if self.latent_dim % self.num_codebooks:
            raise ValueError(
                f"a code width of {self.latent_dim} does not part among {self.num_codebooks} "
                f"codebooks; change --model.code-width or --model.codebooks"
            )

    @property
    def num_downsamples(self) -> int:
        return round(_log2(self.downsample / self.patch_size))

    @property
    def level_channels(self) -> list[int]:
        """Channels from the stem's resolution to the latent grid's."""
        return [
            max(8, round(self.channels * self.channel_mult**level / 8) * 8)
            for level in range(self.num_downsamples, -1, -1)
        ]


def _log2(value: float) -> float:
    return float(torch.log2(torch.tensor(value)))


class ConvNextBlock(nn.Module):
    """Depthwise mixing, then a channel MLP (Liu et al., arXiv:2201.03545)."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.depthwise = (
            nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
            if kernel > 1
            else nn.Identity()
        )
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, 2 * channels)
        self.contract = nn.Linear(2 * channels, channels)
        nn.init.zeros_(self.contract.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        y = self.norm(rearrange(self.depthwise(x), "B C h w -> B h w C"))
        y = self.contract(nn.functional.gelu(self.expand(y)))
        return x + rearrange(y, "B h w C -> B C h w")


class ResNetBlock(nn.Module):
    """Two convolutions around a skip (He et al., arXiv:1603.05027)."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        groups = 8
        self.layers = nn.Sequential(
            nn.GroupNorm(groups, channels) if kernel > 1 else _PixelNorm(channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, kernel, padding=kernel // 2),
            nn.GroupNorm(groups, channels) if kernel > 1 else _PixelNorm(channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, kernel, padding=kernel // 2),
        )
        nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class _PixelNorm(nn.Module):
    """Layer norm over channels: group norm would let one patch see the others."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(self.norm(rearrange(x, "B C h w -> B h w C")), "B h w C -> B C h w")


BLOCK_TYPES = {"convnext": ConvNextBlock, "resnet": ResNetBlock}


class VqVae(nn.Module):
    """Turn each patch of a frame into one of K codes and draw it back."""

    clip_length = 1
    codebook_initialized: bool
    """Steps of training are alike from now on: codebooks have begun, and nothing need look at
    values to know it, which would wait for a GPU."""

    def __init__(self, config: VqVaeConfig) -> None:
        super().__init__()
        self.config = config
        self.image_size = config.image_size
        height, width = config.image_size
        grid = (height // config.downsample, width // config.downsample)
        self.latents = LatentSpec(
            "discrete", grid, config.latent_dim, config.codebook_size, config.num_codebooks
        )

        self.encoder = _Encoder(config)
        self.quantizers = nn.ModuleList(
            VectorQuantize(
                dim=config.latent_dim // config.num_codebooks,
                codebook_size=config.codebook_size,
                decay=config.decay,
                kmeans_init=True,
                kmeans_iters=10,
                threshold_ema_dead_code=0.1,  # type: ignore[arg-type]
                commitment_weight=1.0,
                rotation_trick=False,
            )
            for _ in range(config.num_codebooks)
        )
        self.decoder = _Decoder(config)
        self.register_buffer("trained_steps", torch.zeros((), dtype=torch.long))
        self.codebook_initialized = False

    def encode(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, N) int64."""
        return self._quantize(self.encoder(_to_unit(frames)))[1]

    def decode(self, latents: Tensor) -> Tensor:
        """(B, N) int64 -> (B, 3, H, W) uint8."""
        pixels = self._decode_vectors(self._lookup(latents))
        return (pixels.float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)

    @property
    def codebooks(self) -> Tensor:
        """(G, K, D / G) float32."""
        return torch.stack([part.codebook.float() for part in self.quantizers])  # type: ignore

    def _lookup(self, codes: Tensor) -> Tensor:
        """(B, N) int64 -> (B, P, D)."""
        ids = codes.unflatten(-1, (-1, self.config.num_codebooks)).unbind(-1)
        codebooks = self.codebooks
        return torch.cat([book[part] for book, part in zip(codebooks, ids, strict=True)], dim=-1)

    def _decode_vectors(self, vectors: Tensor) -> Tensor:
        """(B, P, D) -> (B, 3, H, W), about [-1, 1]."""
        h, w = self.latents.grid
        return self.decoder(rearrange(vectors, "B (h w) D -> B D h w", h=h, w=w))

    def loss(self, frames: Tensor, actions: Tensor | None = None) -> dict[str, Tensor]:
        """Squared error and commitment (equation 3 of the paper; the codebook moves by EMA)."""
        target = _to_unit(frames.flatten(0, -4))
        if self.training and not self.codebook_initialized and self.trained_steps == 0:
            self.decoder.mean.copy_(target.mean(0))
        quantized, codes, commitment_loss = self._quantize(self.encoder(target))
        reconstruction = self._decode_vectors(quantized)
        losses = {
            # times 100: a loss of order one, so that the commitment's weight means what it says
            "reconstruction": 100 * nn.functional.mse_loss(reconstruction.float(), target),
            "commitment": self.config.commitment_weight * commitment_loss,
            "perplexity": perplexity(code_counts(codes, self.latents)),
        }
        if self.config.laplacian_weight:
            losses["pyramid"] = self.config.laplacian_weight * laplacian_l1(
                target, reconstruction.float()
            )
        return losses

    def _quantize(self, encoded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, D, h, w) -> quantized (B, P, D), codes (B, N), commitment ()."""
        # float32: nearest neighbours and moving averages do not survive bfloat16
        with torch.autocast(encoded.device.type, enabled=False):
            vectors = rearrange(encoded.float(), "B D h w -> B (h w) D").contiguous()
            if self.training:
                self.trained_steps += 1
                if (
                    not self.codebook_initialized
                    and self.trained_steps <= self.config.vq_start_step
                ):
                    shape = (len(vectors), self.latents.tokens_per_frame)
                    codes = torch.zeros(shape, dtype=torch.long, device=vectors.device)
                    return vectors, codes, vectors.new_zeros(())
            chunks = vectors.chunk(self.config.num_codebooks, dim=-1)
            codes = []
            for part, quantizer in zip(chunks, self.quantizers, strict=True):
                codebook: Tensor = quantizer.codebook.float()  # type: ignore[operator, union-attr]
                flat = part.flatten(0, 1)
                ids, counts, _ = nearest_code(flat, codebook)
                codes.append(ids.view(part.shape[:2]))
                if self.training:
                    weights = 1 / counts[ids].float()
                    update_codebook_ema(
                        quantizer, flat, weights, initialize=not self.codebook_initialized
                    )
            self.codebook_initialized = self.codebook_initialized or self.training
            codes = torch.stack(codes, dim=-1).flatten(1)
            quantized = self._lookup(codes)
            commitment_loss = nn.functional.mse_loss(vectors, quantized.detach())
            # the gradient passes straight through the choice of a code
            return vectors + (quantized - vectors).detach(), codes, commitment_loss


def _to_unit(frames: Tensor) -> Tensor:
    return frames.float() / 127.5 - 1


class _Encoder(nn.Module):
    def __init__(self, config: VqVaeConfig) -> None:
        super().__init__()
        height, width = config.image_size
        level_channels = config.level_channels
        block = BLOCK_TYPES[config.block_type]
        self.fold = Rearrange(
            "B c (h p) (w q) -> B (c p q) h w", p=config.patch_size, q=config.patch_size
        )
        self.conv_in = nn.Conv2d(3 * config.patch_size**2, level_channels[0], 1)
        # Where a patch lies: a camera that stands still has a background to be subtracted.
        self.pos_emb = nn.Parameter(
            torch.zeros(level_channels[0], height // config.patch_size, width // config.patch_size)
        )
        layers: list[nn.Module] = []
        for level, channels in enumerate(level_channels):
            layers += [block(channels, config.encoder_kernel) for _ in range(config.num_res_blocks)]
            if level + 1 < len(level_channels):
                layers.append(nn.Conv2d(channels, level_channels[level + 1], 2, stride=2))
        self.layers = nn.Sequential(*layers)
        self.norm = _PixelNorm(level_channels[-1])
        self.conv_out = nn.Conv2d(level_channels[-1], config.latent_dim, 1)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, D, h, w)."""
        x = self.conv_in(self.fold(frames)) + self.pos_emb
        return self.conv_out(self.norm(self.layers(x)))


class _Decoder(nn.Module):
    mean: Tensor

    def __init__(self, config: VqVaeConfig) -> None:
        super().__init__()
        height, width = config.image_size
        level_channels = config.level_channels[::-1]
        block = BLOCK_TYPES[config.block_type]
        self.conv_in = nn.Conv2d(config.latent_dim, level_channels[0], 1)
        self.pos_emb = nn.Parameter(
            torch.zeros(level_channels[0], height // config.downsample, width // config.downsample)
        )
        layers: list[nn.Module] = []
        for level, channels in enumerate(level_channels):
            layers += [block(channels, config.decoder_kernel) for _ in range(config.num_res_blocks)]
            if level + 1 < len(level_channels):
                layers.append(nn.ConvTranspose2d(channels, level_channels[level + 1], 2, stride=2))
        self.layers = nn.Sequential(*layers)
        self.norm = _PixelNorm(level_channels[-1])
        self.conv_out = nn.Conv2d(level_channels[-1], 3 * config.patch_size**2, 1)
        self.unfold = Rearrange(
            "B (c p q) h w -> B c (h p) (w q)", p=config.patch_size, q=config.patch_size
        )
        self.background = nn.Parameter(torch.zeros(3, height, width))
        # What the first batch looks like: a night need not be learnt from grey.
        self.register_buffer("mean", torch.zeros(3, height, width))

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, 3, H, W), about [-1, 1]."""
        x = self.conv_in(vectors) + self.pos_emb
        return self.unfold(self.conv_out(self.norm(self.layers(x)))) + self.background + self.mean
