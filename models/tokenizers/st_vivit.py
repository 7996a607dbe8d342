"""ST-ViViT: a video tokenizer that is causal in time (Genie, arXiv:2402.15391), with finite scalar
quantization (FSQ, arXiv:2309.15505), which has no codebook to collapse.

Letters: B clips, T frames, P patches, V numbers of a patch, G codebooks of K codes, N = P G codes a
frame, D width of their vectors, L numbers of a code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ

from data.batch import Batch
from data.ranges import CheckedConfig, Range
from models.layers.first_batch import FirstBatch
from models.layers.patch_image import check_patches, to_frames, to_patches
from models.layers.space_time import SpaceTimeTransformer, grid_positions
from models.layers.transformer import TransformerConfig
from models.method import Losses
from models.tokenizers.codes import code_counts, perplexity
from models.tokenizers.tokenizer import LatentSpec, Tokenizer

CHANGED = 0.05  # of a value from -1 to 1


@dataclass(frozen=True)
class StVivitConfig(CheckedConfig):
    image_size: Annotated[tuple[int, int], Range(1, 4096)] = (64, 64)
    """Height and width of a frame, in pixels."""
    patch_size: Annotated[int, Range(1, 256)] = 8
    """Side of a patch, in pixels; divides both sides of the frame."""
    encoder_sees_frame: bool = False
    """Let codes depend on the other patches, as in the paper.  Then they change where the image
    does not, and a dynamics model learns little from them."""
    encoder: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(
            dim=192, num_layers=2, num_heads=6, mlp_dim=512, context_frames=1
        )
    )
    """With --encoder.context-frames above 1 codes go on changing for a while after a patch has."""
    decoder: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(
            dim=192, num_layers=3, num_heads=6, mlp_dim=512, context_frames=2
        )
    )
    levels: Annotated[tuple[int, ...], Range(3, 256)] = (8, 5, 5, 5)
    """Values of each number of a code; their product is the number of codes."""
    num_codebooks: Annotated[int, Range(1, 256)] = 2
    """Codes of a patch, each for its own part of the patch's vector (product quantization)."""
    clip_length: Annotated[int, Range(1, 1000)] = 4
    """Frames of a training clip."""
    changed_weight: Annotated[float, Range(1, 10**4)] = 1.0
    """Weight of values that differ in the frame before or after; the others have 1.  Small things
    that move are otherwise the first to be lost."""

    ADDED: ClassVar[frozenset[str]] = frozenset({"changed_weight"})

    def check(self) -> None:
        super().check()
        check_patches(self.image_size, self.patch_size)
        if not 1 < math.prod(self.levels) <= 2**16:
            raise ValueError(
                f"--levels {' '.join(map(str, self.levels))} make {math.prod(self.levels)} codes; "
                f"give levels that make at most {2**16}, such as 8 5 5 5"
            )

    @property
    def grid(self) -> tuple[int, int]:
        height, width = self.image_size
        return height // self.patch_size, width // self.patch_size


