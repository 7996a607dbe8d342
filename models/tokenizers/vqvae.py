"""VQ-VAE (van den Oord et al., arXiv:1711.00937) with an EMA codebook.

Letters: B frames, H W pixels, h w latent grid, P = h * w patches, C channels, D latent width,
G codebooks of K codes, N = P * G codes a frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize

from data.batch import Batch
from data.ranges import MAX_STEPS, CheckedConfig, Range
from kernels import nearest_code
from models.layers.blocks import ConvNextBlock, PixelNorm, ResNetBlock
from models.method import Losses
from models.tokenizers.codebook import init_codebook, update_codebook_ema
from models.tokenizers.codes import code_counts, perplexity
from models.tokenizers.tokenizer import LatentSpec, Tokenizer


@dataclass(frozen=True)
class VqVaeConfig(CheckedConfig):
    image_size: Annotated[tuple[int, int], Range(1, 4096)] = (64, 64)
    """Height and width of a frame, in pixels."""
    downsample: Annotated[int, Range(1, 256)] = 8
    """Pixels per latent along each side; divides both sides of the frame."""
    patch_size: Annotated[int, Range(1, 256)] = 4
    """Side of the patches that the first layer folds into channels, in pixels; halvings do the rest
    of the downsampling."""
    block_type: Literal["resnet", "convnext"] = "convnext"
    """Kind of residual block."""
    encoder_kernel: Annotated[int, Range(1, 31)] = 1
    """Side of the encoder's kernels.  At 1 a code depends on its own patch only, so codes do not
    change where the image does not; with wider kernels they flicker."""
    decoder_kernel: Annotated[int, Range(1, 31)] = 3
    """Side of the decoder's kernels; above 1 a patch's pixels depend on its neighbors."""
    channels: Annotated[int, Range(1, 2**13)] = 256
    """Channels on the latent grid."""
    channel_mult: Annotated[float, Range(above=0, high=4)] = 0.5
    """Factor on the channels per halving away from the latent grid."""
    num_res_blocks: Annotated[int, Range(0, 100)] = 2
    """Residual blocks per resolution, in the encoder and again in the decoder."""
    num_codebooks: Annotated[int, Range(1, 256)] = 4
    """Codes of a patch, each for its own part of the patch's vector (product quantization).  Edges
    move by less than a pixel a step, for which one code of 1,024 is too coarse."""
    codebook_size: Annotated[int, Range(1, 2**16)] = 256
    """Vectors in a codebook."""
    latent_dim: Annotated[int, Range(1, 2**14)] = 32
    """Width of a patch's vector, divided among its codebooks."""
    decay: Annotated[float, Range(0, below=1)] = 0.98
    """Decay of the codebook's moving average, per step."""
    commitment_weight: Annotated[float, Range(0, 10**6)] = 0.25
    """Weight of the commitment loss."""
    laplacian_weight: Annotated[float, Range(0, 10**6)] = 0.0
    """Weight of the L1 between Laplacian pyramids, a perceptual loss without a network."""
    vq_start_step: Annotated[int, Range(0, MAX_STEPS)] = 150
    """Training steps before quantization: k-means then starts from an encoder that separates
    patches."""

    def check(self) -> None:
        super().check()
        for flag, side in ("encoder", self.encoder_kernel), ("decoder", self.decoder_kernel):
            if side % 2 == 0:
                raise ValueError(
                    f"--{flag}-kernel {side} is even, and has no middle; give {side - 1} or "
                    f"{side + 1}"
                )
        height, width = self.image_size
        if height % self.downsample or width % self.downsample:
            raise ValueError(
                f"--image-size {height} {width} is not divisible by --downsample "
                f"{self.downsample}; choose one that divides both sides"
            )
        halvings = self.downsample / self.patch_size
        if halvings < 1 or 2 ** round(math.log2(halvings)) != halvings:
            raise ValueError(
                f"--downsample {self.downsample} is not --patch-size {self.patch_size} "
                f"times a power of two; choose a patch size of {self.downsample}, or a half or a "
                f"quarter of it"
            )
        if self.latent_dim % self.num_codebooks:
            raise ValueError(
                f"--latent-dim {self.latent_dim} is not divisible by --num-codebooks "
                f"{self.num_codebooks}; change one of them"
            )

    @property
    def num_downsamples(self) -> int:
        return round(math.log2(self.downsample / self.patch_size))

    @property
    def level_channels(self) -> list[int]:
        """Channels of each resolution, from the patches' to the latent grid's."""
        return [
            max(8, round(self.channels * self.channel_mult**level / 8) * 8)
            for level in range(self.num_downsamples, -1, -1)
        ]


BLOCK_TYPES = {"convnext": ConvNextBlock, "resnet": ResNetBlock}


