"""Frozen weights of others, which a checkpoint names instead of holding: by name, revision, hash.

A method with such a submodule calls `leave_out`: its state is then that of its own weights alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from data.io.messages import first_few, one_line, shortened
from models.method import ExternalWeightsError

R = TypeVar("R")


def weights_hash(module: nn.Module) -> str:
    """Give the SHA-256 of a module's weights: names, dtypes, shapes and bytes, in 64 hex digits."""
    return state_hash(module.state_dict())


def state_hash(state: Mapping[str, Tensor]) -> str:
    """Give that of the module whose state this is."""
    digest = hashlib.sha256()
    for name, weight in sorted(state.items()):
        weight = weight.detach().cpu().contiguous()
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def frozen_key(name: str, revision: str, weights: nn.Module, *read: Any) -> str:
    """Say what latents of frozen weights follow from: the weights by name, revision and hash, and
    how frames are `read` by them, as plain values."""
    stamp = hashlib.sha256(json.dumps(read).encode()).hexdigest()[:16]
    at = f"{name}@{revision}" if revision else name
    return f"{at}, weights {weights_hash(weights)[:16]}, read as {stamp}"


def check_finite(module: nn.Module, name: str) -> None:
    """Raise ValueError where weights of `name` are no numbers: nothing can be trained on them."""
    bad = [key for key, weight in module.named_parameters() if not weight.isfinite().all()]
    bad += [key for key, buffer in module.named_buffers() if buffer.isnan().any()]
    if bad:
        raise ValueError(
            f"{name}'s weights are not finite in {first_few(bad)}; get them again, or give "
            f"--model.pretrained others"
        )


def built(build: Callable[[Any], R], architecture: str) -> R:
    """Build what a checkpoint's config describes as JSON; ValueError where it describes nothing."""
    try:
        return build(json.loads(architecture))
    except ExternalWeightsError:
        raise
    except Exception as problem:  # of JSON, and of libraries that are given values of any kind
        raise ValueError(
            f"the architecture in the config, {shortened(architecture)}, cannot be built "
            f"({type(problem).__name__}: {one_line(problem)}); get the checkpoint again, or train "
            f"again"
        ) from None


def check_hash(found: str, expected: str, name: str) -> None:
    """Raise ExternalWeightsError where the weights of `name` have another hash than expected."""
    if found != expected:
        raise ExternalWeightsError(
            f"needs the weights of {name} with SHA-256 {expected[:16]}..., but those that are "
            f"there have {found[:16]}...; get them again (delete them from the cache), or train "
            f"on the ones that are there"
        )


def asked_for(ways: str, read: Callable[..., R], *name_and_revision: str) -> R:
    """Read what --model.pretrained asks for; ValueError names the flag, and `ways` to give it."""
    try:
        return read(*name_and_revision)
    except ExternalWeightsError as problem:
        raise ValueError(
            f"{problem}; give --model.pretrained a local folder with a config.json and its "
            f"weights, a name on the hub, or {ways}"
        ) from None


def check_unnamed(name: str, revision: str, sha256: str) -> None:
    """Raise ValueError where random weights are given a revision or a hash."""
    if revision or sha256:
        raise ValueError(
            f"--model.pretrained {name} has neither a revision nor a hash; leave "
            f"--model.revision and --model.sha256 out"
        )


def check_folder(name: str, revision: str) -> None:
    """Raise ValueError where a local folder is given a revision."""
    if revision:
        raise ValueError(
            f"--model.revision {revision} is of a repository, and {name} is a folder here; leave "
            f"it out, or name the repository from another folder"
        )


def named_weights(read: Callable[[str, str], Any], name: str, revision: str, sha256: str) -> Any:
    """Read the weights that a checkpoint names; ExternalWeightsError where they cannot be had, or
    have another hash."""
    try:
        module = read(name, revision)
    except ValueError as problem:
        where = f" at commit {revision}" if revision else ""
        raise ExternalWeightsError(
            f"needs the weights of {name}{where}, which cannot be had: {problem}"
        ) from None
    check_hash(weights_hash(module), sha256, f"{name}@{revision}" if revision else name)
    return module


def part_of(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The state of the submodule `name`, of that of a whole method."""
    prefix = f"{name}."
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def check_encoder(
    encoder: nn.Module, own: Any, held: dict[str, Tensor], config: dict[str, Any], stays: bool
) -> None:
    """Raise ValueError where a run, whose weights are to be taken, has another encoder than this.

    own: the config of this encoder, which `stays` as it is or is trained.  held: the encoder's
    weights in that run, of which `config` has the plain values; empty where it names them.
    """
    if (held and not stays) or not (held or config.get("sha256")):
        return
    theirs, ours = state_hash(held) if held else config["sha256"], weights_hash(encoder)
    are_random = own.pretrained.startswith("random") and own.pretrained == config["pretrained"]
    if theirs == ours or (are_random and own.architecture == config["architecture"]):
        return
    name, revision = config["pretrained"], config.get("revision")
    if config.get("tuning") == "full":
        way = "--model.tuning full goes on with that one"
    else:
        way = f"give --model.pretrained {name}"
        way += f" --model.revision {revision}" if revision else ""
    raise ValueError(
        f"it {'holds' if held else 'names'} an encoder of {name} (weights {theirs[:16]}), and that "
        f"of --model.pretrained {own.pretrained} (weights {ours[:16]}) "
        f"{'stays as it is' if stays else 'is another'}; {way}, or leave --train.init-from out"
    )


def leave_out(method: nn.Module, name: str, but: str = "") -> None:
    """Leave the submodule `name` out of a method's state, and do not miss it in one that is
    loaded; all but its weights whose names have `but` in them, such as adapters."""
    assert isinstance(getattr(method, name), nn.Module), name
    method.register_state_dict_post_hook(_Drop(name, but))
    method.register_load_state_dict_post_hook(_Excuse(name, but))


def _is_left_out(key: str, prefix: str, but: str) -> bool:
    return key.startswith(prefix) and not (but and but in key)


class _Drop:
    """A class, not a closure: hooks are copied with the module."""

    def __init__(self, name: str, but: str) -> None:
        self.name, self.but = name, but

    def __call__(
        self, module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any
    ) -> None:
        for key in [key for key in state if _is_left_out(key, f"{prefix}{self.name}.", self.but)]:
            del state[key]


class _Excuse:
    def __init__(self, name: str, but: str) -> None:
        self.name, self.but = name, but

    def __call__(self, module: nn.Module, incompatible: Any) -> None:
        missing: list[str] = incompatible.missing_keys
        missing[:] = [
            key
            for key in missing
            if f".{self.name}." not in f".{key}" or (self.but and self.but in key)
        ]
