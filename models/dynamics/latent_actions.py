"""The latent action model of Genie (arXiv:2402.15391): what happened between two frames, as one of
few codes.

The encoder reads a pair of frames, stacked (LAPO, arXiv:2312.10812), so that a code is of its own
pair whatever the clip is.  The decoder sees the first frame of the pair alone: one that also sees
how things moved before could do without the code.  Both are without positions, moments of the
change and convolutions, unlike the paper's ST-transformers: a code then does the same wherever it
is done, and cannot tell where things are instead of how they move.

Letters: B clips, T frames, R pairs of frames, A actions, K numbers of a latent action, C channels,
h w cells of the blurred frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize

from data.ranges import MAX_STEPS, CheckedConfig, Range
from kernels import nearest_code
from models.layers.first_batch import FirstBatch
from models.layers.independent_components import IndependentComponents
from models.layers.patch_image import check_patches
from models.method import Losses
from models.tokenizers.codebook import init_codebook, update_codebook_ema

COMPARED_PAIRS = 16  # of a batch, on which the gain by an action is measured
SETTLED_STEPS = 100  # of training with codes, before a collapse is one
DEAF = 0.02  # gain by an action, as a share of the error
ALL_MOVES = "; where the whole picture moves, --model.latent-actions.no-motion-alone"


@dataclass(frozen=True)
class LatentActionConfig(CheckedConfig):
    num_actions: Annotated[int, Range(2, 1024)] = 8
    """Latent actions, which are the buttons that the world is played with."""
    dim: Annotated[int, Range(2, 1024)] = 2
    """Numbers of a latent action before it is quantized; few, so that they tell the change alone
    and not the frame."""
    downsample: Annotated[int, Range(1, 256)] = 2
    """Pixels of a cell along each side; divides both sides of the frame.  Frames are blurred to
    cells first: where things move by less than a cell, the change is nearly linear in the motion,
    and found soon."""
    channels: Annotated[int, Range(1, 2**13)] = 32
    """Channels of encoder and decoder."""
    num_layers: Annotated[int, Range(1, 100)] = 3
    """Convolutions of the encoder, and of the decoder, after the first."""
    motion_alone: bool = False
    """Leave the convolutions of the encoder out: an action is then how the steadiest of the things
    moves that differ in color.  That is exact where things keep their colors over an even ground,
    and says nothing where the whole picture moves.  `dim` is 2."""
    linear_length: Annotated[float, Range(above=0, high=10**6)] = 0.5
    """Length up to which codes tell an action's numbers apart evenly, in standard deviations.
    Longer ones are made shorter, like a logarithm: few pairs move far, and would take most of the
    codes."""
    carry: Annotated[float, Range(0, 1)] = 0.0
    """Share of what a code lacks to its action's numbers that the next action of the clip makes up
    for (error diffusion, Floyd and Steinberg 1976), so that a sequence of codes leads where the
    video does; at 0 each code is the nearest one."""
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

    ADDED: ClassVar[frozenset[str]] = frozenset({"linear_length"})

    def check(self) -> None:
        super().check()
        if self.motion_alone and self.dim != 2:
            raise ValueError(
                f"model.latent_actions.dim is {self.dim}, and motion_alone tells 2 numbers: give "
                f"--model.latent-actions.dim 2, or leave motion_alone out"
            )


class LatentActionModel(nn.Module):
    """Infer the latent action between two frames, by predicting the second from the first."""

    def __init__(self, config: LatentActionConfig, image_size: tuple[int, int]) -> None:
        super().__init__()
        check_patches(image_size, config.downsample)
        self.config = config
        self.pixels, self.peak = FirstBatch((3,)), FirstBatch((1,))
        """Of the blurred frames, and of the largest change in a pair, which is the unit of all
        that is read and predicted: changes are few and small."""
        self.encoder = _Encoder(config)
        self.quantizer = VectorQuantize(
            dim=config.dim,
            codebook_size=config.num_actions,
            decay=config.decay,
            kmeans_init=True,
            kmeans_iters=20,
            threshold_ema_dead_code=0.1,  # type: ignore[arg-type]
            rotation_trick=False,
        )
        self.decoder = _Decoder(config)
        self.register_buffer("trained_steps", torch.zeros((), dtype=torch.long))
        self.quantized = False
        """K-means has run.  A Python value, since reading a tensor would wait for the GPU."""
        self._said: set[str] = set()
        self._pending: list[tuple[Tensor, Tensor]] = []  # of each micro-batch: vectors and codes

    @property
    def capturable(self) -> bool:
        return self.quantized and self.encoder.scale.known

    @property
    def codebook(self) -> Tensor:
        """(A, K) float32."""
        return self.quantizer.codebook.float()  # type: ignore[operator, union-attr]

    def vectors(self, frames: Tensor) -> Tensor:
        """Latent actions before they are shortened and quantized: (B, T, 3, H, W) uint8 ->
        (B, T - 1, K)."""
        blurred = self._blur(frames)
        before, change = blurred[:, :-1], blurred[:, 1:] - blurred[:, :-1]
        vectors = self.encoder(before.flatten(0, 1), change.flatten(0, 1))
        return vectors.unflatten(0, before.shape[:2])

    def codes(self, frames: Tensor) -> Tensor:
        """(B, T, 3, H, W) uint8 -> (B, T - 1) int64."""
        vectors = shortened(self.vectors(frames).float(), self.config.linear_length)
        if not self.config.carry:
            return self._nearest(vectors)
        found, lacking = [], torch.zeros_like(vectors[:, 0])
        for vector in vectors.unbind(1):
            wanted = vector + self.config.carry * lacking
            code = self._nearest(wanted)
            lacking = wanted - self.codebook[code]
            found.append(code)
        return torch.stack(found, dim=1)

    def loss(self, frames: Tensor) -> tuple[Losses, Tensor]:
        """Squared error of each second frame, as a share of that of copying the first, and what
        keeps the codes apart; also the codes, (B, T - 1).  Copying and standard deviations are
        those of a micro-batch."""
        config = self.config
        if self.training:
            self.quantized = self.quantized or bool(self.quantizer._codebook.initted)  # type: ignore[union-attr]
        blurred = self._blur(frames)
        before, after = (x.flatten(0, 1) for x in (blurred[:, :-1], blurred[:, 1:]))
        vectors = shortened(self.vectors(frames), config.linear_length)
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
            self.pixels.collect(blurred.movedim(2, -1))
            self.peak.collect((after - before).abs().amax((1, 2, 3))[:, None])
            self._pending.append((vectors.detach().flatten(0, 1), codes.flatten()))
        copy_error = (after - before).square().mean().clamp(min=1e-8)
        error = (self.predict(before, given.flatten(0, 1)) - after).square().mean()
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
        settled = self.encoder.scale.known  # so are the vectors that k-means would start from
        if not self.encoder.things.known:
            self._tell_things_apart()
        for scale in (self.pixels, self.peak, self.encoder.scale):
            scale.update()
        if not self._pending:
            return
        vectors, codes = (torch.cat(x) for x in zip(*self._pending, strict=True))
        self._pending = []
        if not self.quantizer.training:  # frozen
            return
        if not self.quantized:
            if settled and self.trained_steps >= self.config.vq_start_step:
                init_codebook(self.quantizer, vectors.repeat(4, 1))
                self.quantized = True
            return
        counts = codes.new_zeros(self.config.num_actions)
        counts.scatter_add_(0, codes, torch.ones_like(codes))
        update_codebook_ema(self.quantizer, vectors, 1 / counts[codes].float())

    def _tell_things_apart(self) -> None:
        """When enough changes were seen, or it is time; those of the first step are in other
        units."""
        things = self.encoder.things
        if self.trained_steps == 1:
            things.forget()
            return
        things.keep()
        if things.full or int(self.trained_steps) >= self.config.vq_start_step // 2:
            things.fit()

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
                f"{gain:.1%} larger; give frames that are farther apart, more steps, or a "
                f"finer --model.latent-actions.downsample{ALL_MOVES * self.config.motion_alone}"
            )
        new = [line for kind, line in found.items() if kind not in self._said]
        self._said |= found.keys()
        return new

    def predict(self, blurred: Tensor, actions: Tensor) -> Tensor:
        """The frames after these: (R, 3, h, w), actions (R, K) -> (R, 3, h, w)."""
        return blurred + self.decoder(blurred, actions).float()

    def _blur(self, frames: Tensor) -> Tensor:
        """(B, T, 3, H, W) uint8 -> (B, T, 3, h, w), less the mean and in units of
        the largest change: means over squares of twice a cell's side."""
        size = self.config.downsample
        pixels = frames.flatten(0, 1).float() / 127.5 - 1
        if size > 1:
            pixels = nn.functional.avg_pool2d(
                pixels, 2 * size, size, size // 2, count_include_pad=False
            )
        peak = torch.where(self.peak.mean > 0, self.peak.mean, 1.0)
        pixels = (pixels - self.pixels.mean[:, None, None]) / peak
        return pixels.unflatten(0, frames.shape[:2])

    def _nearest(self, vectors: Tensor) -> Tensor:
        with torch.autocast(vectors.device.type, enabled=False):
            return nearest_code(vectors.flatten(0, -2), self.codebook)[0].view(vectors.shape[:-1])

    def _lacking_entropy(self, vectors: Tensor) -> Tensor:
        """What the entropy of the mean soft assignment lacks to that of a uniform one."""
        distance = (vectors.flatten(0, 1)[:, None] - self.codebook).square().sum(-1)
        mean = torch.softmax(-distance, dim=-1).mean(0)
        return torch.log(mean.new_tensor(float(len(mean)))) - torch.special.entr(mean).sum()

    @torch.no_grad()
    def _gain(self, before: Tensor, after: Tensor, vectors: Tensor) -> Tensor:
        """How much worse the second frames are predicted with the actions of other pairs, as a
        share of the error with them: near 0 the decoder is deaf."""
        before, after = before[:COMPARED_PAIRS], after[:COMPARED_PAIRS]
        actions = vectors.detach().flatten(0, 1)
        own, other = actions[:COMPARED_PAIRS], actions.flip(0)[:COMPARED_PAIRS]
        error, shuffled = ((self.predict(before, a) - after).square().mean() for a in (own, other))
        return 1 - error / shuffled.clamp(min=1e-8)


