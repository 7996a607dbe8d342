"""A frozen vision backbone as tokenizer: DINOv2 (arXiv:2304.07193) or CLIP (arXiv:2103.00020), with
a light decoder to look at what is imagined.

Only the decoder is trained.  No parameter of the backbone changes or keeps a gradient, and nothing
that the decoder learns reaches the latents, as in DINO-WM (arXiv:2411.04983).

Letters: B frames, H W pixels, P patches, D latent width, C channels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.layers.pixel_decoder import PixelDecoder
from models.tokenizers.tokenizer import LatentSpec

# Means and deviations of the pictures that they were trained on, RGB from 0 to 1.
PIXEL_STATS = {
    "dinov2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip_vision_model": ((0.481, 0.458, 0.408), (0.269, 0.261, 0.276)),
}
RANDOM = "random"


@dataclass(frozen=True)
class FrozenEncoderConfig:
    image_size: tuple[int, int] = (64, 64)
    """Height and width of a frame, in pixels."""
    pretrained: str = "facebook/dinov2-small"
    """A name on the Hugging Face hub, or a local folder: DINOv2, or CLIP's vision model. `random`
    is DINOv2-small as it is before any training, for comparison."""
    input_size: int = 112
    """Side, in pixels, to which a frame is resized for the backbone; a multiple of its patches."""
    tokens: Literal["patches", "cls"] = "patches"
    """What stands for a frame: a vector for each patch, or one for the picture."""
    channels: int = 128
    """Channels of the decoder."""
    num_res_blocks: int = 2
    """Residual blocks of the decoder."""
    architecture: str = ""
    """Of the backbone, as a checkpoint holds it; taken from the weights."""


class FrozenEncoder(nn.Module):
    """Frames to features that nobody trains here, and from features to a picture."""

    clip_length = 1
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
                f"{config.input_size} pixels do not part into patches of {patch_size}; give --model.seen a "
                f"multiple of {patch_size}"
            )
        grid_side = config.input_size // patch_size if config.tokens == "patches" else 1
        self.latents = LatentSpec("continuous", (grid_side, grid_side), architecture["hidden_size"])
        mean, std = PIXEL_STATS[architecture["model_type"]]
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(std)[:, None, None], persistent=False)
        self.decoder = PixelDecoder(
            self.latents, config.image_size, config.channels, config.num_res_blocks
        )

    @property
    def codebooks(self) -> Tensor:
        return torch.zeros(0)

    def train(self, mode: bool = True) -> FrozenEncoder:
        super().train(mode)
        self.backbone.eval()  # it has dropout and the like
        return self

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, P, D)."""
        size = (self.config.input_size, self.config.input_size)
        x = nn.functional.interpolate(
            frames.float() / 255, size, mode="bilinear", antialias=True, align_corners=False
        )
        x = (x.clamp(0, 1) - self.mean) / self.std
        # DINOv2 fits its places to any size by itself, CLIP when asked
        kwargs = {} if self.backbone.config.model_type == "dinov2" else _INTERPOLATED
        out = self.backbone(pixel_values=x, **kwargs).last_hidden_state
        return out[:, 1:] if self.config.tokens == "patches" else out[:, :1]

    def decode(self, latents: Tensor) -> Tensor:
        """(B, P, D) -> (B, 3, H, W) uint8."""
        return (self.decoder(latents).float().clamp(0, 1) * 255).round().to(torch.uint8)

    def loss(self, frames: Tensor, actions: Tensor | None = None) -> dict[str, Tensor]:
        """Squared error of the decoder's picture; the backbone has no part in it."""
        frames = frames.flatten(0, -4)
        reconstruction = self.decoder(self.encode(frames))
        target = frames.float() / 255
        return {"reconstruction": 100 * nn.functional.mse_loss(reconstruction.float(), target)}


_INTERPOLATED = {"interpolate_pos_encoding": True}


def _load(config: FrozenEncoderConfig) -> tuple[Any, dict[str, Any]]:
    """Give the backbone and what it is: from a checkpoint's words, a folder, or the hub."""
    import transformers as hf  # seconds to import: only where it is used

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
            f"no backbone {config.pretrained!r} could be read from {where}; give --model.weights a "
            f"local folder with config.json and model.safetensors, or a name on the hub "
            f"({str(problem).splitlines()[0]})"
        ) from None
    if backbone is None:
        raise ValueError(
            f"{config.pretrained} holds a {model_type}; give --model.weights a folder or a name of DINOv2 "
            f"or of CLIP"
        )
    return backbone, _plain(backbone.config)


def _plain(config: Any) -> dict[str, Any]:
    """What is needed to build it again."""
    names = (
        "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size",
        "image_size", "mlp_ratio", "intermediate_size", "projection_dim", "hidden_act",
        "use_swiglu_ffn", "layerscale_value", "qkv_bias", "layer_norm_eps",
    )  # fmt: skip
    return {name: getattr(config, name) for name in names if hasattr(config, name)}