class StVivit(Tokenizer):
    """Encode each patch of a frame as G codes, and decode it with the frames before it."""

    decoder_parts = ("decoder_in", "decoder_pos", "decoder", "decoder_out", "background", "pixels")

    def __init__(self, config: StVivitConfig) -> None:
        super().__init__()
        self.config, self.image_size = config, config.image_size
        self.latents = LatentSpec(
            "discrete",
            config.grid,
            config.num_codebooks * sum(level - 1 for level in config.levels),
            math.prod(config.levels),
            config.num_codebooks,
        )
        patches, values = self.latents.num_patches, 3 * config.patch_size**2
        numbers = config.num_codebooks * len(config.levels)
        positions = grid_positions(config.grid)
        seen, drawn = config.encoder, config.decoder
        self.encoder_in = nn.Linear(values, seen.dim)
        # without it, and with a background that nothing has shifted, a thing has the same codes in
        # each patch, and how it moves is learned in all of them at once
        self.encoder_pos = (
            nn.Parameter(torch.zeros(patches, seen.dim)) if config.encoder_sees_frame else 0.0
        )
        self.encoder = SpaceTimeTransformer(seen, positions, over_space=config.encoder_sees_frame)
        self.encoder_out = nn.Linear(seen.dim, numbers)
        self.quantizer = FSQ(list(config.levels), num_codebooks=config.num_codebooks)

        self.decoder_in = nn.Linear(numbers, drawn.dim)
        self.decoder_pos = nn.Parameter(torch.zeros(patches, drawn.dim))
        self.decoder = SpaceTimeTransformer(drawn, positions)
        self.decoder_out = nn.Linear(drawn.dim, values)
        nn.init.zeros_(self.decoder_out.weight)
        nn.init.zeros_(self.decoder_out.bias)
        # what a static camera sees: frames are encoded, and drawn, as what differs from it
        self.background = FirstBatch((patches, values), median=True)
        self.pixels = nn.Parameter(torch.zeros(patches, values))
        self.temporal_context = max(self.encoder.temporal_context, self.decoder.temporal_context)

    @property
    def clip_length(self) -> int:
        return self.config.clip_length

    @property
    def capturable(self) -> bool:
        return self.background.known

    @property
    def codebooks(self) -> Tensor:
        """(G, K, D / G) float, the same for each codebook: for each number of a code, which of its
        levels it reaches, 0 or 1.

        Near codes are near, and a linear layer of them can single out any level; of the number
        itself it can only prefer high or low ones.
        """
        numbers = [
            values[:, None] > values.unique()[:-1] for values in self._implicit_codebook.unbind(-1)
        ]
        return torch.cat(numbers, dim=-1).float().expand(self.config.num_codebooks, -1, -1)

    @property
    def code_numbers(self) -> Tensor:
        """(G, K, D / G) float, the rounded numbers, of which squared distances say how far apart
        codes are, and zeros up to the vectors' width."""
        numbers, width = self._implicit_codebook, self.latents.dim // self.config.num_codebooks
        padded = nn.functional.pad(numbers, (0, width - numbers.shape[1]))
        return padded.expand(self.config.num_codebooks, -1, -1)

    @property
    def _implicit_codebook(self) -> Tensor:
        """(K, L) float, the rounded numbers of each code."""
        return self.quantizer.implicit_codebook.float()  # type: ignore[union-attr, operator]

    def encode(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, N) int64."""
        return self.encode_clip(frames[:, None])[:, 0]

    def decode(self, latents: Tensor) -> Tensor:
        """(B, N) int64 -> (B, 3, H, W) uint8."""
        return self.decode_clip(latents[:, None])[:, 0]

    def encode_clip(self, frames: Tensor) -> Tensor:
        return self._quantize(self._to_patches(frames))[1]

    def decode_clip(self, latents: Tensor) -> Tensor:
        ids = latents.unflatten(-1, (-1, self.config.num_codebooks))
        drawn = self._draw(self._implicit_codebook[ids].flatten(-2))
        pixels = to_frames(drawn.float(), self.image_size, self.config.patch_size)
        return (pixels.clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)

    def loss(self, batch: Batch) -> Losses:
        """Squared error of the decoded frames, weighted, times 100; FSQ needs no other term."""
        (frames,) = batch.require("frames")
        target = self._to_patches(frames)
        if self.training:
            self.background.collect(target)
        quantized, codes = self._quantize(target)
        error = (self._draw(quantized).float() - target).square()
        return {
            "reconstruction": 100 * (self._weight(target) * error).mean(),
            "perplexity": perplexity(code_counts(codes, self.latents)),
            "code_flip_rate": (codes[:, 1:] != codes[:, :-1]).float().mean()
            if codes.shape[1] > 1
            else codes.new_zeros((), dtype=torch.float32),
        }

    def after_step(self) -> None:
        """Take the background from the first batch."""
        self.background.update()

    def _weight(self, patches: Tensor) -> Tensor | float:
        """(B, T, P, V): `changed_weight` where a frame differs from a neighbor, else 1, in units of
        their mean."""
        if self.config.changed_weight == 1 or patches.shape[1] == 1:
            return 1.0
        changed = (patches[:, 1:] - patches[:, :-1]).abs() > CHANGED
        none = torch.zeros_like(changed[:, :1])
        changed = torch.cat([none, changed], dim=1) | torch.cat([changed, none], dim=1)
        weight = 1 + (self.config.changed_weight - 1) * changed
        return weight / weight.mean()

    def _to_patches(self, frames: Tensor) -> Tensor:
        """(B, T, 3, H, W) uint8 -> (B, T, P, V), from -1 to 1."""
        return to_patches(frames.float() / 127.5 - 1, self.config.patch_size)

    def _quantize(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, P, V) -> rounded numbers (B, T, P, G L), codes (B, T, N)."""
        x = self.encoder_in(patches - self.background.mean) + self.encoder_pos
        encoded = self.encoder_out(self.encoder(x)[0])
        with torch.autocast(encoded.device.type, enabled=False):
            quantized, codes = self.quantizer(encoded.float().flatten(0, 1))
        quantized, codes = (y.unflatten(0, patches.shape[:2]) for y in (quantized, codes))
        return quantized, codes.long().flatten(2)

    def _draw(self, numbers: Tensor) -> Tensor:
        """(B, T, P, G L) -> (B, T, P, V), about -1 to 1."""
        x = self.decoder(self.decoder_in(numbers) + self.decoder_pos)[0]
        return self.decoder_out(x) + self.pixels + self.background.mean
