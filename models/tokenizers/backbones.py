"""Vision backbones by name: from the Hugging Face hub, a folder, a class, or with random weights.

What each family gives is in models/tokenizers/backbone_families.py.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from data.io.hub_address import MAIN, HubAddress
from data.io.hub_client import describe, hub_api, redacted
from data.io.messages import first_few, one_line, shortened
from models.method import ExternalWeightsError
from models.tokenizers import own_encoder
from models.tokenizers.backbone_families import (
    CONFIG_FIELDS,
    TOKEN_FAMILIES,
    Architecture,
    default_stats,
    family_names,
    map_kinds,
    token_classes,
    vision_kind,
)

RANDOM = "random"
DEFAULT_FAMILY = "dinov2"


def is_folder(name: str) -> bool:
    """Whether the weights are in a local folder, which comes before a repository of its name."""
    return Path(name).is_dir()


def is_random(name: str) -> bool:
    """Whether the weights are random, and not another's: `random`, or `random:WHAT`."""
    return name == RANDOM or name.startswith(f"{RANDOM}:")


def resolve_commit(name: str, revision: str, noun: str = "backbone") -> str:
    """Return the commit of a repository that a branch or tag stands for, also from the cache.
    noun: what an error says that it was to hold."""
    try:
        return hub_api().resolve_revision(name, revision=revision or MAIN).resolved
    except Exception as problem:  # of the network, the server, or the name
        raise unreadable(name, revision, problem, noun) from None


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
    config = _config(name, commit)
    kind = vision_kind(config.model_type)
    try:
        if kind in TOKEN_FAMILIES:
            model = token_classes(kind)[1]
            backbone = _whole(model, name, loading | TOKEN_FAMILIES[kind].options)
        else:
            # AutoBackbone.from_pretrained of this version takes no folder
            backbone = _whole(hf.MODEL_FOR_BACKBONE_MAPPING[type(config)], name, loading)
    except Exception as problem:  # of the network, of files, of a library that a kind needs
        raise unreadable(name, commit, problem) from None
    stats = _stats(name, commit, kind)
    return backbone, _architecture(kind, backbone.config) | {"stats": stats}


def read_class(name: str) -> tuple[Any, Architecture]:
    """Make an encoder of the user's own with its weights, and its architecture."""
    encoder = own_encoder.build(name, pretrained=True)
    return encoder, _class_architecture(name, encoder)


def random_backbone(what: str) -> tuple[Any, Architecture]:
    """Make a backbone with random weights: `random` is DINOv2-small; after `random:` comes a
    family, or a folder, a repository or a class of which it is a copy without its weights."""
    import transformers as hf

    wanted = what.removeprefix(RANDOM).removeprefix(":") or DEFAULT_FAMILY
    kind = vision_kind(wanted)
    if kind in TOKEN_FAMILIES:
        config = token_classes(kind)[0](**TOKEN_FAMILIES[kind].small)
    elif kind in map_kinds():
        config = hf.AutoConfig.for_model(kind)
    elif own_encoder.is_class(wanted):
        encoder = own_encoder.build(wanted, pretrained=False)
        return encoder, _class_architecture(wanted, encoder)
    else:
        commit = "" if is_folder(wanted) else resolve_commit(wanted, "")
        config = _config(wanted, commit)
        kind = vision_kind(config.model_type)
        config = getattr(config, "vision_config", config)  # of a model of images and texts
        architecture = _architecture(kind, config) | {"stats": _stats(wanted, commit, kind)}
        return build(architecture), architecture
    architecture = _architecture(kind, config) | {"stats": _plain(default_stats(kind))}
    return build(architecture), architecture


def build(architecture: Architecture) -> Any:
    """Build a backbone with random weights, for those of a checkpoint."""
    import transformers as hf

    kind = architecture["model_type"]
    if kind == own_encoder.KIND:
        return own_encoder.build(architecture["class"], pretrained=False)
    if kind in TOKEN_FAMILIES:
        config, model = token_classes(kind)
        values = {k: v for k, v in architecture.items() if k != "stats"}
        return model(config(**values), **TOKEN_FAMILIES[kind].options)
    config = hf.AutoConfig.for_model(**architecture["config"])
    return hf.AutoBackbone.from_config(config)


def unreadable(
    name: str, revision: str, problem: Exception, noun: str = "backbone"
) -> ExternalWeightsError:
    if is_folder(name):
        reason, where = shortened(str(problem).strip().partition("\n")[0]), "from that folder"
    else:
        address = HubAddress(name, revision or MAIN)
        reason = redacted(describe(problem, address, writing=False))
        where = "from the hub, and there is no such folder"
    return ExternalWeightsError(f"no {noun} {name!r} could be read {where} ({reason})")


