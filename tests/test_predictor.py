"""Dynamics over continuous latents, in action blocks."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from data.actions import ActionSpec
from data.batch import Batch
from models.dynamics.predictor import Predictor, PredictorConfig
from models.layers.transformer import TransformerConfig
from models.tokenizers.tokenizer import LatentSpec

POINTER = ActionSpec("continuous", ("x", "y"), (0.0, 0.0), (1.0, 1.0), pointer=True)
MOVES = ActionSpec("discrete", ("stay", "left", "right"))
ONE = LatentSpec("continuous", (1, 1), 6)
GRID = LatentSpec("continuous", (2, 2), 6)


def predictor(
    latents: LatentSpec = ONE, actions: ActionSpec = POINTER, context: int = 3, layers: int = 2
) -> Predictor:
    torch.manual_seed(0)
    small = TransformerConfig(24, layers, num_heads=2, mlp_dim=32, context_frames=context)
    model = Predictor(
        PredictorConfig(transformer=small, frameskip=3, clip_length=10), latents, actions
    )
    torch.nn.init.normal_(model.delta_head.weight, std=0.2)  # it would predict no change
    torch.nn.init.normal_(model.reward_head.out.weight, std=0.2)
    return model.eval()


def episode(
    latents: LatentSpec = ONE, actions: ActionSpec = POINTER, frames: int = 10, clips: int = 3
):
    random = torch.Generator().manual_seed(1)
    seen = torch.randn(clips, frames, latents.num_patches, 6, generator=random)
    if actions.kind == "discrete":
        return seen, torch.randint(0, 3, (clips, frames), generator=random)
    return seen, torch.rand(clips, frames, 2, generator=random) * 2 - 1


@pytest.mark.parametrize("latents", [ONE, GRID])
@pytest.mark.parametrize("actions", [POINTER, MOVES])
def test_every_loss_falls_on_one_batch(latents: LatentSpec, actions: ActionSpec) -> None:
    model = predictor(latents, actions).train()
    seen, acts = episode(latents, actions)
    seen = seen.cumsum(1) / 3
    rewards, continues = torch.rand(3, 10), torch.ones(3, 10)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    history = []
    for _ in range(80):
        losses = model.loss(Batch(None, seen, acts, rewards, continues))
        total = sum((v for v in losses.values() if v.requires_grad), torch.zeros(()))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append({k: float(v.detach()) for k, v in losses.items()})
    for name in ("prediction", "rollout", "reward", "continue"):
        late = sum(h[name] for h in history[-10:]) / 10
        assert late < 0.7 * history[0][name], name


@pytest.mark.parametrize("latents", [ONE, GRID])
def test_single_steps_equal_the_rollout(latents: LatentSpec) -> None:
    model = predictor(latents)
    seen, acts = episode(latents)
    many = model.rollout(model.start(seen[:, :1], acts[:, :0]), acts[:, :8])
    state = model.start(seen[:, :1], acts[:, :0])
    for t in range(8):
        state = model.step(state, acts[:, t])
    assert torch.allclose(many.latents, state.latents, atol=1e-5)
    assert torch.allclose(many.reward, state.reward, atol=1e-5)


def test_cached_prediction_equals_the_training_pass() -> None:
    """Three context frames and one block, against the training pass over the same frames."""
    model = predictor(context=4)
    seen, acts = episode(frames=10)
    context, blocks = seen[:, ::3], acts[:, :9].unflatten(1, (3, 3))
    count = torch.full((3, 3), 3)
    whole, _ = model.predict(context[:, :3], blocks, count)
    state = model.start(seen[:, :7], acts[:, :6])
    assert torch.allclose(model.rollout(state, acts[:, 6:9]).latents, whole[:, 2], atol=1e-5)


def test_observing_equals_starting_there() -> None:
    model = predictor()
    seen, acts = episode(frames=10)
    state = model.start(seen[:, :1], acts[:, :0])
    for t in range(6):
        state = model.observe(state, acts[:, t], seen[:, t + 1])
    again = model.start(seen[:, :7], acts[:, :6])
    here, there = (model.rollout(s, acts[:, 6:9]).latents for s in (state, again))
    assert torch.allclose(here, there, atol=1e-5)
    assert torch.equal(state.latents, seen[:, 6])


@pytest.mark.parametrize("actions", [POINTER, MOVES])
def test_an_action_changes_what_follows_it_and_nothing_before(actions: ActionSpec) -> None:
    model = predictor(actions=actions)
    seen, acts = episode(actions=actions)
    for changed in range(6):
        other = acts.clone()
        other[:, changed] = (
            (acts[:, changed] + 1) % 3 if actions.kind == "discrete" else -acts[:, changed]
        )
        one, two = (model.start(seen[:, :1], acts[:, :0]) for _ in range(2))
        for t in range(6):
            one, two = model.step(one, acts[:, t]), model.step(two, other[:, t])
            same = torch.equal(one.latents, two.latents)
            assert same == (t < changed)


def test_candidates_share_a_history() -> None:
    model = predictor()
    seen, acts = episode()
    state = model.start(seen[:, :4], acts[:, :3])
    many = model.rollout(state.repeat(5), acts[:, 3:9].repeat_interleave(5, 0))
    alone = model.rollout(state, acts[:, 3:9])
    assert torch.allclose(many.latents[::5], alone.latents, atol=1e-5)
    picked = model.rollout(state.select(torch.tensor([2])), acts[2:3, 3:9])
    assert torch.allclose(picked.latents[0], alone.latents[2], atol=1e-5)


def test_compiled_steps_equal_eager_ones_with_few_graphs() -> None:
    """One graph for each number of context frames, and one for a sliding context, whatever the
    number of pending actions."""
    counter = CompileCounter()
    plain, compiled = predictor(layers=1), predictor(layers=1)
    compiled.compile_steps(
        lambda module, function: torch.compile(function, dynamic=False, backend=counter)
    )
    seen, acts = episode(frames=12)
    one, two = (model.start(seen[:, :1], acts[:, :0]) for model in (plain, compiled))
    with torch.no_grad():
        for t in range(11):
            one, two = plain.step(one, acts[:, t]), compiled.step(two, acts[:, t])
            assert torch.equal(one.latents, two.latents)
    assert counter.frame_count == plain.context_frames + 1


def test_a_clip_that_does_not_divide_into_blocks_is_refused() -> None:
    seen, acts = episode(frames=9)
    with pytest.raises(ValueError, match="multiple of 3, plus 1"):
        predictor().loss(Batch(latents=seen, actions=acts))
    with pytest.raises(ValueError, match="tokenizer makes codes"):
        Predictor(PredictorConfig(), LatentSpec("discrete", (2, 2), 4, 8), POINTER)


@pytest.mark.parametrize("latents", [ONE, GRID])
@pytest.mark.parametrize("actions", [POINTER, MOVES])
def test_a_step_of_fixed_shapes_is_a_step(latents: LatentSpec, actions: ActionSpec) -> None:
    model = predictor(latents, actions)
    seen, acts = episode(latents, actions, frames=17)
    with torch.no_grad():
        state = model.start(seen[:, :7], acts[:, :6])
        for given in range(2):  # from between two context frames, too
            packed, there = model.pack(state), state
            shapes = {name: tensor.shape for name, tensor in packed.items()}
            for action in acts[:, 6 + given : 14].unbind(1):
                there = model.step(there, action)
                found, reward, packed = model.step_packed(packed, action)
                assert torch.allclose(found, there.latents, atol=1e-5)
                assert torch.allclose(reward, there.reward, atol=1e-4)
                assert {name: tensor.shape for name, tensor in packed.items()} == shapes
            state = model.step(state, acts[:, 6])
        with pytest.raises(ValueError, match="7 real frames"):
            model.pack(model.start(seen[:, :1], acts[:, :0]))


def test_a_start_reads_no_frame_between_context_frames() -> None:
    model = predictor()
    assert model.context == 7 and model.context_interval == 3
    seen, acts = episode(frames=7)
    other = seen.clone()
    other[:, [1, 2, 4, 5]] = torch.nan
    start, same = (model.start(latents, acts[:, :6]) for latents in (seen, other))
    assert torch.equal(model.step(start, acts[:, 6]).latents, model.step(same, acts[:, 6]).latents)
