"""A causal language model as dynamics: each family, tiny and random."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from data.actions import ActionSpec
from data.batch import Batch
from models.dynamics import causal_backbone
from models.dynamics.causal_backbone import FAMILIES
from models.dynamics.dynamics import State
from models.dynamics.frameskip_dynamics import FrameskipMemory
from models.dynamics.language_model import LanguageModelConfig, LanguageModelDynamics, Past
from models.layers.transformer import TransformerConfig
from models.registry import DataSpec, build_dynamics, describe
from models.tokenizers.tokenizer import LatentSpec

transformers = pytest.importorskip("transformers")

POINTER = ActionSpec("continuous", ("x", "y"), (-1.0, -1.0), (1.0, 1.0), pointer=True)
MOVES = ActionSpec("discrete", ("stay", "left", "right"))
ONE = LatentSpec("continuous", (1, 1), 6)
GRID = LatentSpec("continuous", (2, 2), 6)
TINY = TransformerConfig(dim=24, num_layers=2, num_heads=2, mlp_dim=32, context_frames=2)
CONFIG = LanguageModelConfig(transformer=TINY, frameskip=3, clip_length=10)


def dynamics(
    latents: LatentSpec = ONE, actions: ActionSpec = POINTER, **changes: Any
) -> LanguageModelDynamics:
    """An untrained model that does not predict "no change"."""
    torch.manual_seed(0)
    model = LanguageModelDynamics(replace(CONFIG, **changes), latents, actions)
    torch.nn.init.normal_(model.delta_head.weight, std=0.2)
    torch.nn.init.normal_(model.reward_head.out.weight, std=0.2)
    for name, weight in model.backbone.named_parameters():
        if weight.requires_grad and weight.dim() == 2:  # an adapter begins as zeros
            torch.nn.init.normal_(weight, std=0.2)
        assert "embed_tokens" not in name and "wte" not in name
    return model.eval()


def episode(
    latents: LatentSpec = ONE, actions: ActionSpec = POINTER, frames: int = 10, clips: int = 3
) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    seen = torch.randn(clips, frames, latents.num_patches, 6, generator=random)
    if actions.kind == "discrete":
        return seen, torch.randint(0, 3, (clips, frames), generator=random)
    return seen, torch.rand(clips, frames, 2, generator=random) * 2 - 1


def blocks(model: LanguageModelDynamics, seen: Tensor, acts: Tensor) -> tuple[Tensor, ...]:
    """Context frames of an episode, its blocks of actions, and how many of each are given."""
    skip = model.frameskip
    count = (seen.shape[1] - 1) // skip
    whole = acts[:, : count * skip].unflatten(1, (count, skip))
    return seen[:, : count * skip : skip], whole, torch.full(whole.shape[:2], skip)


def past_of(state: State) -> Past | None:
    assert isinstance(state.memory, FrameskipMemory)
    past = state.memory.past
    assert past is None or isinstance(past, Past)
    return past


# -- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("frame_tokens", ["frame", "patches"])
def test_nothing_sees_what_comes_after_it(family: str, frame_tokens: str) -> None:
    """A context frame changes the predictions from it on, and so does an action."""
    model = dynamics(GRID, family=family, frame_tokens=frame_tokens)
    context, actions, count = blocks(model, *episode(GRID))
    predicted, out = model.predict(context, actions, count)
    for changed in range(3):
        for other in (
            model.predict(_negated(context, changed), actions, count),
            model.predict(context, _negated(actions, changed), count),
        ):
            assert torch.equal(other[0][:, :changed], predicted[:, :changed])
            assert torch.equal(other[1][:, :changed], out[:, :changed])
            for later in range(changed, 3):
                assert not torch.allclose(other[1][:, later], out[:, later], atol=1e-4)


def _negated(x: Tensor, index: int) -> Tensor:
    x = x.clone()
    x[:, index] *= -1
    return x


@pytest.mark.parametrize("family", FAMILIES)
def test_every_loss_falls_on_one_batch(family: str) -> None:
    model = dynamics(family=family).train()
    seen, acts = episode()
    seen = seen.cumsum(1) / 3
    batch = Batch(None, seen, acts, torch.rand(3, 10), torch.ones(3, 10))
    history = _losses(model, batch, 80)
    for name in ("prediction", "rollout", "reward", "continue"):
        late = sum(h[name] for h in history[-10:]) / 10
        assert late < 0.7 * history[0][name], name


def _losses(model: LanguageModelDynamics, batch: Batch, steps: int) -> list[dict[str, float]]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    history = []
    for _ in range(steps):
        losses = model.loss(batch)
        optimizer.zero_grad()
        sum(losses.values(), torch.zeros(())).backward()
        optimizer.step()
        history.append({k: float(v.detach()) for k, v in losses.items()})
    return history


def test_heads_are_float32_and_the_rest_is_not_under_autocast() -> None:
    model = dynamics()
    x = torch.randn(5, 24)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.delta_head(x).dtype == torch.bfloat16
        under = model.reward_head(x), model.continue_head(x)
    assert under[1].dtype == torch.float32
    assert torch.equal(under[0], model.reward_head(x))
    assert torch.equal(under[1], model.continue_head(x))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tuning", ["full", "lora", "frozen"])
def test_activation_checkpointing_reaches_into_the_layers_and_changes_no_gradient(
    family: str, tuning: str
) -> None:
    if tuning == "lora":
        pytest.importorskip("peft")
    gradients, passes = [], []
    seen, acts = episode()
    for checkpointing in (False, True):
        tiny = replace(TINY, activation_checkpointing=checkpointing)
        model = dynamics(family=family, tuning=tuning, transformer=tiny).train()
        layers = causal_backbone.decoder_layers(model.backbone)
        attention = next(m for n, m in layers[0].named_modules() if n.endswith("attn"))
        calls: list[int] = []
        attention.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        losses = model.loss(Batch(None, seen, acts, torch.ones(3, 10)))
        sum(losses.values(), torch.zeros(())).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
        passes.append(len(calls))
    assert passes == [2, 4]  # from real and from predicted frames; each once more
    assert len(gradients[0]) == len(gradients[1])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


# -- rollouts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("actions", [POINTER, MOVES])
@pytest.mark.parametrize("frame_tokens", ["frame", "patches"])
def test_cached_equals_uncached(family: str, actions: ActionSpec, frame_tokens: str) -> None:
    """Steps from a cache, against the training pass over the same frames."""
    model = dynamics(GRID, actions, family=family, frame_tokens=frame_tokens)
    seen, acts = episode(GRID, actions)
    state = model.start(seen[:, :4], acts[:, :3])
    frames = [seen[:, 0], seen[:, 3]]
    for t in range(3, 9):
        state = model.step(state, acts[:, t])
        given = (t - 3) % 3 + 1
        context = torch.stack(frames, 1)
        _, whole, count = blocks(model, seen[:, : 3 * len(frames) + 1], acts)
        count[:, -1] = given
        expected, out = model.predict(context, whole, count)
        assert torch.allclose(state.latents, expected[:, -1], atol=1e-5)
        assert torch.allclose(state.reward, model.reward_head(out[:, -1].mean(1)), atol=1e-4)
        if given == 3:
            frames.append(state.latents)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rollout_without_end_stays_within_the_positions_of_training(family: str) -> None:
    """Beyond K blocks the last C context frames are read anew, as if a state had started there."""
    model = dynamics(family=family)
    longest, (seen, acts) = 0, episode(frames=40)
    state = model.start(seen[:, :4], acts[:, :3])
    started = None
    for t in range(3, 40):
        before, state = past_of(state), model.step(state, acts[:, t])
        past = past_of(state)
        assert past is not None
        longest = max(longest, past.cache.keys[0].shape[2])
        if before is not None and past.frames.shape[1] < before.frames.shape[1]:
            count = torch.full(past.actions.shape[:2], model.frameskip)
            started = model.read_past(past.frames, past.actions, count)
            same = zip(started.cache.keys, past.cache.keys, strict=True)
            assert all(torch.allclose(a, b, atol=1e-5) for a, b in same)
    assert started is not None and longest == model.max_blocks * 2 == 6


@pytest.mark.parametrize("family", FAMILIES)
def test_a_state_can_be_stepped_from_twice(family: str) -> None:
    """The library's cache grows in place; a state does not."""
    model = dynamics(family=family)
    seen, acts = episode(frames=14)
    state = model.start(seen[:, :4], acts[:, :3])
    past = past_of(state)
    assert past is not None
    before = [t.clone() for t in (*past.cache.keys, *past.cache.values, past.frames)]
    one = model.rollout(state, acts[:, 3:12])
    model.rollout(state, -acts[:, 3:12])
    model.observe(model.step(state, acts[:, 4]), acts[:, 5], seen[:, 5])
    again = model.rollout(state, acts[:, 3:12])
    assert torch.equal(one.latents, again.latents)
    after = (*past.cache.keys, *past.cache.values, past.frames)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("context", [1, 2, 3])