def _config(name: str, commit: str) -> Any:
    """Read the config of a backbone; ValueError for a kind that is not known."""
    import transformers as hf

    try:
        config = hf.AutoConfig.from_pretrained(name, **({"revision": commit} if commit else {}))
    except Exception as problem:  # of the network, of files
        raise unreadable(name, commit, problem) from None
    kind = vision_kind(config.model_type)
    if kind not in TOKEN_FAMILIES and kind not in map_kinds():
        raise ValueError(
            f"{name} holds a {kind}; give --model.pretrained a folder or a name of "
            f"{first_few(family_names(), 8)}, or a class of your own (MODULE:CLASS)"
        )
    return config


def _whole(model: Any, name: str, loading: dict[str, Any]) -> Any:
    """Read a model of which no weight is missing or of another shape: transformers leaves such ones
    random."""
    backbone, info = model.from_pretrained(
        name, **loading, output_loading_info=True, ignore_mismatched_sizes=True
    )
    if other := sorted(info["mismatched_keys"]):
        key, in_file, expected = other[0]
        more = f", as are {len(other) - 1} more" if len(other) > 1 else ""
        raise ValueError(
            f"{key} is {tuple(in_file)} in its file and {tuple(expected)} by its config.json{more}"
        )
    # norms of the maps are no part of most checkpoints, and do nothing until they are trained
    missing = [key for key in info["missing_keys"] if not key.startswith("hidden_states_norms.")]
    if missing:
        raise ValueError(f"its file has no {first_few(missing)}")
    return backbone


def _architecture(kind: str, config: Any) -> Architecture:
    """What rebuilds a model of transformers from its config."""
    if kind in TOKEN_FAMILIES:
        return {name: getattr(config, name) for name in CONFIG_FIELDS if hasattr(config, name)}
    return {"model_type": kind, "config": json.loads(config.to_json_string(use_diff=False))}


def _class_architecture(name: str, encoder: Any) -> Architecture:
    found = own_encoder.stats(encoder) or default_stats(own_encoder.KIND)
    return {
        "model_type": own_encoder.KIND,
        "class": name,
        "stats": _checked_stats(*found, type(encoder).__name__),
    }


def _stats(name: str, commit: str, kind: str) -> list[list[float]]:
    """Read what images are normalized with from preprocessor_config.json; else the family's."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    file = "preprocessor_config.json"
    try:
        path = Path(name, file) if not commit else hf_hub_download(name, file, revision=commit)
    except EntryNotFoundError:
        return _plain(default_stats(kind))
    except Exception as problem:  # of the network
        raise unreadable(name, commit, problem) from None
    file = f"{name}/{file}"
    family = f"mend it, or leave it out to take the mean and std of a {kind}"
    try:
        found = json.loads(Path(path).read_text())
    except FileNotFoundError:
        return _plain(default_stats(kind))
    except (OSError, ValueError) as problem:
        raise ValueError(f"{file} could not be read ({one_line(problem)}); {family}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds {shortened(repr(found))} and no fields; {family}")
    if found.get("do_normalize") is False:
        return [[0.0] * 3, [1.0] * 3]
    mean, std = found.get("image_mean"), found.get("image_std")
    if mean is None and std is None:
        return _plain(default_stats(kind))
    if mean is None or std is None:
        given, other = ("image_mean", "image_std") if std is None else ("image_std", "image_mean")
        raise ValueError(
            f"{file} has {given} {found[given]} and no {other}; add it, or take both out to take "
            f"those of a {kind}"
        )
    return _checked_stats(mean, std, file)


def _checked_stats(mean: Any, std: Any, what: str) -> list[list[float]]:
    """Three numbers each that pixels can be normalized with; ValueError names `what` has them."""
    try:
        found = [[float(x) for x in row] for row in (mean, std)]
    except (TypeError, ValueError):
        raise ValueError(
            f"mean and std of {what} are {shortened(repr(mean))} and {shortened(repr(std))}; give "
            f"three numbers of each, for red, green and blue"
        ) from None
    if [len(row) for row in found] != [3, 3]:
        raise ValueError(
            f"mean and std of {what} have {len(found[0])} and {len(found[1])} numbers; give three "
            f"of each, for red, green and blue"
        )
    if not all(map(math.isfinite, found[0] + found[1])) or min(found[1]) <= 0:
        raise ValueError(
            f"mean and std of {what} are {found[0]} and {found[1]}; give finite numbers, and for "
            f"std numbers above 0"
        )
    return found


def _plain(stats: tuple[tuple[float, ...], ...]) -> list[list[float]]:
    return [list(row) for row in stats]
