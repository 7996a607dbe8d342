"""A causal language model of transformers as dynamics over continuous latents.

A block is a context frame's tokens and one token of the actions after it, and the language model
reads block after block.  Its output at the action token is the change of the latents, so that
nothing sees what comes after it (World Models as sequence models: arXiv:2209.00588).

Letters: B clips, C context frames, K blocks of a training clip, P patches, D latent width, W width
of the backbone, A action numbers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from data.actions import ActionSpec
from data.ranges import Range
from models.dynamics import causal_backbone
from models.dynamics.dynamics import Memory
from models.dynamics.frameskip_dynamics import (
    FrameskipConfig,
    FrameskipDynamics,
    FrameskipMemory,
)
from models.external_weights import (
    asked_for,
    built,
    check_folder,
    check_hash,
    check_unnamed,
    leave_out,
    named_weights,
    part_of,
    state_hash,
    weights_hash,
)
from models.layers.action_block_embedding import ActionBlockEmbedding
from models.layers.float32_linear import Float32Linear
from models.layers.lora import (
    ADAPTER,
    adapted_layers,
    add_adapters,
    merged,
    with_base_names,
    without_base_names,
)
from models.layers.transformer import Cache, TransformerConfig
from models.tokenizers.backbones import is_folder, resolve_commit
from models.tokenizers.tokenizer import LatentSpec

RANDOM = "random"
_SAVE = "write it to a folder with its save_backbone and give --model.pretrained FOLDER"


@dataclass(frozen=True)
class LanguageModelConfig(FrameskipConfig):
    pretrained: str = RANDOM
    """A causal language model on the Hugging Face hub, or in a local folder; `random` is an
    untrained one of the family and the sizes below."""
    revision: str = ""
    """A branch, tag or commit on the hub; a checkpoint holds the commit."""
    sha256: str = ""
    """Hash of the weights that it began with, set from them where they are the hub's."""
    family: str = "llama"
    """Of `random`: llama, mistral, qwen3, smollm3 or gpt2; else set from the weights."""
    transformer: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(
            dim=192, num_layers=4, num_heads=6, mlp_dim=512, context_frames=3
        )
    )
    """Sizes of `random`, else set from the weights.  Its `context_frames` are `frameskip` frames
    apart."""
    tuning: Literal["full", "lora", "frozen"] = "full"
    """What is trained of the language model: all of it, adapters (LoRA), or nothing; projections
    and heads always are."""
    lora_rank: Annotated[int, Range(1, 1024)] = 8
    """Rank of the adapters."""
    lora_alpha: Annotated[float, Range(above=0, high=10**4)] = 16.0
    """Scale of the adapters, over their rank."""
    frame_tokens: Literal["frame", "patches"] = "frame"
    """One token for all vectors of a frame, or one for each."""
    architecture: str = ""
    """The language model's config as JSON, set from the weights; a checkpoint holds it."""

    def check(self) -> None:
        super().check()
        if not self.pretrained.strip():
            raise ValueError(
                "--model.pretrained is empty; give a local folder, a name on the hub, or random"
            )
        blocks = (self.clip_length - 1) // self.frameskip
        if self.transformer.context_frames > blocks:
            raise ValueError(
                f"--transformer.context-frames {self.transformer.context_frames} is more than a "
                f"clip of {self.clip_length} frames has, {blocks}; give a --clip-length of "
                f"{self.transformer.context_frames * self.frameskip + 1} or more"
            )

    @property
    def names_weights(self) -> bool:
        """Whether a checkpoint names the language model's weights instead of holding them."""
        return bool(self.sha256) and self.tuning != "full"


@dataclass
class Past:
    """The context frames before the last one, (B, j, P, D), the actions after each, (B, j,
    frameskip, A), and keys and values of both."""

    frames: Tensor
    actions: Tensor
    cache: Cache

    def select(self, index: Tensor) -> Past:
        return Past(self.frames[index], self.actions[index], self.cache.select(index))


