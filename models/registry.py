"""From a config, or its plain values in a checkpoint, to the module that it describes."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass
from typing import Any, TypeVar, get_origin, get_type_hints

from torch import nn

from data.actions import ActionSpec
from models.controllers.actor_critic import ActorCritic, ActorCriticConfig
from models.controllers.discrete_goal_policy import DiscreteGoalPolicy, DiscreteGoalPolicyConfig
from models.controllers.goal_policy import GoalPolicy, GoalPolicyConfig
from models.controllers.policy import LatentPolicy, PolicyConfig
from models.dynamics.llama import LlamaConfig, LlamaDynamics
from models.dynamics.predictor import Predictor, PredictorConfig
from models.tokenizers.frozen_encoder import FrozenEncoder, FrozenEncoderConfig
from models.tokenizers.jepa import Jepa, JepaConfig
from models.tokenizers.keypoints import Keypoints, KeypointsConfig
from models.tokenizers.tokenizer import LatentSpec
from models.tokenizers.vqvae import VqVae, VqVaeConfig

C = TypeVar("C")

# A new method is one line here. Most tokenizers know nothing of actions.
TOKENIZERS: dict[str, tuple[type, Callable[..., nn.Module]]] = {
    "vqvae": (VqVaeConfig, lambda config, actions: VqVae(config)),
    "keypoints": (KeypointsConfig, lambda config, actions: Keypoints(config)),
    "frozen": (FrozenEncoderConfig, lambda config, actions: FrozenEncoder(config)),
    "latent": (JepaConfig, Jepa),
}
DYNAMICS: dict[str, tuple[type, Callable[..., nn.Module]]] = {
    "llama": (LlamaConfig, LlamaDynamics),
    "predictor": (PredictorConfig, Predictor),
}
CONTROLLERS: dict[str, tuple[type, Callable[..., nn.Module]]] = {
    "policy": (PolicyConfig, LatentPolicy),
    "actor_critic": (ActorCriticConfig, ActorCritic),
    "goal_policy": (GoalPolicyConfig, GoalPolicy),
    "goal_codes": (DiscreteGoalPolicyConfig, DiscreteGoalPolicy),
}
_ALL = TOKENIZERS | DYNAMICS | CONTROLLERS


def describe(config: Any) -> dict[str, Any]:
    """Give a config's plain values, and the name of its kind."""
    kind = next(name for name, (made, _) in _ALL.items() if made is type(config))
    return {"kind": kind} | _to_plain(asdict(config))


def build_tokenizer(config: Any, actions: ActionSpec) -> Any:
    """config: a config, or plain values."""
    return _build(TOKENIZERS, "tokenizer", config, actions)


def build_dynamics(config: Any, latents: LatentSpec, actions: ActionSpec) -> Any:
    return _build(DYNAMICS, "dynamics", config, latents, actions)


def build_controller(config: Any, latents: LatentSpec, actions: ActionSpec) -> Any:
    return _build(CONTROLLERS, "controller", config, latents, actions)


def _build(kinds: dict[str, tuple[type, Any]], role: str, config: Any, *args: Any) -> Any:
    if isinstance(config, dict):
        kind = config.get("kind")
        if kind not in kinds:
            raise ValueError(f"unknown kind of {role} {kind!r}; there are: {', '.join(kinds)}")
        values = {k: v for k, v in config.items() if k != "kind"}
        config = _from_plain(kinds[kind][0], values)
    builder = next(build for made, build in kinds.values() if made is type(config))
    return builder(config, *args)


def _to_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _to_plain(v) for k, v in value.items()}
    return [_to_plain(v) for v in value] if isinstance(value, tuple | list) else value


def _from_plain(cls: type[C], values: dict[str, Any]) -> C:
    """Undo `asdict`: nested dataclasses and tuples come back as they were."""
    hints = get_type_hints(cls)
    kwargs = {}
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name not in values:
            continue  # an older checkpoint: the default is what it meant
        value, hint = values[field.name], hints[field.name]
        if is_dataclass(hint) and isinstance(value, dict):
            value = _from_plain(hint, value)  # type: ignore[arg-type]
        elif isinstance(value, list) and get_origin(hint) in (tuple, types.UnionType):
            value = tuple(value)
        kwargs[field.name] = value
    return cls(**kwargs)
