"""A frozen vision backbone as tokenizer: DINOv2 (arXiv:2304.07193), CLIP (arXiv:2103.00020) or any
other, with a light decoder to show model rollouts.

Only the decoder is trained, as in DINO-WM (arXiv:2411.04983).  The backbone has no gradient.

Letters: B frames, H W pixels, P patches, D latent width, C channels.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from data.batch import Batch
from data.ranges import CheckedConfig, Range
from models.external_weights import check_hash, leave_out, weights_hash
from models.layers.pixel_decoder import PixelDecoder
from models.method import ExternalWeightsError, Losses
from models.tokenizers import backbones
from models.tokenizers.tokenizer import LatentSpec, Tokenizer

R = TypeVar("R")
RANDOM = "random"


@dataclass(frozen=True)
class FrozenEncoderConfig(CheckedConfig):
    ADDED: ClassVar[frozenset[str]] = frozenset({"revision", "sha256"})
    image_size: Annotated[tuple[int, int], Range(1, 4096)] = (64, 64)
    """Height and width of a frame, in pixels."""
    pretrained: str = "facebook/dinov2-small"
    """A name on the Hugging Face hub, or a local folder: DINOv2, CLIP's vision model, or what
    transformers' AutoBackbone reads.  `random` is an untrained DINOv2-small, a baseline."""
    revision: str = ""
    """A branch, tag or commit on the hub; a checkpoint holds the commit."""
    sha256: str = ""
    """Hash of the backbone's weights, set from them; a checkpoint that has one names the weights
    instead of holding them."""
    input_size: Annotated[int, Range(1, 2048)] = 112
    """Side of the backbone's input, in pixels; a multiple of its patch size."""
    tokens: Literal["patches", "cls"] = "patches"
    """Latents of a frame: a vector per patch, or one for the image."""
    channels: Annotated[int, Range(1, 2**13)] = 128
    """Channels of the decoder."""
    num_res_blocks: Annotated[int, Range(0, 100)] = 2
    """Residual blocks of the decoder."""
    architecture: str = ""
    """The backbone's config as JSON, set from the weights; a checkpoint holds it."""


class FrozenEncoder(Tokenizer):
    """Frames to features of a frozen backbone, and features to frames."""

    backbone: Any
    architecture: backbones.Architecture
    mean: Tensor
    std: Tensor

    def __init__(self, config: FrozenEncoderConfig) -> None:
        super().__init__()
        self.config = self._load(config)
        self.backbone.requires_grad_(False).eval()
        self.image_size = config.image_size
        if config.tokens == "cls" and not backbones.has_image_token(self.architecture):
            raise ValueError(
                f"--model.tokens cls is for a backbone with a token for the image (DINOv2, CLIP), "
                f"and a {self.architecture['model_type']} has none; leave it at patches"
            )
        grid, width = backbones.grid_and_width(self.backbone, self.architecture, config.input_size)
        self.latents = LatentSpec(
            "continuous", grid if config.tokens == "patches" else (1, 1), width
        )
        mean, std = backbones.pixel_stats(self.architecture)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        self.decoder = PixelDecoder(
            self.latents, config.image_size, config.channels, config.num_res_blocks
        )

    def train(self, mode: bool = True) -> FrozenEncoder:
        super().train(mode)
        self.backbone.eval()  # it may have dropout
        return self

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, P, D)."""
        size = (self.config.input_size, self.config.input_size)
        x = nn.functional.interpolate(
            frames.float() / 255, size, mode="bilinear", antialias=True, align_corners=False
        )
        x = (x.clamp(0, 1) - self.mean) / self.std
        read = backbones.patches if self.config.tokens == "patches" else backbones.image_token
        return read(self.backbone, self.architecture, x)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, P, D) -> (B, 3, H, W) uint8."""
        return (self.decoder(latents).float().clamp(0, 1) * 255).round().to(torch.uint8)

    def loss(self, batch: Batch) -> Losses:
        """Squared error of the decoder, times 100; the backbone has no loss."""
        (frames,) = batch.require("frames")
        frames = frames.flatten(0, -4)
        reconstruction = self.decoder(self.encode(frames))
        target = frames.float() / 255
        return {"reconstruction": 100 * nn.functional.mse_loss(reconstruction.float(), target)}

    def _load(self, config: FrozenEncoderConfig) -> FrozenEncoderConfig:
        """Load the backbone; return the config with what its weights say.

        From the hub they are named by their commit and hash.  Those of a folder, and random ones,
        are in the checkpoint: nobody else has them.
        """
        if config.architecture:  # of a checkpoint
            self.architecture = json.loads(config.architecture)
            self.backbone = backbones.build(self.architecture)
            is_meta = next(self.backbone.parameters()).is_meta  # only shapes are wanted
            if config.sha256 and not is_meta:
                self.backbone = _named_weights(config)
        elif config.pretrained == RANDOM:
            if config.revision or config.sha256:
                raise ValueError(
                    "--model.pretrained random has neither a revision nor a hash; leave "
                    "--model.revision and --model.sha256 out"
                )
            self.backbone, self.architecture = backbones.random_dinov2()
        elif backbones.is_folder(config.pretrained):
            if config.revision:
                raise ValueError(
                    f"--model.revision {config.revision} is of a repository, and "
                    f"{config.pretrained} is a folder here; leave it out, or name the repository "
                    f"from another folder"
                )
            self.backbone, self.architecture = _asked_for(backbones.read, config.pretrained, "")
            if config.sha256:
                check_hash(weights_hash(self.backbone), config.sha256, config.pretrained)
            config = replace(config, sha256="")  # they are held, and so in the fingerprint
        else:
            commit = _asked_for(backbones.resolve_commit, config.pretrained, config.revision)
            self.backbone, self.architecture = _asked_for(backbones.read, config.pretrained, commit)
            found = weights_hash(self.backbone)
            config = replace(config, revision=commit, sha256=config.sha256 or found)
            check_hash(found, config.sha256, config.pretrained)
        if config.sha256:
            leave_out(self, "backbone")
        return replace(config, architecture=json.dumps(self.architecture))


def _asked_for(read: Callable[[str, str], R], name: str, revision: str) -> R:
    """Read what a flag asks for; ValueError names the flag."""
    try:
        return read(name, revision)
    except ExternalWeightsError as problem:
        raise ValueError(
            f"{problem}; give --model.pretrained a local folder with config.json and "
            f"model.safetensors, or a name on the hub"
        ) from None


def _named_weights(config: FrozenEncoderConfig) -> Any:
    """Read the weights that a checkpoint names; ExternalWeightsError where they cannot be had, or
    are others."""
    try:
        backbone, _ = backbones.read(config.pretrained, config.revision)
    except ValueError as problem:
        raise ExternalWeightsError(
            f"needs the weights of {config.pretrained} at commit {config.revision}, which cannot "
            f"be had: {problem}"
        ) from None
    check_hash(weights_hash(backbone), config.sha256, f"{config.pretrained}@{config.revision}")
    return backbone
