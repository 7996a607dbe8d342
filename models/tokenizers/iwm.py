"""Image world model: the latents of a transformed view, predicted from those of the image (Garrido
et al., arXiv:2403.00504).

An encoder sees some patches of a source view; a predictor, told what leads to the target view
(models/layers/views.py), predicts the target's latents at masked patches.  Targets are those of an
encoder that follows by moving average.  A deep predictor that is conditioned learns to apply the
transformation (equivariant); a shallow one, with VICReg's terms, teaches the encoder to drop some
of it (invariant).  With two streams, a part of the latents is predicted in either way.  There is no
CLS token: where one vector is wanted, it is the mean of the patches' latents.

Letters: B frames, H W pixels, P patches, N patches that are seen, M that are predicted, D width.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from data.batch import Batch
from data.ranges import MAX_STEPS, CheckedConfig, Range
from models.layers import views
from models.layers.block_masks import draw_blocks
from models.layers.iwm_predictor import Conditioning, IwmPredictor
from models.layers.mrr import NUM_CANDIDATES, reciprocal_ranks
from models.layers.pixel_decoder import PixelDecoder
from models.layers.vicreg import vicreg
from models.layers.vit import PatchEncoder, VitConfig, take
from models.layers.whiten import whiten
from models.method import Best, Losses
from models.tokenizers.tokenizer import LatentSpec, Tokenizer

VALIDATION_IMAGES = 16
QUERIES = 16  # predictions of an image, each among all its candidates
LEAST_STD = 0.5  # of a number's mean over patches, whose own deviation is 1


@dataclass(frozen=True)
class IwmConfig(CheckedConfig):
    # not pooled_weight: before it factors of views were subtracted, and an action was another
    ADDED: ClassVar[frozenset[str]] = frozenset(
        {"invariant_share", "invariant_predictor", "whiten", "anchored", "vicreg_weight"}
    )
    image_size: Annotated[tuple[int, int], Range(1, 4096)] = (64, 64)
    """Height and width of a frame, in pixels."""
    patch_size: Annotated[int, Range(1, 256)] = 8
    """Side of a patch, in pixels; divides both sides of the frame."""
    encoder: VitConfig = field(default_factory=lambda: VitConfig(192, 12, 3))
    """The encoder; by default ViT-Tiny."""
    predictor: VitConfig = field(default_factory=lambda: VitConfig(384, 8, 12))
    """The predictor: deep and conditioned it is equivariant."""
    conditioning: Conditioning = "feature"
    """How the predictor is told what leads to the target: as features of each mask token, as a
    sequence of 16 tokens, or not at all."""
    invariant_share: Annotated[float, Range(0, below=1)] = 0.0
    """Share of the numbers of a patch, the first ones, that are an invariant stream: they are
    predicted without being told of the transformation.  The others are equivariant."""
    invariant_predictor: VitConfig = field(default_factory=lambda: VitConfig(192, 2, 3))
    """The predictor of the invariant stream, shallow."""
    visible: Annotated[float, Range(above=0, high=1)] = 0.4
    """Share of the source's patches that the encoder sees; 1 masks none, so that what is predicted
    is the transformation alone."""
    predicted: Annotated[float, Range(above=0, high=1)] = 0.4
    """Share of the target's patches that are predicted; of those that are not seen, where any are
    masked."""
    jitter_strength: Annotated[float, Range(0, 2.5)] = 1.0
    """Factor on the strength of the color jitter."""
    destructive_target_prob: Annotated[float, Range(0, 1)] = 0.5
    """Probability that the target, not the source, is blurred, gray or solarized; 0 in the paper,
    whose predictor then never learns to apply these."""
    crop_prob: Annotated[float, Range(0, 1)] = 0.3
    """Probability that the target is a crop of the source, not the same crop."""
    ema_decay: Annotated[float, Range(0, high=1)] = 0.996
    """Decay of the target encoder's moving average at the first step; it rises to 1."""
    ema_steps: Annotated[int, Range(1, MAX_STEPS)] = 100_000
    """Steps over which the decay rises, linearly; those of the training."""
    channels: Annotated[int, Range(1, 2**13)] = 64
    """Channels of the decoder."""
    num_res_blocks: Annotated[int, Range(0, 100)] = 2
    """Residual blocks of the decoder."""
    pooled_weight: Annotated[float, Range(0, 10**6)] = 0.0
    """Weight of the error of the mean over the predicted patches, by which views are told apart;
    that of each patch has 1."""
    vicreg_weight: Annotated[float, Range(0, 10**6)] = 0.0
    """Weight of what makes the encoder less sensitive to views: means over patches that are alike
    for both, and different between images (VICReg)."""
    whiten: bool = False
    """Show the encoder light, colors and local differences at like strength (whitened), not red,
    green and blue."""
    anchored: bool = False
    """Add what is predicted of an action to the latents that are given, less what is predicted of
    no action, so that no action changes nothing."""

    def check(self) -> None:
        super().check()
        if any(side % self.patch_size for side in self.image_size):
            raise ValueError(
                f"--image-size {self.image_size[0]} {self.image_size[1]} is not divisible by "
                f"--patch-size {self.patch_size}; choose one that divides both sides"
            )
        if self.visible < 1 < self.visible + self.predicted:
            raise ValueError(
                f"--visible {self.visible} and --predicted {self.predicted} are more than all "
                f"patches; lower one of them, or give --visible 1"
            )


