"""The methods by name: from a config, or its plain values in a checkpoint, to the module.

A method is imported when it is asked for, so that one does not load the others.  Its class takes
the config first, then, by name, what it wants to know of the data: `latents`, `actions`,
`image_size`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import torch

from data.actions import ActionSpec
from models.config import MethodConfig, from_plain, to_plain
from models.tokenizers.tokenizer import LatentSpec, Tokenizer

if TYPE_CHECKING:
    from models.controllers.controller import TrainedController
    from models.dynamics.dynamics import Dynamics

M = TypeVar("M")
SMALL = 2**30  # bytes of weights that every machine holds


@dataclass(frozen=True)
class Entry(Generic[M]):
    """Where a method is defined: the names of its module, of its config and of its class."""

    module: str
    config: str
    method: str

    def __call__(self) -> tuple[type[MethodConfig], type[M]]:
        """Import it."""
        module = import_module(self.module)
        return getattr(module, self.config), getattr(module, self.method)


@dataclass(frozen=True)
class DataSpec:
    """What a method may know of the data before it sees any."""

    image_size: tuple[int, int]
    actions: ActionSpec
    latents: LatentSpec | None = None
    """What the tokenizer makes; None where there is none."""


# A new method is one line here.
TOKENIZERS: dict[str, Entry[Tokenizer]] = {
    "vqvae": Entry("models.tokenizers.vqvae", "VqVaeConfig", "VqVae"),
    "keypoints": Entry("models.tokenizers.keypoints", "KeypointsConfig", "Keypoints"),
    "frozen_encoder": Entry(
        "models.tokenizers.frozen_encoder", "FrozenEncoderConfig", "FrozenEncoder"
    ),
    "image_vae": Entry("models.tokenizers.image_vae", "ImageVaeConfig", "ImageVae"),
    "jepa": Entry("models.tokenizers.jepa", "JepaConfig", "Jepa"),
    "iwm": Entry("models.tokenizers.iwm", "IwmConfig", "Iwm"),
    "iwm_actions": Entry("models.tokenizers.iwm_actions", "IwmActionsConfig", "IwmActions"),
    "st_vivit": Entry("models.tokenizers.st_vivit", "StVivitConfig", "StVivit"),
}
DYNAMICS: dict[str, Entry[Dynamics]] = {
    "llama": Entry("models.dynamics.llama", "LlamaConfig", "LlamaDynamics"),
    "predictor": Entry("models.dynamics.predictor", "PredictorConfig", "Predictor"),
    "iwm_dynamics": Entry("models.dynamics.iwm_dynamics", "IwmDynamicsConfig", "IwmDynamics"),
    "rssm": Entry("models.dynamics.rssm", "RssmConfig", "Rssm"),
    "maskgit": Entry("models.dynamics.maskgit", "MaskGitConfig", "MaskGit"),
    "genie": Entry("models.dynamics.genie", "GenieConfig", "Genie"),
    "rssm_latents": Entry("models.dynamics.rssm_latents", "RssmLatentsConfig", "RssmLatents"),
    "language_model": Entry(
        "models.dynamics.language_model", "LanguageModelConfig", "LanguageModelDynamics"
    ),
}
CONTROLLERS: dict[str, Entry[TrainedController]] = {
    "policy": Entry("models.controllers.policy", "PolicyConfig", "LatentPolicy"),
    "actor_critic": Entry("models.controllers.actor_critic", "ActorCriticConfig", "ActorCritic"),
    "dreamer": Entry("models.controllers.dreamer", "DreamerConfig", "Dreamer"),
    "goal_policy": Entry("models.controllers.goal_policy", "GoalPolicyConfig", "GoalPolicy"),
    "discrete_goal_policy": Entry(
        "models.controllers.discrete_goal_policy", "DiscreteGoalPolicyConfig", "DiscreteGoalPolicy"
    ),
    "flow_policy": Entry("models.controllers.flow_policy", "FlowPolicyConfig", "FlowPolicy"),
    "distilled_policy": Entry(
        "models.controllers.distilled_policy", "DistilledPolicyConfig", "DistilledPolicy"
    ),
    "canonical_policy": Entry(
        "models.controllers.canonical_policy", "CanonicalPolicyConfig", "CanonicalPolicy"
    ),
    "task_cost": Entry("models.controllers.task_cost", "TaskCostConfig", "TaskCost"),
}


def default_config(name: str) -> Any:
    """The config of a method as it is when nothing is changed; ValueError for an unknown name."""
    methods = TOKENIZERS | DYNAMICS | CONTROLLERS
    if name not in methods:
        raise ValueError(f"unknown method {name!r}; there are: {', '.join(methods)}")
    return methods[name]()[0]()


def describe(config: MethodConfig) -> dict[str, Any]:
    """Give a config's plain values, and the name of its kind."""
    methods = TOKENIZERS | DYNAMICS | CONTROLLERS
    file = type(config).__module__.rpartition(".")[2]
    for name in sorted(methods, key=lambda name: name != file):  # no other need be imported
        if methods[name]()[0] is type(config):
            return {"kind": name} | to_plain(config)
    raise ValueError(f"{type(config).__name__} is the config of no method in models/registry.py")