class _Encoder(nn.Module):
    """A pair of frames to a vector: how far the steadiest of the things that differ in color moved,
    by its first moments, plus what convolutions make of the pair where something changes.

    Convolutions alone find how much moves long before they find where to; and a mixture of colors
    that is learned with them tells what moves most, such as a block that is pushed now and then,
    and not who pushes.
    """

    def __init__(self, config: LatentActionConfig) -> None:
        super().__init__()
        self.things = IndependentComponents(3)
        self.motion_alone = config.motion_alone
        if not config.motion_alone:
            channels = config.channels
            layers: list[nn.Module] = [nn.Conv2d(6, channels, 3, 1, 1)]
            for _ in range(config.num_layers):
                layers += [nn.SiLU(), nn.Conv2d(channels, channels, 3, 1, 1)]
            self.layers = nn.Sequential(*layers, nn.SiLU())
            self.weight = nn.Conv2d(channels, 1, 1)
            self.out = nn.Linear(channels, config.dim)
            self.from_motion = nn.Linear(2, config.dim, bias=False)
            nn.init.eye_(self.from_motion.weight)
            with torch.no_grad():
                self.out.weight[:2] *= 0.1  # the motion is a good start
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # of the step after the things were told apart
        self.scale = FirstBatch((1,) if config.motion_alone else (config.dim,))

    def forward(self, before: Tensor, change: Tensor) -> Tensor:
        """Two (R, 3, h, w) -> (R, K) float32."""
        with torch.autocast(change.device.type, enabled=False):
            if self.training:
                self.things.collect(change.movedim(1, -1).flatten(1, 2))
            out = self.things(first_moments(change.float()))[..., 0]
        if not self.motion_alone:
            out = (self.from_motion(out) + self._convolved(before, change)).float()
        if self.training and self.things.known:
            self.scale.collect(out[..., None] if self.motion_alone else out)
        return (out - self.scale.mean) / self.scale.scale

    def _convolved(self, before: Tensor, change: Tensor) -> Tensor:
        """Features where something changes: (R, K)."""
        pairs = torch.cat([before, change], dim=1)
        features = self.layers(pairs.contiguous(memory_format=torch.channels_last))
        attention = self.weight(features).float()
        with torch.autocast(features.device.type, enabled=False):
            moving = change.square().mean(1, keepdim=True)
            weight = (attention + (moving + 1e-6).log()).flatten(1).softmax(-1)
            pooled = torch.einsum("RN,RCN->RC", weight, features.float().flatten(2))
        return self.out(pooled)


