"""The parts of a world by name, to look at, to swap and to freeze.

Letters: B frames or states, N latents of a state, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from data.batch import Batch
from data.io.messages import one_line
from models.dynamics.dynamics import Dynamics
from models.method import Losses
from models.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from models.world import World

NAMES = ("encoder", "dynamics", "decoder")
STALE = {
    "encoder": (
        "dynamics and decoder, which have learned the latents of the encoder before",
        "controllers", "RUN/latents and RUN/states, the caches",
    ),
    "dynamics": ("controllers, which have learned the states of the dynamics before", "RUN/states"),
    "decoder": ("figures and videos of its frames; nothing that was trained",),
}  # fmt: skip
"""What has to be made again once a part is another one."""


class Part(nn.Module):
    """Some attributes of a model, under their names, and the function that reads them."""

    def __init__(self, owner: nn.Module, names: list[str], call: Callable[..., Any]) -> None:
        super().__init__()
        for name in names:
            value = getattr(owner, name)
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)
        self.owner = (owner,)  # in a tuple: its other weights are not the part's
        self.call = call

    def forward(self, *inputs: Any) -> Any:
        """What the part computes, by the same arguments."""
        return self.call(*inputs)


class Recombined(Tokenizer):
    """A tokenizer of which encoder or decoder is another module."""

    def __init__(self, base: Tokenizer, given: dict[str, nn.Module]) -> None:
        super().__init__()
        self.base, self.given = base, nn.ModuleDict(given)
        self.latents, self.image_size = base.latents, base.image_size
        self.temporal_context = base.temporal_context
        self.has_decoder = "decoder" in given or base.has_decoder  # type: ignore[misc]

    @property
    def codebooks(self) -> Tensor:
        """Those of the encoder, where it has any."""
        encoder = dict(self.given.items()).get("encoder")
        source: Any = encoder.owner[0] if isinstance(encoder, Part) else self.base
        return source.codebooks

    def encode(self, frames: Tensor) -> Tensor:
        return self.encode_clip(frames[:, None])[:, 0]

    def decode(self, latents: Tensor) -> Tensor:
        return self.decode_clip(latents[:, None])[:, 0]

    def encode_clip(self, frames: Tensor) -> Tensor:
        return self._framewise("encoder", frames, self.base.encode_clip)

    def decode_clip(self, latents: Tensor) -> Tensor:
        return self._framewise("decoder", latents, self.base.decode_clip)

    def loss(self, batch: Batch) -> Losses:
        raise ValueError("a world's swapped parts are not trained together; train one of them")

    def _framewise(self, name: str, x: Tensor, otherwise: Callable[[Tensor], Tensor]) -> Tensor:
        if name not in self.given:
            return otherwise(x)
        return self.given[name](x.flatten(0, 1)).unflatten(0, x.shape[:2])


def get_part(world: World, name: str) -> nn.Module:
    """One of NAMES as a module that shares the world's weights."""
    _check_name(world, name)
    tokenizer = world.tokenizer
    if isinstance(tokenizer, Recombined):
        if name in tokenizer.given:
            return tokenizer.given[name]
        tokenizer = tokenizer.base
    joint = isinstance(tokenizer, Dynamics)  # one model that is both
    if name == "dynamics" and world.dynamics is not tokenizer:
        return world.dynamics
    all_names = [n for n, _ in _attributes(tokenizer)]
    decoder = [n for n in all_names if n in tokenizer.decoder_parts]
    encoder = [
        n for n in all_names
        if (n in tokenizer.encoder_parts if joint else n not in decoder)
    ]  # fmt: skip
    if name == "dynamics":
        rest = [n for n in all_names if n not in encoder + decoder]
        return Part(tokenizer, rest, world.dynamics.step)
    if name == "encoder":
        return Part(tokenizer, encoder, tokenizer.encode)
    return Part(tokenizer, decoder, tokenizer.decode)


def set_part(world: World, name: str, module: nn.Module) -> tuple[str, ...]:
    """Swap a part of `world`; give what is stale afterwards.  ValueError where it does not fit."""
    _check_name(world, name, absent_decoder=True)
    before = world.tokenizer, world.dynamics
    expected = _shapes(world)
    module = module.to(world.device).eval()
    try:
        if name == "dynamics":
            world.dynamics = _as_dynamics(world, module)
        else:
            base, given = world.tokenizer, {}
            if isinstance(base, Recombined):
                base, given = base.base, dict(base.given.items())
            world.tokenizer = Recombined(base, given | {name: module})
        found = _shapes(world)
        for key, shape in expected.items():
            if found[key] != shape:
                raise ValueError(f"it gives {key} of {found[key]}, and the world has {shape}")
    except Exception as problem:  # a module may do anything
        world.tokenizer, world.dynamics = before
        raise ValueError(
            f"this {type(module).__name__} cannot be the {name} of this world: "
            f"{one_line(problem)}; give one of the same shapes"
        ) from problem
    world.code_vectors.load_codebook(world.tokenizer)
    world.context = world.dynamics.context + world.temporal_context - 1
    world.has_rewards, world.has_decoder = world.dynamics.has_rewards, world.tokenizer.has_decoder
    compiled = world.__dict__.pop("_draw", None) is not None
    return STALE[name] + (("compiled steps: call compile_steps again",) if compiled else ())


def require_grad(world: World, name: str, learns: bool) -> int:
    """Let the weights of a part have a gradient, or not; return how many tensors they are."""
    weights = list(get_part(world, name).parameters())
    for weight in weights:
        weight.requires_grad_(learns)
    return len(weights)


def _attributes(module: nn.Module) -> list[tuple[str, Any]]:
    return [
        *module.named_children(),
        *module.named_parameters(recurse=False),
        *module.named_buffers(recurse=False),
    ]


def _as_dynamics(world: World, module: nn.Module) -> Dynamics:
    """The dynamics model that `module` is, or is a part of."""
    found = module.owner[0] if isinstance(module, Part) else module
    if not isinstance(found, Dynamics):
        raise ValueError("it is no Dynamics (models/dynamics/dynamics.py)")
    for key in ("latents", "state_spec"):
        theirs, ours = getattr(found, key), getattr(world, key)
        if theirs != ours:
            raise ValueError(f"its {key} are {theirs}, and the world's {ours}")
    world.actions.check_same(found.actions, "the world", "the dynamics")
    return found


@torch.no_grad()
def _shapes(world: World) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shapes and kinds of what goes from part to part, of one frame and a step."""
    frames = torch.zeros(1, 1, 3, *world.image_size, dtype=torch.uint8, device=world.device)
    state = world.reset(frames, world.actions.empty(1, 0))
    after = world.step(state, world.actions.empty(1, 1)[:, 0])
    found = {"latents": world.encode(frames[:, 0]), "states": after.latents}
    if world.has_decoder and world.tokenizer.has_decoder:
        found["frames"] = world.decode(after)
    return {
        key: (tuple(x.shape), "float" if x.is_floating_point() else str(x.dtype))
        for key, x in found.items()
    }


def _check_name(world: World, name: str, absent_decoder: bool = False) -> None:
    if name not in NAMES:
        raise ValueError(f"a world has no part {name!r}; it has {', '.join(NAMES)}")
    if name == "decoder" and not (world.has_decoder or absent_decoder):
        raise ValueError("this world has no decoder; set_module gives it one")