def dynamics_class(config: MethodConfig) -> type[Dynamics]:
    """The class that a config describes: what it needs is known before it is built."""
    kind = describe(config)["kind"]
    if kind not in DYNAMICS:
        raise ValueError(f"{kind} is not a dynamics model; there are: {', '.join(DYNAMICS)}")
    return DYNAMICS[kind]()[1]


def reads_latents(config: dict[str, Any]) -> bool:
    """Whether a dynamics model, given by its plain values, is trained on a tokenizer's latents."""
    kind = config["kind"]
    if kind not in DYNAMICS:
        raise ValueError(f"unknown kind of dynamics {kind!r}; there are: {', '.join(DYNAMICS)}")
    return "latents" in DYNAMICS[kind]()[1].needs


def build_tokenizer(config: MethodConfig | dict[str, Any], data: DataSpec) -> Tokenizer:
    """config: a config, or plain values."""
    return _build(TOKENIZERS, "tokenizer", config, data)


def build_dynamics(config: MethodConfig | dict[str, Any], data: DataSpec) -> Dynamics:
    return _build(DYNAMICS, "dynamics", config, data)


def build_controller(config: MethodConfig | dict[str, Any], data: DataSpec) -> TrainedController:
    return _build(CONTROLLERS, "controller", config, data)


def _build(
    methods: dict[str, Entry[M]],
    role: str,
    config: MethodConfig | dict[str, Any],
    data: DataSpec,
) -> M:
    stored = isinstance(config, dict)  # of a checkpoint, which holds weights of a known size
    if isinstance(config, dict):
        kind = config.get("kind")
        if kind not in methods:
            raise ValueError(f"unknown kind of {role} {kind!r}; there are: {', '.join(methods)}")
        made, method = methods[kind]()
        values = {k: v for k, v in config.items() if k != "kind"}
        config = cast(MethodConfig, from_plain(made, values))
    else:
        kind = describe(config)["kind"]
        if kind not in methods:
            raise ValueError(f"{kind} is not a {role}; there are: {', '.join(methods)}")
        method = methods[kind]()[1]
    wanted = inspect.signature(method).parameters
    known = {f.name: getattr(data, f.name) for f in fields(data) if f.name in wanted}
    make = partial(method, config, **known)  # type: ignore[call-arg]
    # weights that somebody gives are small enough
    if not stored and getattr(config, "pretrained", "") in ("", "random"):
        _check_memory(kind, make)
    return make()


def _check_memory(kind: str, make: Callable[[], Any]) -> None:
    """Raise ValueError where the weights are larger than this machine's memory, before any is
    taken."""
    try:
        with torch.device("meta"):
            model = make()
    except (RuntimeError, NotImplementedError):  # it computes with values while it is built
        return
    needed = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    if needed < SMALL:
        return
    from data.io.memory import as_size, memory_bytes

    if needed > memory_bytes():
        raise ValueError(
            f"the weights of this {kind} would take {as_size(needed)}, and there are "
            f"{as_size(memory_bytes())} of memory; make the model smaller (--model.* in --help)"
        )
