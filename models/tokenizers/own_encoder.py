"""A vision backbone of the user's own: a class, named as `package.module:Class`.

    class Class(nn.Module):
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)    # of RGB from 0 to 1
        patch_size = 16              # pixels; where it gives tokens, or sizes are to be checked
        num_prefix_tokens = 1        # tokens that are no patch; the first is the image's

        def __init__(self, pretrained: bool) -> None: ...    # with its weights, or random ones
        def forward(self, pixels): ...    # (B, 3, H, W) -> (B, D, h, w), or tokens (B, R + P, D)

What it gives is float32, finite, and has a row for each image: this is tried when it is made.
Without `mean` and `std` they are ImageNet's, without `num_prefix_tokens` there are none.  With
`pretrained` it has the same weights each time: a checkpoint holds their hash instead of them.
"""

from __future__ import annotations

import importlib.util
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.io.messages import one_line
from models.method import ExternalWeightsError

KIND = "own_class"
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_class(name: str) -> bool:
    """Whether a name has the form of a class, and no folder has it."""
    return NAME.fullmatch(name) is not None and not Path(name).is_dir()


def build(name: str, pretrained: bool) -> nn.Module:
    """Make the encoder; ExternalWeightsError says what is wrong with the class."""
    made = _import(name)
    try:
        encoder = made(pretrained=pretrained)
    except (Exception, SystemExit) as problem:  # a class of the user's may do anything
        if _is_of_shapes(problem):
            raise
        raise ExternalWeightsError(
            f"{name}(pretrained={pretrained}) could not be made "
            f"({type(problem).__name__}: {one_line(problem)})"
        ) from problem
    for key, least in (("patch_size", 1), ("num_prefix_tokens", 0)):
        value = getattr(encoder, key, least)
        if not isinstance(value, int) or value < least:
            raise ExternalWeightsError(
                f"{key} of {name} is {value!r}; make it a whole number from {least} on, or leave "
                f"it out"
            )
    return encoder


def output(encoder: nn.Module, name: str, pixels: Tensor) -> Any:
    """What it gives of images, (B, 3, H, W); ValueError where that is no features of B images."""
    try:
        found = encoder(pixels)
    except (Exception, SystemExit) as problem:
        if _is_of_shapes(problem):
            raise
        raise ValueError(
            f"{name} gives nothing of images of {tuple(pixels.shape)} "
            f"({type(problem).__name__}: {one_line(problem)}); mend its forward"
        ) from problem
    if not isinstance(found, Tensor):
        return found
    if found.dtype != pixels.dtype:  # half precision as well: the decoder's weights are float32
        raise ValueError(
            f"{name} gives {found.dtype} of pixels of {pixels.dtype}; give {pixels.dtype} features"
        )
    if found.dim() and len(found) != len(pixels):
        raise ValueError(
            f"{name} gives {tuple(found.shape)} of {len(pixels)} images; give a row for each image"
        )
    if not found.numel():
        raise ValueError(
            f"{name} gives {tuple(found.shape)} of images of {tuple(pixels.shape)}, which holds no "
            f"feature; give at least 1 x 1 patches, of one channel or more"
        )
    return found


def _is_of_shapes(problem: BaseException) -> bool:
    """Whether it comes of a run on shapes alone, for which the class needs more."""
    return isinstance(problem, Exception) and torch.get_default_device().type == "meta"


def stats(encoder: Any) -> tuple[Any, Any] | None:
    """Its mean and standard deviation of RGB, not checked; None where it has neither."""
    if not hasattr(encoder, "mean") and not hasattr(encoder, "std"):
        return None
    return getattr(encoder, "mean", ()), getattr(encoder, "std", ())


def tokens_of(encoder: Any, name: str, found: Any, pixels: Tensor) -> tuple[tuple[int, int], int]:
    """Give grid and number of prefix tokens of what it gave; ValueError where that cannot be."""
    if not isinstance(found, Tensor) or found.dim() != 3:
        what = f"a tensor of {tuple(found.shape)}" if isinstance(found, Tensor) else type(found)
        raise ValueError(f"{name} gives {what}; give (B, D, h, w), or tokens (B, R + P, D)")
    patch, prefix = getattr(encoder, "patch_size", 0), getattr(encoder, "num_prefix_tokens", 0)
    if not patch:
        raise ValueError(f"{name} gives tokens, and has no patch_size to lay them out by; add it")
    grid = (pixels.shape[2] // patch, pixels.shape[3] // patch)
    if found.shape[1] != prefix + grid[0] * grid[1]:
        raise ValueError(
            f"{name} gives {found.shape[1]} tokens of an image of {tuple(pixels.shape[2:])}, but "
            f"{prefix} prefix tokens and {grid[0]} x {grid[1]} patches of {patch} pixels are "
            f"{prefix + grid[0] * grid[1]}; mend patch_size or num_prefix_tokens"
        )
    return grid, prefix


def _import(name: str) -> type[nn.Module]:
    """Import the class.  A checkpoint may name it, so it has to be of an installed package, or of a
    file in a folder that Python imports from: never of some folder below it."""
    module_name, _, class_name = name.partition(":")
    parts = module_name.split(".")
    try:
        for count in range(1, len(parts) + 1):
            spec = importlib.util.find_spec(".".join(parts[:count]))
            if spec is None or spec.origin is None:  # None: a folder without __init__.py
                raise ImportError(f"no module {'.'.join(parts[:count])!r}")
        found = getattr(import_module(module_name), class_name, None)
    except (Exception, SystemExit) as problem:  # of the module's own code as well
        raise ExternalWeightsError(
            f"{module_name} could not be imported ({one_line(problem)}); install its package, or "
            f"put the file where Python finds it (PYTHONPATH)"
        ) from None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ExternalWeightsError(
            f"{module_name} has no nn.Module called {class_name}; name one that it has"
        )
    return found
