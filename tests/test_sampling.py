import math

import numpy as np
import pytest
import torch
from test_llama import dynamics, episode
from untrained_run import write_run

from data.clips import Clips
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from models.layers.sampling import Sampling
from pipeline.inference.load_world import load_world

DRAWS = 20000


def logits_of(*probs: float) -> torch.Tensor:
    """Logits of these probabilities, (K,)."""
    return torch.tensor(probs).log()


def frequencies(sampling: Sampling, logits: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    codes = sampling.sample(logits.expand(DRAWS, -1))
    return torch.bincount(codes, minlength=len(logits)) / DRAWS


def fits(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Chi-square: its mean is K - 1, and it seldom passes that by four deviations."""
    there = expected > 0
    freedom = int(there.sum()) - 1
    surprise = DRAWS * ((found - expected)[there].square() / expected[there]).sum()
    return bool(not found[~there].any() and surprise <= freedom + 4 * math.sqrt(2 * freedom))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_codes_are_sampled_by_their_softmax_probability(temperature):
    logits = torch.randn(12, generator=torch.Generator().manual_seed(0))
    found = frequencies(Sampling(temperature), logits)
    assert fits(found, torch.softmax(logits / temperature, -1))
    assert not fits(found, torch.softmax(logits / (1.3 * temperature), -1))


def test_sampling_from_one_code_takes_the_first_likeliest():
    logits = 100 * torch.randn(5, 7, 9, generator=torch.Generator().manual_seed(0)).round()
    assert (logits == logits.amax(-1, keepdim=True)).sum() > 40  # several are likeliest
    for sampling in (Sampling(2.0, top_k=1), Sampling(2.0, top_p=1e-6), Sampling(1e-37)):
        if sampling.temperature == 2.0:
            assert torch.equal(sampling.sample(logits), Sampling().sample(logits))
        chosen = logits.gather(-1, sampling.sample(logits)[..., None])[..., 0]
        assert torch.equal(chosen, logits.amax(-1))
    assert not torch.equal(Sampling(200.0).sample(logits), Sampling().sample(logits))


def test_only_the_k_likeliest_are_sampled():
    found = frequencies(Sampling(1.0, top_k=3), logits_of(0.1, 0.3, 0.2, 0.35, 0.05))
    assert fits(found, torch.tensor([0, 0.3, 0.2, 0.35, 0]) / 0.85)
    # still k with ties at the border, and all codes for a k above their number
    assert (frequencies(Sampling(1.0, top_k=2), torch.zeros(5)) > 0).sum() == 2
    assert (frequencies(Sampling(1.0, top_k=9), torch.zeros(5)) > 0).all()


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.2, 1), (0.499, 1), (0.501, 2), (0.75, 2), (0.76, 3), (0.99, 4)]
)
def test_the_nucleus_is_the_fewest_codes_that_reach_top_p(top_p, kept):
    masses = torch.tensor([0.125, 0.5, 0.125, 0.25])
    order = [1, 3, 0, 2]
    expected = torch.zeros(4)
    expected[order[:kept]] = masses[order[:kept]] / masses[order[:kept]].sum()
    assert fits(frequencies(Sampling(1.0, top_p=top_p), masses.log()), expected)


def test_the_nucleus_is_taken_of_the_k_likeliest():
    # of 0.4, 0.3, 0.2 the first two hold 0.78
    found = frequencies(Sampling(1.0, top_k=3, top_p=0.75), logits_of(0.4, 0.3, 0.2, 0.1))
    assert fits(found, torch.tensor([4 / 7, 3 / 7, 0, 0]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -0.1}, "--temperature -0.1 is out of range"),
        ({"temperature": float("nan")}, "--temperature nan is not a number"),
        ({"top_k": -1}, "--top-k -1 is out of range"),
        ({"top_p": 0.0}, "--top-p 0.0 is out of range; it must be above 0"),
        ({"top_p": 1.01}, "--top-p 1.01 is out of range"),
    ],
)
def test_invalid_sampling_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**wrong)


@pytest.mark.parametrize("decoding", ["parallel", "autoregressive"])
def test_a_dynamics_model_uses_its_sampling(decoding):
    model = dynamics(decoding)
    latents, actions = episode()
    state = model.start(latents, actions[:, :5])
    greedy = model.step(state, actions[:, 5]).latents
    model.sampling = Sampling(5.0, top_k=1)
    assert torch.equal(model.step(state, actions[:, 5]).latents, greedy)
    model.sampling = Sampling(5.0)
    assert not torch.equal(model.step(state, actions[:, 5]).latents, greedy)


@pytest.mark.parametrize("method", ["vqvae", "keypoints"])
def test_a_world_uses_its_sampling_or_refuses_it(tmp_path, method):
    dataset = EpisodeDataset(write_toy_shards(tmp_path / "shards", episodes=6))
    world = load_world(write_run(tmp_path, dataset, controllers=False, method=method), "cpu")
    if method == "keypoints":
        with pytest.raises(ValueError, match="sampling has no effect"):
            world.set_sampling(Sampling(1.0))
    else:
        clip = Clips(dataset, "train", clip_length=4).batch(np.arange(4))
        ends = {}
        for temperature in (0.0, 1.0):
            world.set_sampling(Sampling(temperature))
            for seed in (0, 1):
                torch.manual_seed(seed)
                state = world.reset(clip.frames[:, :3], clip.actions[:, :2])
                ends[temperature, seed] = world.step(state, clip.actions[:, 2]).latents
        assert torch.equal(ends[0.0, 0], ends[0.0, 1])
        assert not torch.equal(ends[1.0, 0], ends[1.0, 1])
        with pytest.raises(ValueError, match="sampling steps and order have no effect"):
            world.set_sampling(Sampling(steps=4))
