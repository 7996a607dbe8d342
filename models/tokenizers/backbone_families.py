"""Families of vision backbones: what each gives of an image, and what its pixels are normalized
with.

CLIP, DINOv2 (with registers or without), SigLIP and plain ViT give tokens.  A class of the user's
own gives tokens or a map, and so does whatever else transformers' `AutoBackbone` covers: a map.

Letters: B frames, R prefix tokens, D width, h w grid of patches, P = h w.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from models.tokenizers import own_encoder

Architecture = dict[str, Any]
"""What rebuilds a backbone without its weights, as plain values; `model_type` names its family."""
Stats = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of training images, RGB from 0 to 1."""

IMAGENET_STATS: Stats = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP_STATS: Stats = ((0.481, 0.458, 0.408), (0.269, 0.261, 0.276))
SAME = 1e-3  # of the largest feature: far above what a batch changes by rounding
HALF_STATS: Stats = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CONFIG_FIELDS = (
    "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size",
    "image_size", "mlp_ratio", "intermediate_size", "projection_dim", "hidden_act",
    "use_swiglu_ffn", "layerscale_value", "qkv_bias", "layer_norm_eps", "num_register_tokens",
    "vision_use_head",
)  # fmt: skip


@dataclass(frozen=True)
class Features:
    """What a backbone gives of images."""

    tokens: Tensor
    """(B, R + P, D): tokens that are no patch, then the patches row by row."""
    grid: tuple[int, int]
    """Rows and columns of patches."""
    num_prefix_tokens: int = 0
    """R: a token for the image, the first one, and registers."""
    pooled: Tensor | None = None
    """(B, D), where a head pools the patches to one vector for the image."""

    @property
    def patches(self) -> Tensor:
        """(B, P, D)."""
        return self.tokens[:, self.num_prefix_tokens :]

    @property
    def image(self) -> Tensor | None:
        """(B, 1, D), the vector for the image; None where there is none."""
        if self.num_prefix_tokens:
            return self.tokens[:, :1]
        return None if self.pooled is None else self.pooled[:, None]


@dataclass(frozen=True)
class TokenFamily:
    """A family of transformers that gives tokens."""

    name: str
    """Its classes in transformers are NAMEConfig and NAMEModel."""
    stats: Stats
    """Where the weights come without a preprocessor_config.json."""
    num_prefix_tokens: int = 1
    """Without registers."""
    on_request: bool = True
    """Whether position embeddings are interpolated to other sizes only on request."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the model's constructor."""
    small: dict[str, Any] = field(default_factory=dict)
    """Sizes of the smallest published one."""


_SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}
_SMALL_VIT = _SMALL | {"intermediate_size": 1536}
TOKEN_FAMILIES = {
    "dinov2": TokenFamily("Dinov2", IMAGENET_STATS, on_request=False, small=_SMALL),
    "dinov2_with_registers": TokenFamily(
        "Dinov2WithRegisters", IMAGENET_STATS, on_request=False,
        small=_SMALL | {"patch_size": 14, "num_register_tokens": 4},
    ),
    "clip_vision_model": TokenFamily("CLIPVision", CLIP_STATS),
    "siglip_vision_model": TokenFamily("SiglipVision", HALF_STATS, num_prefix_tokens=0),
    # the head that pools is no part of most checkpoints
    "vit": TokenFamily(
        "ViT", HALF_STATS, options={"add_pooling_layer": False}, small=_SMALL_VIT
    ),
}  # fmt: skip
_VISION_OF = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}


def vision_kind(kind: str) -> str:
    """The kind of the vision model in one of images and texts; any other kind is its own."""
    return _VISION_OF.get(kind, kind)


def token_classes(kind: str) -> tuple[Any, Callable[..., Any]]:
    """Config and model of a family in transformers."""
    import transformers as hf  # takes seconds to import

    # not AutoModel, which builds CLIP's model of texts as well
    name = TOKEN_FAMILIES[kind].name
    return getattr(hf, f"{name}Config"), getattr(hf, f"{name}Model")


def map_kinds() -> list[str]:
    """Kinds of transformers that `AutoBackbone` reads."""
    from transformers.models.auto import modeling_auto

    return list(modeling_auto.MODEL_FOR_BACKBONE_MAPPING_NAMES)