def first_moments(change: Tensor) -> Tensor:
    """First moments of a change, about its own center: (R, 3, h, w) -> (R, 2, 3), of colors along
    x and along y.

    Where a thing moves over an even ground they are the way that it moved, times how much it
    differs from the ground, however far that is.  About a fixed point, a thing that comes or is
    covered would count as one that moves far.
    """
    height, width = change.shape[-2:]
    x, y = (torch.arange(n, dtype=change.dtype, device=change.device) for n in (width, height))
    amount = change.abs().sum(1)
    total = amount.sum((1, 2)).clamp(min=1e-6)
    by_column, by_row = change.sum(2), change.sum(3)
    center = torch.stack([amount.sum(1) @ x, amount.sum(2) @ y], dim=1) / total[:, None]
    moments = torch.stack([by_column @ x, by_row @ y], dim=1)
    return moments - center[..., None] * change.sum((2, 3))[:, None]


def shortened(vectors: Tensor, linear_length: float) -> Tensor:
    """Vectors longer than `linear_length` made shorter, like a logarithm: (..., K) -> (..., K)."""
    length = vectors.square().sum(-1, keepdim=True).add(1e-8).sqrt() / linear_length
    return vectors * torch.asinh(length) / length


class _Decoder(nn.Module):
    """A frame and an action to the change, at first of zeros: each layer is scaled and shifted by
    the action, alike everywhere (FiLM, arXiv:1709.07871)."""

    def __init__(self, config: LatentActionConfig) -> None:
        super().__init__()
        channels = config.channels
        self.layers = nn.ModuleList(
            nn.Conv2d(3 if index == 0 else channels, channels, 3, 1, 1)
            for index in range(config.num_layers + 1)
        )
        self.film = nn.ModuleList(nn.Linear(config.dim, 2 * channels) for _ in self.layers)
        self.out = nn.Conv2d(channels, 3, 3, 1, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, blurred: Tensor, actions: Tensor) -> Tensor:
        """(R, 3, h, w), (R, K) -> (R, 3, h, w)."""
        x = blurred.contiguous(memory_format=torch.channels_last)
        for layer, film in zip(self.layers, self.film, strict=True):
            scale, shift = film(actions)[..., None, None].chunk(2, dim=1)
            x = nn.functional.silu(layer(x) * (1 + scale) + shift)
        return self.out(x)
