"""Vision backbones of transformers: how each is read, built again and fed.

DINOv2 and CLIP give tokens.  Whatever else `AutoBackbone` covers (ConvNeXt, Swin, ResNet, DINOv3
and more) gives a map of features.

Letters: B frames, D width, h w grid of patches, P = h w.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from data.io.hub_address import MAIN, HubAddress
from data.io.hub_client import describe, hub_api, redacted
from data.io.messages import first_few, shortened
from models.method import ExternalWeightsError

Architecture = dict[str, Any]
"""What rebuilds a backbone without its weights, as plain values; `model_type` names its kind."""

# Of each kind that gives tokens: those before the patches, the first of them the image's.
TOKEN_KINDS = ("dinov2", "dinov2_with_registers", "clip_vision_model")
TOKEN_FIELDS = (
    "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size",
    "image_size", "mlp_ratio", "intermediate_size", "projection_dim", "hidden_act",
    "use_swiglu_ffn", "layerscale_value", "qkv_bias", "layer_norm_eps", "num_register_tokens",
)  # fmt: skip
# Mean and standard deviation of the training images, RGB from 0 to 1.
IMAGENET_STATS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP_STATS = ((0.481, 0.458, 0.408), (0.269, 0.261, 0.276))


def is_folder(name: str) -> bool:
    """Whether the weights are in a local folder, which comes before a repository of its name."""
    return Path(name).is_dir()


def resolve_commit(name: str, revision: str) -> str:
    """Return the commit of a repository that a branch or tag stands for, also from the cache."""
    try:
        return hub_api().resolve_revision(name, revision=revision or MAIN).resolved
    except Exception as problem:  # of the network, the server, or the name
        raise unreadable(name, revision, problem) from None


def read(name: str, commit: str) -> tuple[Any, Architecture]:
    """Read a backbone with its weights, and its architecture; `commit` is empty for a folder.

    ValueError where there is none, or one of a kind that is not known.
    """
    import transformers as hf  # takes seconds to import

    where = {"revision": commit} if commit else {}
    # float32: by default weights stay what they were saved as, half precision also on a CPU
    loading = where | {"dtype": torch.float32}
    hf.utils.logging.set_verbosity_error()  # a report of each reading; what matters is raised
    hf.utils.logging.disable_progress_bar()
    try:
        config = hf.AutoConfig.from_pretrained(name, **where)
        kind = config.model_type
        kind = "clip_vision_model" if kind == "clip" else kind
        if kind in TOKEN_KINDS:
            backbone = _whole(_token_models()[kind][1], name, loading)
            return backbone, _fields(backbone.config)
        if kind in _map_kinds():
            # AutoBackbone.from_pretrained of this version takes no folder
            backbone = _whole(hf.MODEL_FOR_BACKBONE_MAPPING[type(config)], name, loading)
            plain = json.loads(backbone.config.to_json_string(use_diff=False))
            return backbone, {"model_type": kind, "config": plain, "stats": _stats(name, commit)}
    except Exception as problem:  # of the network, of files, of a library that a kind needs
        raise unreadable(name, commit, problem) from None
    raise ValueError(
        f"{name} holds a {kind}; give --model.pretrained a folder or a name of DINOv2, of CLIP, or "
        f"of what AutoBackbone reads ({first_few(_map_kinds(), 8)})"
    )


def _whole(model: Any, name: str, loading: dict[str, Any]) -> Any:
    """Read a model of which no weight is missing: transformers leaves such ones random."""
    backbone, info = model.from_pretrained(name, **loading, output_loading_info=True)
    # norms of the maps are no part of most checkpoints, and do nothing until they are trained
    missing = [key for key in info["missing_keys"] if not key.startswith("hidden_states_norms.")]
    if missing or info["mismatched_keys"]:
        raise ValueError(f"its file has no {first_few(missing) or info['mismatched_keys']}")
    return backbone


def unreadable(name: str, revision: str, problem: Exception) -> ExternalWeightsError:
    if is_folder(name):
        reason, where = shortened(str(problem).strip().partition("\n")[0]), "from that folder"
    else:
        address = HubAddress(name, revision or MAIN)
        reason = redacted(describe(problem, address, writing=False))
        where = "from the hub, and there is no such folder"
    return ExternalWeightsError(f"no backbone {name!r} could be read {where} ({reason})")


def build(architecture: Architecture) -> Any:
    """Build a backbone with random weights, for those of a checkpoint."""
    import transformers as hf

    kind = architecture["model_type"]
    if kind in TOKEN_KINDS:
        config, model = _token_models()[kind]
        return model(config(**architecture))
    config = hf.AutoConfig.for_model(**architecture["config"])
    return hf.AutoBackbone.from_config(config)


def random_dinov2() -> tuple[Any, Architecture]:
    """An untrained DINOv2-small."""
    import transformers as hf

    made = hf.Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6)
    return hf.Dinov2Model(made), _fields(made)


def pixel_stats(architecture: Architecture) -> tuple[Any, Any]:
    """Mean and standard deviation that images are normalized with, three numbers each."""
    if "stats" in architecture:
        return tuple(architecture["stats"])
    is_clip = architecture["model_type"] == "clip_vision_model"
    return CLIP_STATS if is_clip else IMAGENET_STATS


def has_image_token(architecture: Architecture) -> bool:
    return architecture["model_type"] in TOKEN_KINDS


def grid_and_width(
    backbone: nn.Module, architecture: Architecture, input_size: int
) -> tuple[tuple[int, int], int]:
    """Give (h, w) and D of square images; ValueError where their side, in pixels, does not fit."""
    if has_image_token(architecture):
        patch_size = architecture["patch_size"]
        if input_size % patch_size:
            raise ValueError(
                f"--model.input-size {input_size} is not divisible by the backbone's patch size "
                f"{patch_size}; give a multiple of it"
            )
        side = input_size // patch_size
        return (side, side), architecture["hidden_size"]
    with torch.no_grad():
        features = backbone.eval()(torch.zeros(1, 3, input_size, input_size)).feature_maps[-1]
    _, width, *grid = features.shape
    return (grid[0], grid[1]), width


def patches(backbone: Any, architecture: Architecture, pixels: Tensor) -> Tensor:
    """(B, 3, H, W) normalized -> (B, P, D)."""
    if has_image_token(architecture):
        before = 1 + architecture.get("num_register_tokens", 0)
        return _tokens(backbone, architecture, pixels)[:, before:]
    return rearrange(backbone(pixels).feature_maps[-1], "B D h w -> B (h w) D")


def image_token(backbone: Any, architecture: Architecture, pixels: Tensor) -> Tensor:
    """(B, 3, H, W) normalized -> (B, 1, D)."""
    return _tokens(backbone, architecture, pixels)[:, :1]


def _tokens(backbone: Any, architecture: Architecture, pixels: Tensor) -> Tensor:
    # DINOv2 interpolates its position embedding by itself, CLIP on request
    is_clip = architecture["model_type"] == "clip_vision_model"
    kwargs = {"interpolate_pos_encoding": True} if is_clip else {}
    return backbone(pixel_values=pixels, **kwargs).last_hidden_state


def _token_models() -> dict[str, tuple[Any, Any]]:
    import transformers as hf

    # not AutoModel, which builds CLIP's model of texts as well
    return {
        "dinov2": (hf.Dinov2Config, hf.Dinov2Model),
        "dinov2_with_registers": (hf.Dinov2WithRegistersConfig, hf.Dinov2WithRegistersModel),
        "clip_vision_model": (hf.CLIPVisionConfig, hf.CLIPVisionModel),
    }


def _map_kinds() -> list[str]:
    from transformers.models.auto import modeling_auto

    return list(modeling_auto.MODEL_FOR_BACKBONE_MAPPING_NAMES)


def _fields(config: Any) -> Architecture:
    """Select the fields that rebuild a model of tokens."""
    return {name: getattr(config, name) for name in TOKEN_FIELDS if hasattr(config, name)}


def _stats(name: str, commit: str) -> list[list[float]]:
    """Read what images are normalized with from preprocessor_config.json; else ImageNet's."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    file = "preprocessor_config.json"
    try:
        path = Path(name, file) if not commit else hf_hub_download(name, file, revision=commit)
        found = json.loads(Path(path).read_text())
        return [[float(x) for x in found[f"image_{key}"]] for key in ("mean", "std")]
    except (FileNotFoundError, EntryNotFoundError, KeyError):
        return [list(row) for row in IMAGENET_STATS]