def family_names() -> list[str]:
    """What `random:` may be followed by, but for names and classes."""
    whole = {vision: name for name, vision in _VISION_OF.items()}
    return [*(whole.get(kind, kind) for kind in TOKEN_FAMILIES), *map_kinds()]


def label(architecture: Architecture) -> str:
    """Name a backbone's family for messages."""
    return architecture.get("class") or architecture["model_type"]


def default_stats(kind: str) -> Stats:
    family = TOKEN_FAMILIES.get(kind)
    return family.stats if family else IMAGENET_STATS


def pixel_stats(architecture: Architecture) -> tuple[Any, Any]:
    """Mean and standard deviation that images are normalized with, three numbers each."""
    if "stats" in architecture:
        return tuple(architecture["stats"])
    return default_stats(architecture["model_type"])


def features(backbone: Any, architecture: Architecture, pixels: Tensor) -> Features:
    """(B, 3, H, W) normalized -> features; H and W are multiples of the patch's side."""
    kind = architecture["model_type"]
    if kind == own_encoder.KIND:
        return _own_features(backbone, architecture, pixels, backbone(pixels))
    if kind not in TOKEN_FAMILIES:
        return _of_map(backbone(pixels).feature_maps[-1])
    family, patch = TOKEN_FAMILIES[kind], architecture["patch_size"]
    kwargs = {"interpolate_pos_encoding": True} if family.on_request else {}
    out = backbone(pixel_values=pixels, **kwargs)
    prefix = family.num_prefix_tokens + architecture.get("num_register_tokens", 0)
    grid = (pixels.shape[2] // patch, pixels.shape[3] // patch)
    pooled = out.pooler_output if not prefix and architecture.get("vision_use_head") else None
    return Features(out.last_hidden_state, grid, prefix, pooled)


def check_input_size(backbone: nn.Module, architecture: Architecture, input_size: int) -> None:
    """Raise ValueError where a side, in pixels, is not cut into whole patches."""
    own = (
        getattr(backbone, "patch_size", 0) if architecture["model_type"] == own_encoder.KIND else 0
    )
    patch_size = own or architecture.get("patch_size", 0)
    if patch_size and input_size % patch_size:
        raise ValueError(
            f"--model.input-size {input_size} is not divisible by the backbone's patch size "
            f"{patch_size}; give a multiple of it"
        )


def shapes(
    backbone: nn.Module, architecture: Architecture, input_size: int
) -> tuple[tuple[int, int], int, bool]:
    """Give (h, w) and D of square images, and whether there is a vector for the image; ValueError
    where their side, in pixels, does not fit, or two gray images have no finite features, or not
    the same."""
    check_input_size(backbone, architecture, input_size)
    mean, std = (torch.tensor(row)[:, None, None] for row in pixel_stats(architecture))
    gray = ((0.5 - mean) / std).repeat(2, 1, input_size, input_size)
    is_own = architecture["model_type"] == own_encoder.KIND
    with torch.no_grad():
        if is_own:
            given = own_encoder.output(backbone.eval(), architecture["class"], gray)
            found = _own_features(backbone, architecture, gray, given)
        else:
            found = features(backbone.eval(), architecture, gray)
    if not found.tokens.is_meta and not (finite := found.tokens.isfinite()).all():
        raise ValueError(
            f"{label(architecture)} gives {int((~finite).sum())} of {finite.numel()} features of "
            f"gray images as NaN or infinite; mend its {'forward' if is_own else 'weights'}"
        )
    if not found.tokens.is_meta:
        first, second = found.tokens
        apart = float((first - second).abs().max())
        if apart > SAME * max(1.0, float(first.abs().max())):
            raise ValueError(
                f"{label(architecture)} gives two equal images features that are up to "
                f"{apart:.3g} apart; it is random, or mixes the images of a batch: make it "
                f"deterministic in eval mode"
            )
    return found.grid, found.tokens.shape[-1], found.image is not None


def _of_map(maps: Tensor) -> Features:
    return Features(rearrange(maps, "B D h w -> B (h w) D"), (maps.shape[2], maps.shape[3]))


def _own_features(
    backbone: Any, architecture: Architecture, pixels: Tensor, found: Any
) -> Features:
    if isinstance(found, Tensor) and found.dim() == 4:
        return _of_map(found)
    grid, prefix = own_encoder.tokens_of(backbone, architecture["class"], found, pixels)
    return Features(found, grid, prefix)
