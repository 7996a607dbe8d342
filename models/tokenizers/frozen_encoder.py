"""A frozen vision backbone as tokenizer: DINOv2 (arXiv:2304.07193), CLIP (arXiv:2103.00020), SigLIP
(arXiv:2303.15343) or any other, with a light decoder to show model rollouts.

Only the decoder is trained, as in DINO-WM (arXiv:2411.04983).  The backbone has no gradient.

Letters: B frames, H W pixels, P patches, D latent width, C channels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from data.batch import Batch
from data.ranges import CheckedConfig, Range
from models.external_weights import (
    asked_for,
    built,
    check_encoder,
    check_finite,
    check_hash,
    check_unnamed,
    frozen_key,
    leave_out,
    named_weights,
    part_of,
    weights_hash,
)
from models.layers.pixel_decoder import PixelDecoder
from models.method import ExternalWeightsError, Losses
from models.tokenizers import backbone_families, backbones, own_encoder
from models.tokenizers.tokenizer import LatentSpec, Tokenizer

OWN_CLASS = "a class (MODULE:CLASS)"  # the way to give an encoder that is in no folder


@dataclass(frozen=True)
class FrozenEncoderConfig(CheckedConfig):
    ADDED: ClassVar[frozenset[str]] = frozenset({"revision", "sha256"})
    image_size: Annotated[tuple[int, int], Range(1, 4096)] = (64, 64)
    """Height and width of a frame, in pixels."""
    pretrained: str = "facebook/dinov2-small"
    """A name on the Hugging Face hub, or a local folder: DINOv2, CLIP, SigLIP, ViT, or what
    transformers' AutoBackbone reads; or a class of your own, MODULE:CLASS.  `random` is an
    untrained DINOv2-small, a baseline, and random:WHAT an untrained one of any of these."""
    revision: str = ""
    """A branch, tag or commit on the hub; a checkpoint holds the commit."""
    sha256: str = ""
    """Hash of the backbone's weights, set from them; a checkpoint that has one names the weights
    instead of holding them."""
    input_size: Annotated[int, Range(1, 2048)] = 112
    """Side of the backbone's input, in pixels; a multiple of its patch size."""
    tokens: Literal["patches", "cls"] = "patches"
    """Latents of a frame: a vector per patch, or one for the image (its token, or what a head
    pools)."""
    channels: Annotated[int, Range(1, 2**13)] = 128
    """Channels of the decoder."""
    num_res_blocks: Annotated[int, Range(0, 100)] = 2
    """Residual blocks of the decoder."""
    architecture: str = ""
    """The backbone's config as JSON, set from the weights; a checkpoint holds it."""


