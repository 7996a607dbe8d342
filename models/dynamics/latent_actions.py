"""The latent action model of Genie (arXiv:2402.15391): what happened between two frames, as one of
few codes.

The encoder reads a pair of frames, stacked (LAPO, arXiv:2312.10812), so that a code is of its own
pair whatever the clip is.  The decoder sees the first frame of the pair alone: one that also sees
how things moved before could do without the code.

Letters: B clips, T frames, R pairs of frames, P patches, V numbers of a patch, A actions, K numbers
of a latent action, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize

from data.ranges import MAX_STEPS, CheckedConfig, Range
from kernels import nearest_code
from models.layers.first_batch import FirstBatch
from models.layers.patch_image import check_patches, to_patches
from models.layers.space_time import SpaceTimeTransformer, grid_positions
from models.layers.transformer import TransformerConfig
from models.method import Losses
from models.tokenizers.codebook import init_codebook, update_codebook_ema

COMPARED_PAIRS = 16  # of a batch, on which the gain by an action is measured
SETTLED_STEPS = 100  # of training with codes, before a collapse is one
DEAF = 0.02  # gain by an action, as a share of the error


def _blocks(num_layers: int) -> TransformerConfig:
    return TransformerConfig(
        dim=128, num_layers=num_layers, num_heads=4, mlp_dim=384, context_frames=1
    )


@dataclass(frozen=True)
class LatentActionConfig(CheckedConfig):
    num_actions: Annotated[int, Range(2, 1024)] = 8
    """Latent actions, which are the buttons that the world is played with."""
    dim: Annotated[int, Range(1, 1024)] = 4
    """Numbers of a latent action before it is quantized; few, so that they tell the change alone
    and not the frame."""
    patch_size: Annotated[int, Range(1, 256)] = 8
    """Side of a patch, in pixels."""
    encoder: TransformerConfig = field(default_factory=lambda: _blocks(2))
    decoder: TransformerConfig = field(default_factory=lambda: _blocks(2))
    vq_start_step: Annotated[int, Range(0, MAX_STEPS)] = 200
    """Training steps before quantization: k-means then starts from actions that already tell the
    changes apart."""
    quantize_fraction: Annotated[float, Range(0, 1)] = 0.5
    """Share of the pairs that the decoder is given the code of; the others keep their numbers, so
    that these go on meaning something (as in DAC, arXiv:2306.06546)."""
    decay: Annotated[float, Range(0, below=1)] = 0.98
    """Decay of the codebook's moving average, per step."""
    commitment_weight: Annotated[float, Range(0, 10**6)] = 0.05
    """Weight of the distance between an action's numbers and its code."""
    variance_weight: Annotated[float, Range(0, 10**6)] = 1.0
    """Weight of the hinge on the standard deviation of each number over the batch, which is 1 at
    least (VICReg, arXiv:2105.04906)."""
    entropy_weight: Annotated[float, Range(0, 10**6)] = 0.05
    """Weight of what the soft use of the codes lacks to a uniform one, in nats."""
    change_weight: Annotated[float, Range(1, 10**6)] = 1.0
    """Weight of a pixel that changes; an unchanged one has 1."""