class LanguageModelDynamics(FrameskipDynamics):
    """Predict the change of the latents with a language model, frame and action tokens in turn.

    A state holds the last C real context frames.  A rollout adds to them up to the K blocks that
    training has seen, so that positions are those of training; then it reads the last C anew.
    """

    config: LanguageModelConfig
    backbone: Any
    token_scale: Tensor

    def __init__(
        self, config: LanguageModelConfig, latents: LatentSpec, actions: ActionSpec
    ) -> None:
        self.max_blocks = (config.clip_length - 1) // config.frameskip
        self.frame_tokens = latents.num_patches if config.frame_tokens == "patches" else 1
        backbone, config, scale = _load(config, self.max_blocks * (self.frame_tokens + 1))
        super().__init__(config, latents, actions, config.transformer.context_frames)
        self.backbone = backbone
        dim = config.transformer.dim
        width = latents.dim * latents.num_patches // self.frame_tokens
        self.input_proj = nn.Linear(width, dim)
        self.pos_emb = nn.Parameter(0.02 * torch.randn(self.frame_tokens, dim))
        self.action_emb = ActionBlockEmbedding(actions, self.frameskip, dim)
        # tokens begin with the scale of those that the weights were trained on
        self.register_buffer("token_scale", torch.tensor(scale))
        self.delta_head = nn.Linear(dim, latents.num_patches * latents.dim)
        nn.init.zeros_(self.delta_head.weight)  # the first prediction is no change
        nn.init.zeros_(self.delta_head.bias)
        self.add_heads(dim)
        if config.tuning == "lora":
            add_adapters(backbone, config.lora_rank, config.lora_alpha)
        elif config.tuning == "frozen":
            backbone.requires_grad_(False)
        if config.transformer.activation_checkpointing:
            backbone.activation_checkpointing_enable({"use_reentrant": False})
        self.untrained = config.pretrained == RANDOM and config.tuning != "full"
        if config.names_weights:
            leave_out(self, "backbone", but=ADAPTER)

    def add_heads(self, width: int) -> None:
        super().add_heads(width)
        if self.config.rewards:  # a reward has more digits than 16 bits
            self.reward_head.out = Float32Linear(self.reward_head.out)  # type: ignore[assignment]
            self.continue_head = Float32Linear(nn.Linear(width, 1))

    def train(self, mode: bool = True) -> LanguageModelDynamics:
        super().train(mode)
        if self.config.tuning != "full":
            self.backbone.eval()  # it may have dropout
            for layer in causal_backbone.decoder_layers(self.backbone):
                layer.training = mode  # read by activation checkpointing
        return self

    def fsdp_units(self) -> list[nn.Module]:
        """The language model's own layers."""
        return causal_backbone.decoder_layers(self.backbone)

    def convert_weights(
        self, state: dict[str, Tensor], config: dict[str, Any]
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Take a language model with or without adapters; those that this one has not are merged
        into the weights."""
        if "lora_rank" not in config:  # of another method
            return state, []
        self._check_source(state, config)
        own, lines = self.config, []
        layers = adapted_layers(self.backbone)
        keys = ("tuning", "lora_rank", "lora_alpha")
        adapters = config["tuning"] == "lora"
        if adapters and any(config[key] != getattr(own, key) for key in keys):
            rank, alpha = config["lora_rank"], config["lora_alpha"]
            if own.names_weights:
                raise ValueError(
                    f"its adapters have rank {rank} and alpha {alpha:g}, and with --model.tuning "
                    f"{own.tuning} a checkpoint only names what they adapt; give --model.tuning "
                    f"lora --model.lora-rank {rank} --model.lora-alpha {alpha:g}, or {_SAVE}"
                )
            if config["sha256"]:  # it has adapters of weights that are here
                own_state = self.state_dict()
                state = {k: own_state[k] for k in own_state if k.startswith("backbone.")} | state
            with torch.device("meta"):
                source = nn.ModuleDict({"backbone": _build(config["architecture"])})
            state = merged(state, alpha / rank, source)
            lines = [f"adapters of rank {rank} are merged into the weights that they adapt"]
        state = with_base_names(state, [f"backbone.{path}" for path in layers])
        self.untrained &= not any(
            name in state and value.shape == state[name].shape
            for name, value in self.state_dict().items()
            if name.startswith("backbone.") and ADAPTER not in name
        )
        return state, lines

    def _check_source(self, state: dict[str, Tensor], config: dict[str, Any]) -> None:
        """ValueError where this model would read with another language model than the run of
        `config` did."""
        own = self.config
        named = config["sha256"] and config["tuning"] != "full"
        if named and config["sha256"] != own.sha256:
            raise ValueError(
                f"it only names its language model, {config['pretrained']} at "
                f"{config['revision'][:8]}, which --model.pretrained {own.pretrained} is not; "
                f"give --model.pretrained {config['pretrained']} --model.revision "
                f"{config['revision']}, or {_SAVE}"
            )
        held = _without_adapters(part_of(state, "backbone"))
        stays = own.tuning != "full" and own.pretrained != RANDOM
        if own.names_weights:
            is_other = not named
        else:
            is_other = stays and state_hash(held) != state_hash(
                _without_adapters(self.backbone.state_dict())
            )
        if is_other:
            raise ValueError(
                f"it holds a language model, and with --model.tuning {own.tuning} that of "
                f"--model.pretrained {own.pretrained} stays as it is; {_SAVE}"
            )

    def remarks(self) -> list[str]:
        if not self.untrained:
            return []
        return [
            f"language model: --model.tuning {self.config.tuning} leaves an untrained one as it "
            f"is; --model.pretrained or --train.init-from gives a trained one"
        ]

    def save_backbone(self, folder: Path) -> None:
        """Write the language model to a folder that `--model.pretrained` and transformers read."""
        causal_backbone.save(self.backbone, folder, float(self.token_scale))

    def predict(
        self, context: Tensor, actions: Tensor, num_actions: Tensor
    ) -> tuple[Tensor, Tensor]:
        tokens = self._tokens(context, actions, num_actions)
        out, _ = causal_backbone.run(self.backbone, tokens)
        out = out[:, self.frame_tokens :: self.frame_tokens + 1]
        return context + self._delta(out).to(context.dtype), out[:, :, None]

    def predict_next(
        self, context_frame: Tensor, actions: Tensor, num_actions: Tensor, past: Memory | None
    ) -> tuple[Tensor, Tensor, Past]:
        assert past is None or isinstance(past, Past)
        frames, blocks, counts, cache = context_frame[:, None], actions, num_actions, None
        if past is not None:
            first = 0
            if past.frames.shape[1] < self.max_blocks:
                cache = past.cache
            else:  # no position is beyond those of training: the last blocks are read anew
                first = past.frames.shape[1] + 1 - self.context_frames
            frames = torch.cat([past.frames[:, first:], frames], dim=1)
            blocks = torch.cat([past.actions[:, first:], blocks], dim=1)
            counts = nn.functional.pad(num_actions, (frames.shape[1] - 1, 0), value=self.frameskip)
        new = slice(-1, None) if cache is not None else slice(None)
        tokens = self._tokens(frames[:, new], blocks[:, new], counts[:, new])
        out, cache = causal_backbone.run(self.backbone, tokens, cache, keep=True)
        assert cache is not None
        out = out[:, -1:]
        predicted = context_frame + self._delta(out)[:, 0].to(context_frame.dtype)
        return out, predicted, Past(frames, blocks, cache)

    def read_past(self, context: Tensor, actions: Tensor, num_actions: Tensor) -> Past:
        tokens = self._tokens(context, actions, num_actions)
        cache = causal_backbone.run(self.backbone, tokens, keep=True)[1]
        assert cache is not None
        return Past(context, actions, cache)

    def extend_past(self, memory: FrameskipMemory, actions: Tensor) -> Past | None:
        """The last C - 1 context frames, which are all that a state keeps of real ones."""
        frames, blocks = memory.context_frame[:, None], actions[:, None]
        if isinstance(memory.past, Past):
            frames = torch.cat([memory.past.frames, frames], dim=1)
            blocks = torch.cat([memory.past.actions, blocks], dim=1)
        first = max(0, frames.shape[1] + 1 - self.context_frames)
        frames, blocks = frames[:, first:], blocks[:, first:]
        if not frames.shape[1]:
            return None
        counts = self.counts[self.frameskip].expand(frames.shape[:2])
        return self.read_past(frames, blocks, counts)

    def _tokens(self, context: Tensor, actions: Tensor, num_actions: Tensor) -> Tensor:
        """Context frames (B, C, P, D), (B, C, frameskip, A), (B, C) -> (B, C tokens, W)."""
        frames = context.reshape(*context.shape[:2], self.frame_tokens, -1)
        frames = self.input_proj(frames) + self.pos_emb
        action = self.action_emb(actions, num_actions)[:, :, None]
        tokens = torch.cat([frames, action.to(frames.dtype)], dim=2) * self.token_scale
        return rearrange(tokens, "B C S W -> B (C S) W")

    def _delta(self, out: Tensor) -> Tensor:
        """(B, C, W) -> (B, C, P, D)."""
        return self.delta_head(out).unflatten(-1, (self.latents.num_patches, self.latents.dim))


def _without_adapters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of a language model before it was adapted."""
    return without_base_names({name: v for name, v in state.items() if ADAPTER not in name})


def _build(architecture: str) -> Any:
    return built(causal_backbone.build, architecture)


def _load(config: LanguageModelConfig, num_tokens: int) -> tuple[Any, LanguageModelConfig, float]:
    """Load the language model: it, the config with what its weights say, and the scale of its
    tokens.

    From the hub weights are named by their commit and hash.  Those of a folder, and random ones,
    are in the checkpoint: nobody else has them.
    """
    name, scale = config.pretrained, 1.0
    if config.architecture:  # of a checkpoint, which holds the scale
        backbone = _build(config.architecture)
        if config.names_weights and not next(backbone.parameters()).is_meta:
            named = named_weights(
                causal_backbone.read, config.pretrained, config.revision, config.sha256
            )
            backbone = causal_backbone.without_word_table(named)
    elif name == RANDOM:
        check_unnamed(name, config.revision, config.sha256)
        backbone = causal_backbone.make_random(config.family, config.transformer, num_tokens)
    else:
        commit = ""
        if is_folder(name):
            check_folder(name, config.revision)
        else:
            commit = asked_for(RANDOM, resolve_commit, name, config.revision)
        backbone = asked_for(RANDOM, causal_backbone.read, name, commit)
        found = weights_hash(backbone)
        check_hash(found, config.sha256 or found, name)
        causal_backbone.check_usable(backbone, name, num_tokens)
        config = replace(config, revision=commit, sha256=found if commit else "")
        scale = causal_backbone.word_scale(backbone) or 1.0
        causal_backbone.without_word_table(backbone)
    sizes = causal_backbone.sizes(backbone)
    config = replace(
        config,
        family=backbone.config.model_type,
        transformer=replace(config.transformer, **sizes),
        architecture=config.architecture
        or json.dumps(causal_backbone.plain_architecture(backbone)),
    )
    return backbone, config, scale
