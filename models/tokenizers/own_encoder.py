"""A vision backbone of the user's own: a class, named as `package.module:Class`.

    class Class(nn.Module):
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)    # of RGB from 0 to 1
        patch_size = 16              # pixels; where it gives tokens, or sizes are to be checked
        num_prefix_tokens = 1        # tokens that are no patch; the first is the image's

        def __init__(self, pretrained: bool) -> None: ...    # with its weights, or random ones
        def forward(self, pixels): ...    # (B, 3, H, W) -> (B, D, h, w), or tokens (B, R + P, D)

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
        return made(pretrained=pretrained)
    except Exception as problem:  # a class of the user's may do anything
        if torch.get_default_device().type == "meta":  # only shapes are wanted, and it needs more
            raise
        raise ExternalWeightsError(
            f"{name}(pretrained={pretrained}) could not be made "
            f"({type(problem).__name__}: {one_line(problem)})"
        ) from problem


def stats(encoder: Any) -> list[list[float]] | None:
    """Its mean and standard deviation of RGB; None where it has none."""
    if not hasattr(encoder, "mean") and not hasattr(encoder, "std"):
        return None
    found = [[float(x) for x in getattr(encoder, key, ())] for key in ("mean", "std")]
    if [len(row) for row in found] != [3, 3]:
        raise ValueError(
            f"mean and std of {type(encoder).__name__} have {len(found[0])} and {len(found[1])} "
            f"numbers; give three of each, for red, green and blue"
        )
    return found


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
    except Exception as problem:  # of the module's own code as well
        raise ExternalWeightsError(
            f"{module_name} could not be imported ({one_line(problem)}); install its package, or "
            f"put the file where Python finds it (PYTHONPATH)"
        ) from None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ExternalWeightsError(
            f"{module_name} has no nn.Module called {class_name}; name one that it has"
        )
    return found
