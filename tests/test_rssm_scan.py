"""The written-out gradient of the loop over time, against autograd through its definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from data.actions import ActionSpec
from models.dynamics.rssm_cell import ChoiceOfZ, RssmCell

ACTIONS = ActionSpec("continuous", ("x", "y"), (0.0, 0.0), (1.0, 1.0))


def cell(
    groups: int = 3, classes: int = 5, chooses: ChoiceOfZ = "sampled", absolute: bool = False
) -> RssmCell:
    torch.manual_seed(0)
    made = RssmCell(24, groups, classes, 10, 4, 7, ACTIONS, chooses, absolute).double()
    for name, weight in made.named_parameters():
        if name.endswith(("norm.weight", "bias")):
            torch.nn.init.normal_(weight, 1.0 if name.endswith("weight") else 0.0, 0.3)
    return made


def outputs(made: RssmCell, embeds: Tensor, actions: Tensor, scans: bool) -> list[Tensor]:
    made._scans = lambda x: scans  # type: ignore[method-assign]
    torch.manual_seed(1)
    return list(made(embeds, actions))


def double_probs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the cast to float32, to compare in float64."""
    monkeypatch.setattr(Tensor, "float", lambda self: self)


@pytest.mark.parametrize(
    "chooses, absolute", [("sampled", False), ("sampled", True), ("expected", False)]
)
@pytest.mark.parametrize("rows, length", [(3, 6), (1, 1), (2, 2), (5, 3)])
def test_outputs_and_every_gradient_are_those_of_autograd(
    monkeypatch, rows: int, length: int, chooses: ChoiceOfZ, absolute: bool
):
    double_probs(monkeypatch)
    torch.set_default_dtype(torch.float64)
    try:
        made = cell(chooses=chooses, absolute=absolute)
        embeds = torch.randn(rows, length, 7, requires_grad=True)
        actions = torch.rand(rows, length, 2, requires_grad=True)
        inputs = [embeds, actions, *made.parameters()]
        found = []
        for scans in (True, False):
            seen = outputs(made, embeds, actions, scans)
            torch.manual_seed(2)
            total = torch.stack([(x * torch.randn_like(x)).sum() for x in seen]).sum()
            grads = torch.autograd.grad(total, inputs, allow_unused=True)
            found.append((seen, grads))
    finally:
        torch.set_default_dtype(torch.float32)
    (ours, our_grads), (theirs, their_grads) = found
    for one, two in zip(ours, theirs, strict=True):
        assert torch.allclose(one, two, rtol=1e-9, atol=1e-11)
    names = ["embeds", "actions", *dict(made.named_parameters())]
    for name, one, two in zip(names, our_grads, their_grads, strict=True):
        zero = torch.zeros(())
        one, two = (zero if g is None else g for g in (one, two))
        assert torch.allclose(one, two, rtol=1e-8, atol=1e-10), name


def test_under_autocast_it_is_as_near_to_float64_as_autograd_is_in_float32(monkeypatch):
    made = cell().float()
    embeds, actions = torch.randn(4, 5, 7), torch.rand(4, 5, 2)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        features = outputs(made, embeds, actions, True)[0]
    with torch.no_grad():
        exact = outputs(made, embeds, actions, False)[0]
    h = slice(0, 24)
    assert features.dtype == torch.float32
    first = (features[:, 0, h] - exact[:, 0, h]).abs().max()
    assert first < 1e-5  # no product of h is in 16 bits; later z may be another one


def test_weights_without_gradient_and_no_gradient_at_all():
    made = cell().float()
    embeds, actions = torch.randn(2, 4, 7), torch.rand(2, 4, 2)
    made.gru.requires_grad_(False)
    features = outputs(made, embeds, actions, True)[0]
    features.sum().backward()
    assert made.gru.gate_bias.grad is None and made.posterior_out.weight.grad is not None
    with torch.no_grad():
        assert torch.allclose(outputs(made, embeds, actions, True)[0], features, atol=1e-5)