def test_observing_equals_starting_there(family: str, context: int) -> None:
    model = dynamics(family=family, transformer=replace(TINY, context_frames=context))
    seen, acts = episode(frames=19)
    state = model.start(seen[:, :1], acts[:, :0])
    for t in range(12):
        state = model.observe(state, acts[:, t], seen[:, t + 1])
    there = model.start(seen[:, :13], acts[:, :12])
    assert torch.equal(state.latents, seen[:, 12])
    found = past_of(state)
    assert (found.frames.shape[1] if found else 0) == context - 1
    for start in (0, 2):  # also between two context frames
        one, two = (model.rollout(s, acts[:, 12 + start : 18]) for s in (state, there))
        assert torch.allclose(one.latents, two.latents, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_candidates_share_a_history(family: str) -> None:
    model = dynamics(family=family)
    seen, acts = episode()
    state = model.start(seen[:, :4], acts[:, :3])
    many = model.rollout(state.repeat(5), acts[:, 3:9].repeat_interleave(5, 0))
    alone = model.rollout(state, acts[:, 3:9])
    assert torch.allclose(many.latents[::5], alone.latents, atol=1e-5)
    assert not torch.allclose(alone.latents[0], alone.latents[2], atol=1e-2)
    picked = model.rollout(state.select(torch.tensor([2])), acts[2:3, 3:9])
    assert torch.allclose(picked.latents[0], alone.latents[2], atol=1e-5)


def test_actions_have_a_gradient_through_the_cache() -> None:
    model = dynamics().requires_grad_(False)
    seen, acts = episode()
    acts = acts.requires_grad_()
    state = model.start(seen[:, :4], acts[:, :3].detach())
    model.rollout(state, acts[:, 3:9]).latents.square().sum().backward()
    assert acts.grad is not None and (acts.grad[:, 3:9].abs().sum(-1) > 0).all()
    assert not acts.grad[:, :3].any()


def test_a_layer_is_called_once_a_step() -> None:
    """So that a hook on it sees a step once, also where the context slides."""
    model = dynamics()
    seen, acts = episode(frames=30)
    state = model.start(seen[:, :4], acts[:, :3])
    calls: list[int] = []
    layer = model.get_submodule("backbone.layers.1")
    assert layer in model.fsdp_units() and len(model.fsdp_units()) == 2
    layer.register_forward_hook(lambda *_: calls.append(1))
    for t in range(3, 30):
        state = model.step(state, acts[:, t])
        assert len(calls) == t - 2


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_compiled_steps_equal_eager_ones_with_few_graphs(family: str) -> None:
    """One graph for each number of blocks that a cache may hold."""
    torch._dynamo.reset()
    counter = CompileCounter()
    plain, compiled = dynamics(family=family), dynamics(family=family)
    compiled.compile_steps(
        lambda module, function: torch.compile(function, dynamic=False, backend=counter)
    )
    seen, acts = episode(frames=20)
    one, two = (m.start(seen[:, :4], acts[:, :3]) for m in (plain, compiled))
    with torch.no_grad():
        for t in range(3, 19):
            one, two = plain.step(one, acts[:, t]), compiled.step(two, acts[:, t])
            assert torch.allclose(one.latents, two.latents, atol=1e-5)
    assert counter.frame_count == plain.max_blocks


def test_a_window_of_the_family_is_kept(tmp_path: Path) -> None:
    """A Mistral whose layers see fewer tokens than a clip has, cached as uncached."""
    config = transformers.MistralConfig(
        vocab_size=5, hidden_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=32, head_dim=12, sliding_window=3,
        pad_token_id=None,
    )  # fmt: skip
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    windowed = dynamics(pretrained=str(tmp_path))
    seen, acts = episode()
    context, actions, count = blocks(windowed, seen, acts)
    state = windowed.start(seen[:, :4], acts[:, :3])
    state = windowed.rollout(state, acts[:, 3:6])
    context[:, 2] = state.latents
    expected, _ = windowed.predict(context, actions, count)
    found = windowed.rollout(state, acts[:, 6:9]).latents
    assert torch.allclose(found, expected[:, 2], atol=1e-5)
    # two layers of three tokens each: the first frame is out of sight of the last action
    out = windowed.predict(context, actions, count)[1][:, 2]
    assert torch.equal(windowed.predict(_negated(context, 0), actions, count)[1][:, 2], out)
    assert not torch.equal(windowed.predict(_negated(context, 1), actions, count)[1][:, 2], out)


# -- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_says_what_it_holds(family: str) -> None:
    model = dynamics(family=family)
    plain = describe(model.config)
    assert plain["family"] == family and plain["pretrained"] == "random"
    data = DataSpec((32, 32), POINTER, ONE)
    with torch.device("meta"):
        shapes = build_dynamics(plain, data).state_dict()
    again = build_dynamics(plain, data).eval()
    again.load_state_dict(model.state_dict())
    assert shapes.keys() == model.state_dict().keys()
    seen, acts = episode()
    one, two = (m.rollout(m.start(seen[:, :4], acts), acts[:, 3:9]) for m in (model, again))
    assert torch.equal(one.latents, two.latents)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "bert"}, "--model.family bert is not known; give one of llama, mistral"),
        ({"family": ""}, "--model.family is empty; give one of llama, mistral"),
        ({"pretrained": ""}, "--model.pretrained is empty; give a local folder"),
        ({"revision": "main"}, "random has neither a revision nor a hash"),
        ({"clip_length": 4}, "context-frames 2 is more than a clip of 4 frames has, 1; .* of 7"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config = replace(CONFIG, **changes)
        config.check()
        LanguageModelDynamics(config, ONE, POINTER)


def test_codes_are_refused() -> None:
    with pytest.raises(ValueError, match="tokenizer makes codes"):
        LanguageModelDynamics(CONFIG, LatentSpec("discrete", (2, 2), 4, 8), POINTER)