class Iwm(Tokenizer):
    """Frames to a vector per patch, which a predictor can transform."""

    encoder_parts = ("target_encoder",)
    best = Best("mrr")
    num_steps: Tensor
    largest: Tensor

    def __init__(self, config: IwmConfig) -> None:
        super().__init__()
        self.config = config
        self.image_size = config.image_size
        rows, columns = (side // config.patch_size for side in config.image_size)
        self.latents = LatentSpec("continuous", (rows, columns), config.encoder.dim)
        self.invariant_dims = math.ceil(config.invariant_share * (config.encoder.dim - 1))
        self.encoder = PatchEncoder(config.encoder, config.image_size, config.patch_size)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.predictor = IwmPredictor(
            config.predictor, config.encoder.dim, max(rows, columns), config.conditioning
        )
        if self.invariant_dims:
            self.invariant_predictor = IwmPredictor(
                config.invariant_predictor, config.encoder.dim, max(rows, columns), "none"
            )
        self.decoder = PixelDecoder(
            self.latents, config.image_size, config.channels, config.num_res_blocks
        )
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.long))
        # small numbers would drown among large ones: a turn of hue is a tenth, a flip is 1
        largest = torch.ones(views.SLOTS)
        largest[: len(views.LARGEST)] = torch.tensor(views.LARGEST)
        self.register_buffer("largest", largest)

    @property
    def streams(self) -> dict[str, slice]:
        """Which numbers of a patch are which stream."""
        dims = self.invariant_dims
        equivariant = {"equivariant": slice(dims, self.latents.dim)}
        return ({"invariant": slice(0, dims)} if dims else {}) | equivariant

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, P, D), the numbers of a patch of mean 0 and variance 1, in each
        stream."""
        return self._latents(self.target_encoder, frames.float() / 255)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, P, D) -> (B, 3, H, W) uint8."""
        return (self.decoder(latents).float().clamp(0, 1) * 255).round().to(torch.uint8)

    def predict(self, latents: Tensor, action: Tensor) -> Tensor:
        """Apply a transformation to an image's latents: (B, P, D), (B, 16) -> (B, P, D)."""
        positions = self.encoder.positions.expand(len(latents), -1, -1)
        wanted = views.positions_in_source(self.encoder.positions, action)
        if not self.config.anchored:
            return self._predict(latents, positions, wanted, action)
        asked = latents, positions, wanted, action
        of_none = latents, positions, positions, torch.zeros_like(action)
        pairs = [torch.cat(pair) for pair in zip(asked, of_none, strict=True)]
        found, still = self._predict(*pairs).chunk(2)  # in one pass, which costs less than two
        return found + self._at(latents - still, wanted)

    def loss(self, batch: Batch) -> Losses:
        """Squared error of predicted latents, also of their mean where it has a weight, and the
        decoder's squared error, times 100.

        The decoder's gradient does not reach the latents.
        """
        (frames,) = batch.require("frames")
        images = frames.flatten(0, -4).float() / 255
        config = self.config
        source, target = self.draw_views(len(images), images.device)
        seen_view, target_view = views.apply(images, source), views.apply(images, target)
        patches = self.latents.num_patches
        num_visible, num_predicted = (
            max(1, int(share * patches)) for share in (config.visible, config.predicted)
        )
        visible, predicted = draw_blocks(
            len(images), self.latents.grid, num_visible, num_predicted, images.device
        )
        action = views.relative(source, target)
        positions = self.encoder.positions.expand(len(images), -1, -1)
        wanted = views.positions_in_source(self.encoder.positions, action)
        latents = self._latents(self.encoder, seen_view, visible)
        with torch.no_grad():
            all_targets = self._latents(self.target_encoder, target_view)
        targets = take(all_targets, predicted)
        found = self._predict(latents, take(positions, visible), take(wanted, predicted), action)
        reconstruction = self.decoder(all_targets).float()
        error = found.float() - targets
        losses = {
            "prediction": error.square().mean(),
            "reconstruction": 100 * nn.functional.mse_loss(reconstruction, target_view),
        }
        if config.pooled_weight:  # independent errors of M patches count alike in both terms
            pooled = error.shape[1] * error.mean(1).square().mean()
            losses["pooled_prediction"] = config.pooled_weight * pooled
        if config.vicreg_weight:
            # of all patches: means of the same few would differ by where these are
            other = self._latents(self.encoder, target_view)
            alike = vicreg(latents.mean(1), other.mean(1), LEAST_STD)
            losses["vicreg"] = config.vicreg_weight * alike
        with torch.no_grad():
            spread = targets - targets.mean((0, 1))
            for name, part in self.streams.items():
                squared = error[..., part].square().mean()
                relative = squared / spread[..., part].square().mean().clamp(1e-8)
                losses["relative_error" if len(self.streams) == 1 else f"{name}_error"] = relative
        return losses

    def draw_views(self, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Draw source and target views: (B, 16) each.

        They share a crop, or the target is a crop of the whole image; each has its own jitter, and
        one of them is blurred, gray or solarized.
        """
        config = self.config
        source, target, destroyed = torch.zeros(3, count, views.SLOTS, device=device).unbind(0)
        views.draw_crop(source, 1.0)
        own = torch.rand(count, 1, device=device) < config.crop_prob
        views.draw_crop(target, 1.0)
        target = torch.where(own, target, source)
        source = torch.where(own, torch.zeros_like(source), source)
        views.draw_jitter(source, config.jitter_strength)
        views.draw_jitter(target, config.jitter_strength)
        views.draw_destructive(destroyed)
        swapped = torch.rand(count, 1, device=device) < config.destructive_target_prob
        return source + destroyed * ~swapped, target + destroyed * swapped

    def convert_weights(
        self, state: dict[str, Tensor], config: dict[str, Any]
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Begin both encoders with the target encoder, which is the better one, and the moving
        average at its first step: at the last one it would stand still."""
        given = {name: value for name, value in state.items() if name != "num_steps"}
        source, prefix = "target_encoder.", "encoder."
        mine = {
            prefix + name.removeprefix(source): value
            for name, value in given.items()
            if name.startswith(source)
        }
        changed = ["the encoder begins with the target encoder's weights"] if mine else []
        return given | mine, changed

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
        """Mean reciprocal rank among 256 views, by both distances, and the losses."""
        (frames,) = held_out.require("frames")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            losses = self.loss(held_out)
            with torch.autocast(frames.device.type, enabled=False):  # as evaluations do
                ranks = self.mrr(frames.flatten(0, -4)[:VALIDATION_IMAGES], views.draw_photometric)
        return {name: float(values.mean()) for name, values in ranks.items()} | {
            name: float(value) for name, value in losses.items()
        }

    @torch.no_grad()
    def mrr(
        self,
        frames: Tensor,
        draw: views.Draw,
        queries: int = QUERIES,
        num_candidates: int = NUM_CANDIDATES,
    ) -> dict[str, Tensor]:
        """Rank each predicted view among all views of its image: (B, 3, H, W) uint8 -> (B,) each.

        `draw` fills a view's numbers.  Latents are those of the target encoder, the source is the
        image itself, and distances are between means over patches.  `mrr_pooled` predicts from the
        mean over the source's patches, at each of them.
        """
        found: dict[str, list[Tensor]] = {"mrr": [], "mrr_cosine": [], "mrr_pooled": []}
        index = torch.arange(min(queries, num_candidates), device=frames.device)
        for image in frames:
            drawn = draw(torch.zeros(num_candidates, views.SLOTS, device=frames.device))
            pixels = (image.float() / 255).expand(num_candidates, -1, -1, -1)
            candidates = self._latents(self.target_encoder, views.apply(pixels, drawn)).mean(1)
            source = self.encode(image[None]).expand(len(index), -1, -1)
            predicted = self.predict(source, drawn[index]).float().mean(1)
            found["mrr"].append(reciprocal_ranks(predicted, candidates, index).mean())
            cosine = reciprocal_ranks(predicted, candidates, index, "cosine")
            found["mrr_cosine"].append(cosine.mean())
            pooled = source.mean(1, keepdim=True).expand_as(source)
            predicted = self.predict(pooled, drawn[index]).float().mean(1)
            found["mrr_pooled"].append(reciprocal_ranks(predicted, candidates, index).mean())
        return {name: torch.stack(values) for name, values in found.items()}

    def _latents(self, encoder: PatchEncoder, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) from 0 to 1 -> (B, N, D) float32."""
        shown = whiten(images) if self.config.whiten else 4 * images - 2
        out = encoder(shown, keep).float()
        parts = [out[..., part] for part in self.streams.values()]
        return torch.cat([layer_norm(part, part.shape[-1:]) for part in parts], -1)

    def _at(self, latents: Tensor, wanted: Tensor) -> Tensor:
        """Latents between the middles of patches, bilinear: (B, P, D), (B, M, 2) -> (B, M, D)."""
        maps = latents.float().transpose(1, 2).unflatten(2, self.latents.grid)
        found = nn.functional.grid_sample(
            maps, wanted[:, None].float(), padding_mode="border", align_corners=False
        )
        return found[:, :, 0].transpose(1, 2)

    def _predict(self, latents: Tensor, seen: Tensor, wanted: Tensor, action: Tensor) -> Tensor:
        """As IwmPredictor, each stream by its own; the action's numbers are about 1 at most."""
        action = action / self.largest
        found = self.predictor(latents, seen, wanted, action)
        if not self.invariant_dims:
            return found
        invariant = self.invariant_predictor(latents, seen, wanted, action)
        dims = self.invariant_dims
        return torch.cat([invariant[..., :dims], found[..., dims:]], -1)
