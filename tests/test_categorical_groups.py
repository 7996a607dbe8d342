import pytest
import torch

from models.layers.categorical_groups import (
    UNIMIX,
    choose,
    kl_balance,
    sample,
    straight_through,
    unimix_probs,
)
from models.layers.sampling import Sampling


def test_no_class_is_impossible_and_probabilities_sum_to_one():
    probs = unimix_probs(torch.tensor([[[1000.0, -1000.0, 0.0, 0.0]]]))
    assert probs.min() == pytest.approx(UNIMIX / 4)
    assert torch.allclose(probs.sum(-1), torch.ones(1, 1))


def test_a_one_hot_vector_passes_the_gradient_of_its_probabilities():
    logits = torch.randn(5, 3, 4, requires_grad=True)
    weight = torch.randn(5, 3, 4)
    probs = unimix_probs(logits)
    (expected,) = torch.autograd.grad((probs * weight).sum(), logits, retain_graph=True)
    chosen = straight_through(probs, probs.argmax(-1))
    (found,) = torch.autograd.grad((chosen * weight).sum(), logits)
    assert torch.equal(found, expected)
    assert torch.equal(chosen.sum(-1), torch.ones(5, 3)) and set(chosen.unique().tolist()) == {0, 1}


def test_classes_are_sampled_by_their_probability():
    torch.manual_seed(0)
    probs = torch.tensor([0.1, 0.2, 0.7]).expand(20_000, 1, 3)
    rate = sample(probs, torch.empty(20_000, 1, 3).exponential_()).mean(0)[0]
    assert torch.allclose(rate, probs[0, 0], atol=0.015)
    drawn = choose(probs, Sampling(temperature=1.0)).mean(0)[0]
    assert torch.allclose(drawn, probs[0, 0], atol=0.015)
    assert torch.equal(choose(probs, Sampling()).mean(0)[0], torch.tensor([0.0, 0.0, 1.0]))
    assert choose(probs, None) is probs


def test_the_kl_is_that_of_torch_summed_over_groups():
    left, right = unimix_probs(torch.randn(6, 3, 5)), unimix_probs(torch.randn(6, 3, 5))
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(left), torch.distributions.Categorical(right)
    ).sum(-1)
    assert torch.allclose(kl_balance(left, right, 0.0)[2], expected, atol=1e-5)


def test_each_side_of_the_balance_moves_one_distribution():
    logits = [torch.randn(6, 3, 5, requires_grad=True) for _ in range(2)]
    posterior, prior = map(unimix_probs, logits)
    dynamics, representation, _ = kl_balance(posterior, prior, 0.0)
    for loss, (still, moved) in ((dynamics, logits), (representation, logits[::-1])):
        grads = torch.autograd.grad(
            loss.sum(), [still, moved], allow_unused=True, retain_graph=True
        )
        assert grads[0] is None and grads[1] is not None and grads[1].abs().max() > 0


def test_below_the_free_nats_there_is_nothing_to_gain():
    near = torch.tensor([[[0.1, 0.0, -0.1]]], requires_grad=True)
    far = torch.tensor([[[9.0, 0.0, -9.0]]], requires_grad=True)
    prior = unimix_probs(torch.zeros(1, 1, 3))
    for logits, moves in ((near, False), (far, True)):
        _, representation, kl = kl_balance(unimix_probs(logits), prior, 1.0)
        (grad,) = torch.autograd.grad(representation.sum(), logits)
        assert (kl > 1) == moves and bool(grad.any()) == moves
        assert representation >= 1