class VqVae(Tokenizer):
    """Encode each patch of a frame as G codes and decode it."""

    codebook_initialized: bool
    """K-means has run.  A Python value, since reading a tensor would wait for the GPU; from then on
    all training steps do the same."""

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
        # what after_step reads, of each micro-batch: vectors and codes; frames and their mean
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._first_frames: list[tuple[int, Tensor]] = []

    @property
    def capturable(self) -> bool:
        return self.codebook_initialized

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
        return torch.stack([quantizer.codebook.float() for quantizer in self.quantizers])  # type: ignore

    def _lookup(self, codes: Tensor) -> Tensor:
        """(B, N) int64 -> (B, P, D)."""
        ids = codes.unflatten(-1, (-1, self.config.num_codebooks)).unbind(-1)
        codebooks = self.codebooks
        return torch.cat([book[index] for book, index in zip(codebooks, ids, strict=True)], dim=-1)

    def _decode_vectors(self, vectors: Tensor) -> Tensor:
        """(B, P, D) -> (B, 3, H, W), about [-1, 1]."""
        h, w = self.latents.grid
        return self.decoder(rearrange(vectors, "B (h w) D -> B D h w", h=h, w=w))

    def loss(self, batch: Batch) -> Losses:
        """Squared error and commitment (equation 3 of the paper; the codebook is an EMA, moved in
        `after_step`)."""
        (frames,) = batch.require("frames")
        target = _to_unit(frames.flatten(0, -4))
        if self.training and not self.codebook_initialized:
            started = bool(self.trained_steps > 0)
            self.codebook_initialized = all(bool(q._codebook.initted) for q in self.quantizers)  # type: ignore[union-attr]
            if not started:
                self._first_frames.append((len(target), target.mean(0)))
        quantized, codes, commitment_loss = self._quantize(self.encoder(target))
        reconstruction = self._decode_vectors(quantized)
        losses = {
            # times 100: of order one, comparable to the commitment loss
            "reconstruction": 100 * nn.functional.mse_loss(reconstruction.float(), target),
            "commitment": self.config.commitment_weight * commitment_loss,
            "perplexity": perplexity(code_counts(codes, self.latents)),
        }
        if self.config.laplacian_weight:
            from models.layers.laplacian import laplacian_l1

            losses["laplacian"] = self.config.laplacian_weight * laplacian_l1(
                target, reconstruction.float()
            )
        return losses

    def after_step(self) -> None:
        """Move the codebooks, by all micro-batches of the step together."""
        self.trained_steps += 1
        if self._first_frames:
            frames = sum(count for count, _ in self._first_frames)
            self.decoder.mean.copy_(sum(n * mean for n, mean in self._first_frames) / frames)  # type: ignore[arg-type]
            self._first_frames = []
        if not self._pending:
            return
        vectors, codes = (torch.cat(x) for x in zip(*self._pending, strict=True))
        self._pending = []
        if not self.codebook_initialized and self.trained_steps < self.config.vq_start_step:
            return
        chunks = vectors.chunk(self.config.num_codebooks, dim=-1)
        for part, ids, quantizer in zip(chunks, codes.unbind(-1), self.quantizers, strict=True):
            if not quantizer.training:  # frozen
                continue
            if not self.codebook_initialized:
                init_codebook(quantizer, part)
                continue
            counts = ids.new_zeros(self.config.codebook_size)
            counts.scatter_add_(0, ids, torch.ones_like(ids))
            update_codebook_ema(quantizer, part, 1 / counts[ids].float())
        self.codebook_initialized = True

    def _quantize(self, encoded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, D, h, w) -> quantized (B, P, D), codes (B, N), commitment ()."""
        # float32: bfloat16 is too coarse for nearest neighbors and moving averages
        with torch.autocast(encoded.device.type, enabled=False):
            vectors = rearrange(encoded.float(), "B D h w -> B (h w) D").contiguous()
            shape = (len(vectors), self.latents.tokens_per_frame)
            if self.training and not self.codebook_initialized:  # not quantized yet
                codes = torch.zeros(shape, dtype=torch.long, device=vectors.device)
                self._collect(vectors, codes)
                return vectors, codes, vectors.new_zeros(())
            ids = []
            for part, quantizer in zip(
                vectors.chunk(self.config.num_codebooks, dim=-1), self.quantizers, strict=True
            ):
                codebook: Tensor = quantizer.codebook.float()  # type: ignore[operator, union-attr]
                ids.append(nearest_code(part.flatten(0, 1), codebook)[0].view(part.shape[:2]))
            codes = torch.stack(ids, dim=-1).flatten(1)
            if self.training:
                self._collect(vectors, codes)
            quantized = self._lookup(codes)
            commitment_loss = nn.functional.mse_loss(vectors, quantized.detach())
            # straight-through gradient
            return vectors + (quantized - vectors).detach(), codes, commitment_loss

    def _collect(self, vectors: Tensor, codes: Tensor) -> None:
        """Keep what `after_step` moves the codebooks by: (B, P, D), (B, N)."""
        by_patch = codes.unflatten(1, (-1, self.config.num_codebooks)).flatten(0, 1)
        self._pending.append((vectors.detach().flatten(0, 1), by_patch))


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
        # a static camera has a background to subtract
        self.pos_emb = nn.Parameter(
            torch.zeros(level_channels[0], height // config.patch_size, width // config.patch_size)
        )
        layers: list[nn.Module] = []
        for level, channels in enumerate(level_channels):
            layers += [block(channels, config.encoder_kernel) for _ in range(config.num_res_blocks)]
            if level + 1 < len(level_channels):
                layers.append(nn.Conv2d(channels, level_channels[level + 1], 2, stride=2))
        self.layers = nn.Sequential(*layers)
        self.norm = PixelNorm(level_channels[-1])
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
        self.norm = PixelNorm(level_channels[-1])
        self.conv_out = nn.Conv2d(level_channels[-1], 3 * config.patch_size**2, 1)
        self.unfold = Rearrange(
            "B (c p q) h w -> B c (h p) (w q)", p=config.patch_size, q=config.patch_size
        )
        self.background = nn.Parameter(torch.zeros(3, height, width))
        # mean of the first batch: the decoder starts from it, not from grey
        self.register_buffer("mean", torch.zeros(3, height, width))

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, 3, H, W), about [-1, 1]."""
        x = self.conv_in(vectors) + self.pos_emb
        return self.unfold(self.conv_out(self.norm(self.layers(x)))) + self.background + self.mean
