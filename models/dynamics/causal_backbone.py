"""Causal language models of transformers as a stack of layers over vectors: how each is read, made
and run.

A backbone reads vectors (`inputs_embeds`), so that its table of words is not kept.

Letters: B clips, S tokens, W width of the backbone, H heads of keys, E their width.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.io.messages import first_few, one_line
from models.layers.transformer import Cache, TransformerConfig
from models.tokenizers.backbones import unreadable

Architecture = dict[str, Any]
"""A config of transformers as plain values; `model_type` names the family."""

FAMILIES = ("llama", "mistral", "qwen3", "smollm3", "gpt2")
"""Families of which a backbone with random weights is made; others are read with their weights."""


def make_random(family: str, config: TransformerConfig, num_positions: int) -> Any:
    """Make an untrained backbone of a family, for up to `num_positions` tokens."""
    if family not in FAMILIES:
        told = f"{family} is not known" if family.strip() else "is empty"
        raise ValueError(
            f"--model.family {told}; give one of {', '.join(FAMILIES)}, or "
            f"--model.pretrained with weights of it"
        )
    import transformers as hf

    without_words = {"vocab_size": 1, "bos_token_id": None, "eos_token_id": None}
    if family == "gpt2":
        sizes: dict[str, Any] = {
            "n_embd": config.dim,
            "n_layer": config.num_layers,
            "n_head": config.num_heads,
            "n_inner": config.mlp_dim,
            "n_positions": num_positions,
            "resid_pdrop": config.dropout,
            "embd_pdrop": config.dropout,
            "attn_pdrop": config.dropout,
        }
    else:
        sizes = {
            "hidden_size": config.dim,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "num_key_value_heads": config.num_heads,
            "head_dim": config.dim // config.num_heads,  # of qwen3 it is 128 by default
            "intermediate_size": config.mlp_dim,
            "max_position_embeddings": max(num_positions, 2048),  # angles, which have no weights
            "attention_dropout": config.dropout,
            "pad_token_id": None,
        }
    made = hf.AutoConfig.for_model(family, **without_words, **sizes)
    return without_word_table(hf.AutoModel.from_config(made, dtype=torch.float32))


def build(architecture: Architecture) -> Any:
    """Build a backbone with random weights, for those of a checkpoint."""
    import transformers as hf

    config = hf.AutoConfig.for_model(**architecture)
    return without_word_table(hf.AutoModel.from_config(config, dtype=torch.float32))


def read(name: str, commit: str) -> Any:
    """Read a backbone with its weights and its table of words; `commit` is empty for a folder.

    ExternalWeightsError where there is none, or some of its weights are missing.
    """
    import transformers as hf  # takes seconds to import

    where = {"revision": commit} if commit else {}
    hf.utils.logging.set_verbosity_error()  # a report of each reading; what matters is raised
    hf.utils.logging.disable_progress_bar()
    try:
        # float32: by default weights stay what they were saved as, half precision also on a CPU
        backbone, info = hf.AutoModel.from_pretrained(
            name, **where, dtype=torch.float32, output_loading_info=True
        )
        words = {id(p) for p in backbone.get_input_embeddings().parameters()}
        unused = {key for key, p in backbone.named_parameters() if id(p) in words}
        missing = [key for key in info["missing_keys"] if key not in unused]
        if missing or info["mismatched_keys"]:  # transformers leaves such ones random
            raise ValueError(f"its file has no {first_few(missing or info['mismatched_keys'])}")
        _check_layers(backbone.config, info["unexpected_keys"])
    except Exception as problem:  # of the network, of files, of a library that a family needs
        raise unreadable(name, commit, problem) from None
    return backbone


def _check_layers(config: Any, unused: Iterable[str]) -> None:
    """Raise ValueError where the file has more layers than the config, which would be dropped."""
    given = getattr(config, "num_hidden_layers", None)
    numbers = {int(n[1]): key for key in sorted(unused) if (n := re.search(r"\.(\d+)\.", key))}
    if given is not None and numbers and max(numbers) >= given:
        raise ValueError(
            f"its config has {given} layers, and its file {max(numbers) + 1}, such as "
            f"{numbers[max(numbers)]}; set the number in config.json"
        )


def plain_architecture(backbone: Any) -> Architecture:
    return json.loads(backbone.config.to_json_string(use_diff=False))


def sizes(backbone: Any) -> dict[str, Any]:
    """The sizes of a backbone, as fields of a TransformerConfig."""
    config = backbone.config
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    dropout = getattr(config, "resid_pdrop", None) or getattr(config, "attention_dropout", None)
    return {
        "dim": config.hidden_size,
        "num_layers": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_dim": inner or 4 * config.hidden_size,
        "qk_norm": any(name.endswith("q_norm.weight") for name, _ in backbone.named_parameters()),
        "dropout": float(dropout or 0),
    }


def without_word_table(backbone: Any) -> Any:
    """Leave out the table of words, which vectors do not pass: of a small model a fifth or more."""
    backbone.set_input_embeddings(nn.Identity())
    return backbone


def word_scale(backbone: Any) -> float:
    """Root mean square of the table of words: the scale of what the first layer was trained on."""
    weight = backbone.get_input_embeddings().weight.detach()
    return float(weight.float().square().mean().sqrt())


def run(
    backbone: Any, tokens: Tensor, past: Cache | None = None, keep: bool = False
) -> tuple[Tensor, Cache | None]:
    """Outputs after the last norm, (B, S, W), for tokens (B, S, W) that follow the past; and keys
    and values of all, (B, H, S, E) each, to `keep`.

    The past is not changed: transformers' cache grows in place, so each call has its own.
    """
    import transformers as hf

    cache = None
    if past is not None:
        cache = hf.DynamicCache(zip(past.keys, past.values, strict=True))
    elif keep:
        cache = hf.DynamicCache()
    # float32: the residual stream has the dtype of what comes in
    out = backbone(inputs_embeds=tokens.float(), past_key_values=cache, use_cache=cache is not None)
    kept = None
    if keep and cache is not None:
        keys, values = zip(*((key, value) for key, value, *_ in cache), strict=True)
        kept = Cache(list(keys), list(values))
    return out.last_hidden_state, kept


def check_usable(backbone: Any, name: str, num_tokens: int) -> None:
    """Raise ValueError unless it is finite and causal, keeps keys and values of each token, and has
    `num_tokens` positions."""
    kind = backbone.config.model_type
    most = getattr(backbone.config, "max_position_embeddings", None)
    if most is not None and num_tokens > most:
        raise ValueError(
            f"a clip is {num_tokens} tokens, and {name} has {most} positions; give a shorter "
            f"--model.clip-length, or --model.frame-tokens frame"
        )
    random = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, 4, backbone.config.hidden_size, generator=random)
    other = torch.cat([tokens[:, :3], -tokens[:, 3:]], dim=1)
    advice = f"give --model.pretrained a causal language model, such as {', '.join(FAMILIES)}"
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            whole, changed = run(backbone, tokens)[0], run(backbone, other)[0]
            past = run(backbone, tokens[:, :2], keep=True)[1]
            rest = run(backbone, tokens[:, 2:], past)[0]
    except Exception as problem:  # a model of images, of states without keys, of two sequences
        raise ValueError(
            f"{name} is a {kind}, which cannot read vectors one by one ({one_line(problem)}); "
            f"{advice}"
        ) from None
    finally:
        backbone.train(was_training)
    if not (whole.isfinite().all() and changed.isfinite().all()):
        bad = [key for key, weight in backbone.named_parameters() if not weight.isfinite().all()]
        where = f" (in its weights: {first_few(bad)})" if bad else ""
        raise ValueError(
            f"{name} is a {kind} that gives no finite numbers{where}; give --model.pretrained "
            f"other weights"
        )
    if not torch.allclose(whole[:, :3], changed[:, :3], atol=1e-4):
        raise ValueError(
            f"{name} is a {kind}, whose output at a token depends on the tokens after it; {advice}"
        )
    if not torch.allclose(whole[:, 2:], rest, atol=1e-3):
        raise ValueError(
            f"{name} is a {kind}, which from its cache gives other outputs than without; {advice}"
        )


def decoder_layers(backbone: Any) -> list[nn.Module]:
    """Its decoder layers, in order, by the class that transformers keeps in one piece."""
    classes = set(backbone._no_split_modules or ())
    return [module for module in backbone.modules() if type(module).__name__ in classes]


def save(backbone: Any, folder: Path, scale: float) -> None:
    """Write a folder that `--model.pretrained` and transformers' AutoModel read; adapters are
    merged into the weights.  scale: that of the vectors that it reads (`word_scale`)."""
    import transformers as hf

    backbone = copy.deepcopy(backbone)
    for path, module in list(backbone.named_modules()):
        if hasattr(module, "lora_A"):
            module.merge()  # type: ignore[operator]
            parent = backbone.get_submodule(path.rpartition(".")[0])
            setattr(parent, path.rpartition(".")[2], module.base_layer)
    width = backbone.config.hidden_size
    table = nn.Embedding(backbone.config.vocab_size, width)
    nn.init.constant_(table.weight, scale)  # transformers looks for one
    backbone.set_input_embeddings(table)
    hf.utils.logging.disable_progress_bar()
    backbone.save_pretrained(folder)