class FrozenEncoder(Tokenizer):
    """Frames to features of a frozen backbone, and features to frames."""

    needs = frozenset({"frames", "latents"})
    backbone: Any
    architecture: backbone_families.Architecture
    mean: Tensor
    std: Tensor

    def __init__(self, config: FrozenEncoderConfig) -> None:
        super().__init__()
        self.config = self._load(config)
        self.backbone.requires_grad_(False).eval()
        self.image_size = config.image_size
        grid, width, has_image = backbone_families.shapes(
            self.backbone, self.architecture, config.input_size
        )
        if config.tokens == "cls" and not has_image:
            raise ValueError(
                f"--model.tokens cls is for a backbone with a vector for the image (DINOv2, CLIP, "
                f"SigLIP, ViT), and a {backbone_families.label(self.architecture)} has none; leave "
                f"it at patches"
            )
        self.latents = LatentSpec(
            "continuous", grid if config.tokens == "patches" else (1, 1), width
        )
        mean, std = backbone_families.pixel_stats(self.architecture)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        self.decoder = PixelDecoder(
            self.latents, config.image_size, config.channels, config.num_res_blocks
        )

    def train(self, mode: bool = True) -> FrozenEncoder:
        super().train(mode)
        self.backbone.eval()  # it may have dropout
        return self

    def convert_weights(
        self, state: dict[str, Tensor], config: dict[str, Any]
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Take the decoder of a run with the same backbone."""
        if "pretrained" in config:
            check_encoder(self.backbone, self.config, part_of(state, "backbone"), config, True)
        return state, []

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, P, D)."""
        size = (self.config.input_size, self.config.input_size)
        x = nn.functional.interpolate(
            frames.float() / 255, size, mode="bilinear", antialias=True, align_corners=False
        )
        x = (x.clamp(0, 1) - self.mean) / self.std
        found = backbone_families.features(self.backbone, self.architecture, x)
        latents = found.patches if self.config.tokens == "patches" else found.image
        assert latents is not None
        return latents

    def latents_key(self, fingerprint: str) -> str:
        """The encoder by id, revision and hash, and how it is read: a decoder that is trained
        longer leaves the latents as they are."""
        config = self.config
        read = (config.image_size, config.input_size, config.tokens, self.architecture)
        return frozen_key(config.pretrained, config.revision, self.backbone, *read)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, P, D) -> (B, 3, H, W) uint8."""
        return (self.decoder(latents).float().clamp(0, 1) * 255).round().to(torch.uint8)

    def loss(self, batch: Batch) -> Losses:
        """Squared error of the decoder, times 100; the backbone has no loss."""
        frames, latents = batch.require("frames", "latents")
        reconstruction = self.decoder(latents.flatten(0, -3))
        target = frames.flatten(0, -4).float() / 255
        return {"reconstruction": 100 * nn.functional.mse_loss(reconstruction.float(), target)}

    def _load(self, config: FrozenEncoderConfig) -> FrozenEncoderConfig:
        """Load the backbone; return the config with what its weights say.

        From the hub they are named by their commit and hash, of a class by their hash.  Those of a
        folder, and random ones, are in the checkpoint: nobody else has them.
        """
        name = config.pretrained
        if config.architecture:  # of a checkpoint
            self.architecture, self.backbone = _rebuilt(config.architecture)
            is_meta = any(p.is_meta for p in self.backbone.parameters())  # only shapes are wanted
            if config.sha256 and not is_meta:
                self.backbone = named_weights(_read_named, name, config.revision, config.sha256)
        elif backbones.is_random(name):
            check_unnamed(name, config.revision, config.sha256)
            self.backbone, self.architecture = asked_for(OWN_CLASS, backbones.random_backbone, name)
        elif backbones.is_folder(name) or own_encoder.is_class(name):
            is_class = own_encoder.is_class(name)
            if config.revision:
                raise ValueError(
                    f"--model.revision {config.revision} is of a repository, and {name} is a "
                    f"{'class' if is_class else 'folder'} here; leave it out"
                    + ("" if is_class else ", or name the repository from another folder")
                )
            if is_class:
                self.backbone, self.architecture = backbones.read_class(name)
            else:
                self.backbone, self.architecture = asked_for(OWN_CLASS, backbones.read, name, "")
            found = weights_hash(self.backbone)
            if config.sha256:
                check_hash(found, config.sha256, name)
            # those of a folder are held, and so in the fingerprint
            config = replace(config, sha256=found if is_class else "")
        else:
            commit = asked_for(OWN_CLASS, backbones.resolve_commit, name, config.revision)
            self.backbone, self.architecture = asked_for(OWN_CLASS, backbones.read, name, commit)
            found = weights_hash(self.backbone)
            config = replace(config, revision=commit, sha256=config.sha256 or found)
            check_hash(found, config.sha256, name)
        if not config.architecture:
            check_finite(self.backbone, name)
        if config.sha256:
            leave_out(self, "backbone")
        return replace(config, architecture=json.dumps(self.architecture))


def _rebuilt(description: str) -> tuple[backbone_families.Architecture, Any]:
    """Build the backbone that a checkpoint describes; ExternalWeightsError where its class cannot
    be had."""

    def build(architecture: Any) -> tuple[backbone_families.Architecture, Any]:
        backbone_families.pixel_stats(architecture)
        return architecture, backbones.build(architecture)

    try:
        if torch.get_default_device().type == "meta":  # a class may need more than shapes
            return build(json.loads(description))
        return built(build, description)
    except ExternalWeightsError as problem:
        raise ExternalWeightsError(f"needs an encoder that cannot be made: {problem}") from None


def _read_named(name: str, revision: str) -> Any:
    if own_encoder.is_class(name):
        return backbones.read_class(name)[0]
    return backbones.read(name, revision)[0]
