"""A frozen vision backbone as tokenizer: DINOv2 (arXiv:2304.07193) or CLIP (arXiv:2103.00020), with
a light decoder to show model rollouts.

Only the decoder is trained, as in DINO-WM (arXiv:2411.04983).  The backbone has no gradient.

Letters: B frames, H W pixels, P patches, D latent width, C channels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from data.batch import Batch
from data.ranges import CheckedConfig, Range
from models.layers.pixel_decoder import PixelDecoder
from models.method import Losses
from models.tokenizers.tokenizer import LatentSpec, Tokenizer

# Mean and standard deviation of the training images, RGB from 0 to 1.
PIXEL_STATS = {
    "dinov2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip_vision_model": ((0.481, 0.458, 0.408), (0.269, 0.261, 0.276)),
}
RANDOM = "random"


@dataclass(frozen=True)
class FrozenEncoderConfig(CheckedConfig):
    image_size: Annotated[tuple[int, int], Range(1, 4096)] = (64, 64)
    """Height and width of a frame, in pixels."""
    pretrained: str = "facebook/dinov2-small"
    """A name on the Hugging Face hub, or a local folder: DINOv2, or CLIP's vision model.  `random`
    is an untrained DINOv2-small, a baseline."""
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

    mean: Tensor
    std: Tensor

    def __init__(self, config: FrozenEncoderConfig) -> None:
        super().__init__()
        self.backbone, architecture = _load(config)
        self.backbone.requires_grad_(False).eval()
        self.config = replace(config, architecture=json.dumps(architecture))
        self.image_size = config.image_size
        patch_size = architecture["patch_size"]
        if config.input_size % patch_size:
            raise ValueError(
                f"--model.input-size {config.input_size} is not divisible by the backbone's patch "
                f"size {patch_size}; give a multiple of it"
            )
        grid_side = config.input_size // patch_size if config.tokens == "patches" else 1
        self.latents = LatentSpec("continuous", (grid_side, grid_side), architecture["hidden_size"])
        mean, std = PIXEL_STATS[architecture["model_type"]]
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
        # DINOv2 interpolates its position embedding by itself, CLIP on request
        kwargs = {} if self.backbone.config.model_type == "dinov2" else _INTERPOLATED
        out = self.backbone(pixel_values=x, **kwargs).last_hidden_state
        return out[:, 1:] if self.config.tokens == "patches" else out[:, :1]

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


_INTERPOLATED = {"interpolate_pos_encoding": True}


def _load(config: FrozenEncoderConfig) -> tuple[Any, dict[str, Any]]:
    """Load the backbone and its config: from a checkpoint's config, a folder, or the hub."""
    import transformers as hf  # takes seconds to import

    architectures = {
        "dinov2": (hf.Dinov2Config, hf.Dinov2Model),
        "clip_vision_model": (hf.CLIPVisionConfig, hf.CLIPVisionModel),
    }
    if config.architecture:
        known = json.loads(config.architecture)
        made, model = architectures[known["model_type"]]
        return model(made(**known)), known
    if config.pretrained == RANDOM:
        made = hf.Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6)
        return hf.Dinov2Model(made), _plain(made)
    try:
        model_type = hf.AutoConfig.from_pretrained(config.pretrained).model_type
        model_type = "clip_vision_model" if model_type == "clip" else model_type
        backbone = (
            architectures[model_type][1].from_pretrained(config.pretrained)
            if model_type in architectures
            else None
        )
    except (OSError, ValueError) as problem:
        where = "that folder" if Path(config.pretrained).is_dir() else "the hub, and no such folder"
        raise ValueError(
            f"no backbone {config.pretrained!r} could be read from {where}; give "
            f"--model.pretrained a local folder with config.json and model.safetensors, or a name "
            f"on the hub "
            f"({str(problem).splitlines()[0]})"
        ) from None
    if backbone is None:
        raise ValueError(
            f"{config.pretrained} holds a {model_type}; give --model.pretrained a folder or a name "
            f"of DINOv2 or of CLIP"
        )
    return backbone, _plain(backbone.config)


def _plain(config: Any) -> dict[str, Any]:
    """Select the fields that rebuild the backbone."""
    names = (
        "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size",
        "image_size", "mlp_ratio", "intermediate_size", "projection_dim", "hidden_act",
        "use_swiglu_ffn", "layerscale_value", "qkv_bias", "layer_norm_eps",
    )  # fmt: skip
    return {name: getattr(config, name) for name in names if hasattr(config, name)}
