from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from fake_methods import JointConfig, JointWorld
from torch import Tensor, nn

from data.actions import ActionSpec
from models.dynamics.llama import LlamaConfig, LlamaDynamics
from models.dynamics.predictor import Predictor, PredictorConfig
from models.dynamics.rssm import Rssm, RssmConfig
from models.layers.transformer import TransformerConfig
from models.tokenizers.keypoints import Keypoints, KeypointsConfig
from models.tokenizers.vqvae import VqVae, VqVaeConfig
from models.world import World

ACTIONS = ActionSpec("continuous", ("x", "y"), (0.0, 0.0), (512.0, 512.0))
SMALL = TransformerConfig(dim=16, num_layers=1, num_heads=2, mlp_dim=16, context_frames=2)
SIZE = (32, 32)


def keypoints(seed: int = 0, num_keypoints: int = 4) -> World:
    torch.manual_seed(seed)
    tokenizer = Keypoints(KeypointsConfig(SIZE, num_keypoints, channels=16, num_res_blocks=1))
    nn.init.normal_(tokenizer.background)
    dynamics = Predictor(
        PredictorConfig(transformer=SMALL, clip_length=11), tokenizer.latents, ACTIONS
    )
    nn.init.normal_(dynamics.delta_head.weight, std=0.1)
    return World(tokenizer, dynamics)


def codes(seed: int = 0) -> World:
    torch.manual_seed(seed)
    config = VqVaeConfig(SIZE, channels=16, num_res_blocks=1, codebook_size=8, latent_dim=8)
    tokenizer = VqVae(config)
    return World(tokenizer, LlamaDynamics(LlamaConfig(SMALL), tokenizer.latents, ACTIONS))


def dreamer(seed: int = 0) -> World:
    torch.manual_seed(seed)
    config = RssmConfig(32, 4, 4, 16, 4, 24, channels=8)
    model = Rssm(config, SIZE, ACTIONS)
    last: Any = model.decoder.patch_mlp[-1]
    nn.init.normal_(last.weight, std=0.3)
    return World(model, model)


def joint(seed: int = 0) -> World:
    torch.manual_seed(seed)
    model = JointWorld(JointConfig(), SIZE, ACTIONS)
    return World(model, model)


WORLDS = {"keypoints": keypoints, "codes": codes, "dreamer": dreamer, "joint": joint}
EACH = pytest.mark.parametrize("make", WORLDS.values(), ids=WORLDS)


def frames(count: int = 2) -> Tensor:
    torch.manual_seed(9)
    return torch.randint(0, 256, (count, 3, *SIZE), dtype=torch.uint8)


def rolled_out(world: World) -> Tensor:
    with torch.no_grad():
        state = world.reset(frames()[:, None], ACTIONS.empty(2, 0))
        state = world.step(state, torch.full((2, 2), 300.0))
        return world.decode_latents(world.dynamics.readout(state))  # no residual of real frames


@EACH
def test_every_weight_belongs_to_one_part(make):
    world = make()
    parts = [world.get_module(name) for name in ("encoder", "dynamics", "decoder")]
    ids = [id(weight) for part in parts for weight in part.parameters()]
    assert len(ids) == len(set(ids)) and set(ids) == {id(p) for p in world.parameters()}


@EACH
def test_a_part_does_what_the_world_does_with_it(make):
    world = make()
    encoder, decoder = world.get_module("encoder"), world.get_module("decoder")
    with torch.no_grad():
        latents = encoder(frames())
        assert torch.equal(latents, world.encode(frames()))
        assert torch.equal(decoder(latents), world.decode_latents(latents))


@EACH
def test_the_parts_of_another_world_make_this_one_the_other(make, capsys):
    one, other = make(0), make(1)
    expected = rolled_out(other)
    assert not torch.equal(rolled_out(one), expected)
    for name in ("encoder", "dynamics", "decoder"):
        one.set_module(name, other.get_module(name))
    assert torch.equal(rolled_out(one), expected)
    assert capsys.readouterr().out.count("stale now") == 3


@EACH
def test_a_frozen_part_has_no_gradient_and_the_others_have(make):
    world = make()
    world.freeze_module("dynamics")
    frozen = {id(p) for p in world.get_module("dynamics").parameters()}
    assert all(p.requires_grad != (id(p) in frozen) for p in world.tokenizer.parameters())
    assert world.unfreeze_module("dynamics") == len(frozen)
    assert all(p.requires_grad for p in world.get_module("dynamics").parameters())


class Encoder(nn.Module):
    """A user's own."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape, self.out = shape, nn.Linear(3, shape[0] * shape[1])

    def forward(self, images: Tensor) -> Tensor:
        return self.out(images.float().mean((2, 3)) / 255).unflatten(1, self.shape)


def test_a_module_of_ones_own_is_an_encoder_where_its_shapes_fit(capsys):
    world = keypoints()
    mine = Encoder(1, 8)
    stale = world.set_module("encoder", mine)
    assert any("dynamics" in part for part in stale) and any("controllers" in p for p in stale)
    assert torch.equal(world.encode(frames()), mine(frames()))
    assert world.get_module("encoder") is mine
    assert "its encoder is another one; stale now: dynamics" in capsys.readouterr().out
    assert rolled_out(world).shape == (2, 3, *SIZE)


@pytest.mark.parametrize(
    "name, module, message",
    [
        ("encoder", Encoder(1, 6), r"cannot be the encoder of this world: .*\(1, 1, 6\)|shape"),
        ("encoder", Encoder(2, 8), r"cannot be the encoder of this world"),
        ("decoder", nn.Flatten(), r"it gives frames of .*, and the world has \(\(1, 3, 32, 32\)"),
        ("dynamics", nn.Identity(), r"it is no Dynamics"),
        ("dynamics", keypoints(0, 5).dynamics, r"its latents are LatentSpec.*dim=10"),
        ("encodre", nn.Identity(), r"no part 'encodre'; it has encoder, dynamics, decoder"),
    ],
)
def test_what_does_not_fit_is_refused_at_once_and_nothing_changes(name, module, message):
    world = keypoints()
    before, parts = rolled_out(world), (world.tokenizer, world.dynamics)
    with pytest.raises(ValueError, match=message):
        world.set_module(name, module)
    assert (world.tokenizer, world.dynamics) == parts
    assert torch.equal(rolled_out(world), before)


def test_a_swap_changes_no_weight_of_either_world():
    one, other = dreamer(0), dreamer(1)
    before = [copy.deepcopy(world.state_dict()) for world in (one, other)]
    model = one.dynamics
    one.set_module("decoder", other.get_module("decoder"))
    for world, kept in zip((model, other.dynamics), before, strict=True):
        names = [n for n in kept if n.startswith("dynamics.")]
        assert all(torch.equal(world.state_dict()[n[9:]], kept[n]) for n in names)
