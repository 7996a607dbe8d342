from dataclasses import replace
from typing import Literal

import pytest
import torch

from data.actions import ActionSpec
from data.batch import Batch
from models.dynamics.llama import LlamaConfig, LlamaDynamics
from models.layers.sampling import Sampling
from models.layers.transformer import TransformerConfig
from models.tokenizers.tokenizer import LatentSpec

LATENTS = LatentSpec("discrete", (2, 3), dim=4, codebook_size=12, num_codebooks=2)
POINTER = ActionSpec("continuous", ("x", "y"), (0.0, 0.0), (1.0, 1.0), pointer=True)
MOVES = ActionSpec("discrete", ("stay", "left", "right"))
Decoding = Literal["parallel", "autoregressive"]
BOTH: list[Decoding] = ["parallel", "autoregressive"]


def dynamics(decoding: Decoding = "parallel", actions: ActionSpec = POINTER) -> LlamaDynamics:
    torch.manual_seed(0)
    small = TransformerConfig(dim=24, num_layers=2, num_heads=2, mlp_dim=32, context_frames=3)
    model = LlamaDynamics(LlamaConfig(small, decoding=decoding), LATENTS, actions)
    torch.nn.init.normal_(model.vectors.codebook)
    for parameter in model.parameters():  # zero-initialized heads would give equal outputs
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def episode(actions: ActionSpec = POINTER, frames: int = 6, clips: int = 3):
    random = torch.Generator().manual_seed(1)
    latents = torch.randint(0, 12, (clips, frames, 12), generator=random)
    if actions.kind == "discrete":
        return latents, torch.randint(0, 3, (clips, frames), generator=random)
    return latents, torch.rand(clips, frames, 2, generator=random) * 2 - 1


@pytest.mark.parametrize("actions", [POINTER, MOVES])
@pytest.mark.parametrize("decoding", BOTH)
def test_each_loss_falls_on_one_batch(decoding, actions):
    model = dynamics(decoding, actions).train()
    latents, acts = episode(actions)
    rewards, continues = torch.rand(3, 6), torch.ones(3, 6)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    history = []
    for _ in range(40):
        losses = model.loss(Batch(None, latents, acts, rewards, continues))
        total = losses["cross_entropy"] + losses["reward"] + losses["continue"]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append({k: float(v.detach()) for k, v in losses.items()})
    for name in ("cross_entropy", "reward", "continue"):
        assert history[-1][name] < 0.7 * history[0][name]


@pytest.mark.parametrize("actions", [POINTER, MOVES])
@pytest.mark.parametrize("decoding", BOTH)
def test_cached_and_uncached_decoding_give_the_same_tokens(decoding, actions):
    model = dynamics(decoding, actions)
    latents, acts = episode(actions, frames=8)
    state = model.start(latents[:, :1], acts[:, :0])
    predicted = [latents[:, 0]]
    for t in range(7):
        state = model.step(state, acts[:, t])
        predicted.append(state.latents)
    # no cache: every frame again from the start of the rollout
    whole = torch.stack(predicted, dim=1)
    if decoding == "parallel":
        out = model.blocks(whole[:, :-1], acts[:, :7], [True] * 7)[0]
        again = model.logits(out[:, :, 1:], whole[:, :-1]).argmax(-1)
    else:
        leading = torch.cat([torch.zeros_like(acts[:, :1]), acts[:, :7]], dim=1)
        out = model.blocks(whole, leading, [False] + [True] * 7)[0]
        again = model.logits(out[:, 1:, :-1], whole[:, :-1]).argmax(-1)
    assert len(again.unique()) > 2
    assert torch.equal(again, whole[:, 1:])


@pytest.mark.parametrize("decoding", BOTH)
def test_an_action_changes_what_follows_it(decoding):
    model = dynamics(decoding)
    latents, acts = episode()
    other = acts.clone()
    other[:, 3] *= -1

    def outputs(a):
        if decoding == "parallel":
            return model.blocks(latents, a, [True] * 6)[0]
        leading = torch.cat([torch.zeros_like(a[:, :1]), a[:, :-1]], dim=1)
        return model.blocks(latents, leading, [False] + [True] * 5)[0]

    same = (outputs(acts) == outputs(other)).all(dim=(0, 2, 3))
    first = 3 if decoding == "parallel" else 4  # the block that holds the action
    assert same[:first].all() and not same[first:].any()


@pytest.mark.parametrize("decoding", BOTH)
def test_observing_a_frame_equals_starting_from_it(decoding):
    model = dynamics(decoding)
    latents, acts = episode()
    state = model.start(latents[:, :2], acts[:, :1])
    observed = model.observe(state, acts[:, 1], latents[:, 2])
    started = model.start(latents[:, :3], acts[:, :2])
    a, b = model.step(observed, acts[:, 2]), model.step(started, acts[:, 2])
    assert torch.equal(a.latents, b.latents) and torch.allclose(a.reward, b.reward, atol=1e-5)


@pytest.mark.parametrize("decoding", BOTH)
def test_candidates_of_a_repeated_state_are_independent(decoding):
    model = dynamics(decoding)
    latents, acts = episode()
    state = model.step(model.start(latents[:, :2], acts[:, :1]), acts[:, 1])
    many = model.step(state.repeat(2), acts[:, 2:4].flatten(0, 1))
    for candidate in range(2):
        alone = model.step(state, acts[:, 2 + candidate])
        assert torch.equal(many.latents[candidate::2], alone.latents)


def test_frames_before_the_context_change_nothing():
    model = dynamics()
    latents, acts = episode()
    long = model.step(model.start(latents, acts[:, :5]), acts[:, 5])
    short = model.step(model.start(latents[:, 3:], acts[:, 3:5]), acts[:, 5])
    assert torch.equal(long.latents, short.latents)


def test_sampling_follows_the_seed():
    model = dynamics()
    model.sampling = Sampling(temperature=5.0)
    latents, acts = episode()
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(model.step(model.start(latents, acts[:, :5]), acts[:, 5]).latents)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("decoding", BOTH)
def test_the_untrained_model_predicts_no_change(decoding):
    torch.manual_seed(0)
    small = TransformerConfig(dim=24, num_layers=2, num_heads=2, mlp_dim=32, context_frames=3)
    model = LlamaDynamics(LlamaConfig(small, decoding=decoding), LATENTS, POINTER).eval()
    latents, acts = episode()
    after = model.step(model.start(latents, acts[:, :5]), acts[:, 5])
    assert torch.equal(after.latents, latents[:, -1])


def test_changed_accuracy_counts_only_codes_that_change():
    model = dynamics()
    model.config = replace(model.config, scheduled_sampling=0.0)
    torch.nn.init.zeros_(model.copy_logit.bias)  # the bias would copy every code
    latents, acts = episode()
    with torch.no_grad():
        out = model.blocks(latents[:, :-1], acts[:, :-1], [True] * 5)[0]
        guess = model.logits(out[:, :, 1:], latents[:, :-1]).argmax(-1)
        target, changed = latents[:, 1:].clone(), latents[:, 1:] != latents[:, :-1]
        share = (guess[changed] == target[changed]).float().mean()
        found = model.loss(Batch(latents=latents, actions=acts))["changed_accuracy"]
        still = latents[:, :1].expand_as(latents)
    assert 0 < share < 1 and torch.equal(found, share)
    assert model.loss(Batch(latents=still, actions=acts))["changed_accuracy"] == 0