class LatentActionModel(nn.Module):
    """Infer the latent action between two frames, by predicting the second from the first."""

    def __init__(self, config: LatentActionConfig, image_size: tuple[int, int]) -> None:
        super().__init__()
        check_patches(image_size, config.patch_size)
        self.config = config
        grid = (image_size[0] // config.patch_size, image_size[1] // config.patch_size)
        patches, values = grid[0] * grid[1], 3 * config.patch_size**2
        width = config.encoder.dim
        self.background = FirstBatch((patches, values))
        self.encoder_in = nn.Linear(2 * values, width)
        self.encoder_pos = nn.Parameter(0.02 * torch.randn(patches, width))
        self.readout = nn.Parameter(0.02 * torch.randn(width))
        self.encoder = SpaceTimeTransformer(config.encoder, grid_positions(grid, extra=1))
        self.encoder_out = nn.Linear(width, config.dim)
        self.quantizer = VectorQuantize(
            dim=config.dim,
            codebook_size=config.num_actions,
            decay=config.decay,
            kmeans_init=True,
            kmeans_iters=20,
            threshold_ema_dead_code=0.1,  # type: ignore[arg-type]
            rotation_trick=False,
        )
        width = config.decoder.dim
        self.decoder_in = nn.Linear(values, width)
        self.decoder_pos = nn.Parameter(0.02 * torch.randn(patches, width))
        self.action_token = nn.Linear(config.dim, width)
        self.action_added = nn.Linear(config.dim, width)
        self.decoder = SpaceTimeTransformer(config.decoder, grid_positions(grid, extra=1))
        self.decoder_out = nn.Linear(width, values)
        nn.init.zeros_(self.decoder_out.weight)  # at first nothing changes
        nn.init.zeros_(self.decoder_out.bias)
        self.register_buffer("trained_steps", torch.zeros((), dtype=torch.long))
        self.quantized = False
        """K-means has run.  A Python value, since reading a tensor would wait for the GPU."""
        self._said: set[str] = set()
        self._pending: list[tuple[Tensor, Tensor]] = []  # of each micro-batch: vectors and codes

    @property
    def capturable(self) -> bool:
        return self.quantized

    @property
    def codebook(self) -> Tensor:
        """(A, K) float32."""
        return self.quantizer.codebook.float()  # type: ignore[operator, union-attr]

    def vectors(self, frames: Tensor) -> Tensor:
        """Latent actions before they are quantized: (B, T, 3, H, W) uint8 -> (B, T - 1, K)."""
        patches = self._to_patches(frames)
        pairs = torch.cat([patches[:, :-1], patches[:, 1:] - patches[:, :-1]], dim=-1)
        x = self.encoder_in(pairs) + self.encoder_pos
        x = torch.cat([self.readout.to(x.dtype).expand(*x.shape[:2], 1, -1), x], dim=2)
        return self.encoder_out(self.encoder(x)[0][:, :, 0]).float()

    def codes(self, frames: Tensor) -> Tensor:
        """(B, T, 3, H, W) uint8 -> (B, T - 1) int64."""
        return self._nearest(self.vectors(frames))

    def predict(self, frames: Tensor, actions: Tensor) -> Tensor:
        """The frames after these, as patches: (B, T, 3, H, W) uint8, actions (B, T, K) ->
        (B, T, P, V)."""
        return self._predict(self._to_patches(frames), actions)

    def loss(self, frames: Tensor) -> tuple[Losses, Tensor]:
        """Squared error of each second frame, as a share of that of copying the first, and what
        keeps the codes apart; also the codes, (B, T - 1).  Copying and standard deviations are
        those of a micro-batch."""
        config = self.config
        if self.training:
            self.background.collect(to_patches(frames.float() / 127.5 - 1, config.patch_size))
            if not self.quantized:
                self.quantized = bool(self.quantizer._codebook.initted)  # type: ignore[union-attr]
        vectors = self.vectors(frames)
        codes = self._nearest(vectors)
        given = vectors
        losses: Losses = {}
        std = (vectors.flatten(0, 1).var(0, correction=0) + 1e-6).sqrt()
        losses["action_variance"] = config.variance_weight * (1 - std).relu().mean()
        if self.quantized or not self.training:
            code = self.codebook[codes]
            kept = torch.rand(codes.shape, device=codes.device) < config.quantize_fraction
            quantized = vectors + (code - vectors).detach()
            given = torch.where(kept[..., None] | (not self.training), quantized, vectors)
            distance = nn.functional.mse_loss(vectors, code)
            losses["action_commitment"] = config.commitment_weight * distance
            losses["action_entropy"] = config.entropy_weight * self._lacking_entropy(vectors)
        if self.training:
            self._pending.append((vectors.detach().flatten(0, 1), codes.flatten()))
        patches = self._to_patches(frames)
        before, after = patches[:, :-1], patches[:, 1:]
        weight = 1 + (config.change_weight - 1) * ((after - before).abs() > 0.06).float()
        copy_error = (weight * (after - before).square()).mean().clamp(min=1e-8)
        error = (weight * (self._predict(before, given) - after).square()).mean()
        losses["action_error"] = error / copy_error
        losses["action_gain"] = self._gain(before, after, vectors)
        counts = codes.new_zeros(config.num_actions)
        counts.scatter_add_(0, codes.flatten(), torch.ones_like(codes.flatten()))
        share = counts / counts.sum()
        losses["action_perplexity"] = torch.special.entr(share).sum().exp()
        return losses, codes

    def after_step(self) -> None:
        """Move the codebook, by all micro-batches of a step together."""
        self.trained_steps += 1
        self.background.update()
        if not self._pending:
            return
        vectors, codes = (torch.cat(x) for x in zip(*self._pending, strict=True))
        self._pending = []
        if not self.quantizer.training:  # frozen
            return
        if not self.quantized:
            if self.trained_steps >= self.config.vq_start_step:
                init_codebook(self.quantizer, vectors.repeat(4, 1))
                self.quantized = True
            return
        counts = codes.new_zeros(self.config.num_actions)
        counts.scatter_add_(0, codes, torch.ones_like(codes))
        update_codebook_ema(self.quantizer, vectors, 1 / counts[codes].float())

    def advise(self, losses: dict[str, float]) -> list[str]:
        """Say once that codes have collapsed, or that the decoder does not listen to them."""
        if int(self.trained_steps) < self.config.vq_start_step + SETTLED_STEPS:
            return []
        found, perplexity = {}, losses.get("action_perplexity", float("inf"))
        if perplexity < self.config.num_actions / 4:
            found["collapse"] = (
                f"latent actions: collapsed, {perplexity:.1f} of {self.config.num_actions} codes "
                f"are in use (perplexity); raise --model.latent-actions.entropy-weight, or lower "
                f"--model.latent-actions.num-actions"
            )
        gain = losses.get("action_gain", 1.0)
        if gain < DEAF:
            found["deaf"] = (
                f"latent actions: deaf, with the action of another pair the error is only "
                f"{gain:.1%} larger; give frames farther apart, a smaller "
                f"--model.latent-actions.decoder, or a higher --model.latent-actions.change-weight"
            )
        new = [line for kind, line in found.items() if kind not in self._said]
        self._said |= found.keys()
        return new

    def _to_patches(self, frames: Tensor) -> Tensor:
        """(B, T, 3, H, W) uint8 -> (B, T, P, V), less the background."""
        patches = to_patches(frames.float() / 127.5 - 1, self.config.patch_size)
        return patches - self.background.mean

    def _nearest(self, vectors: Tensor) -> Tensor:
        with torch.autocast(vectors.device.type, enabled=False):
            return nearest_code(vectors.flatten(0, -2), self.codebook)[0].view(vectors.shape[:-1])

    def _predict(self, before: Tensor, actions: Tensor) -> Tensor:
        """Patches (B, T, P, V), actions (B, T, K) -> (B, T, P, V)."""
        x = self.decoder_in(before) + self.decoder_pos + self.action_added(actions)[:, :, None]
        x = torch.cat([self.action_token(actions)[:, :, None], x], dim=2)
        return before + self.decoder_out(self.decoder(x)[0][:, :, 1:]).float()

    def _lacking_entropy(self, vectors: Tensor) -> Tensor:
        """What the entropy of the mean soft assignment lacks to that of a uniform one."""
        distance = torch.cdist(vectors.flatten(0, 1), self.codebook).square()
        mean = torch.softmax(-distance, dim=-1).mean(0)
        return torch.log(mean.new_tensor(float(len(mean)))) - torch.special.entr(mean).sum()

    @torch.no_grad()
    def _gain(self, before: Tensor, after: Tensor, vectors: Tensor) -> Tensor:
        """How much worse the second frames are predicted with the actions of other pairs, as a
        share of the error with them: near 0 the decoder is deaf."""
        before, after = (x.flatten(0, 1)[:COMPARED_PAIRS, None] for x in (before, after))
        actions = vectors.detach().flatten(0, 1)
        own, other = actions[:COMPARED_PAIRS, None], actions.flip(0)[:COMPARED_PAIRS, None]
        error, shuffled = ((self._predict(before, a) - after).square().mean() for a in (own, other))
        return 1 - error / shuffled.clamp(min=1e-8)
