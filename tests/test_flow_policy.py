"""An imitator of action chunks, on demonstrations whose distribution is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_planner import POINTER, NoMemory
from torch import Tensor

from data.actions import ActionSpec
from data.batch import Batch
from models.controllers.flow_policy import FlowPolicy, FlowPolicyConfig
from models.controllers.policy import PolicyConfig
from models.dynamics.dynamics import State
from models.planning.plan import Plan
from models.planning.plan_executor import PlanExecutor
from models.registry import DataSpec, build_controller, describe
from models.tokenizers.tokenizer import LatentSpec

POINT = LatentSpec("continuous", (1, 1), 2)
SMALL = FlowPolicyConfig(
    PolicyConfig(hidden_dim=64, dropout=0.0),
    chunk_length=4,
    receding_horizon=2,
    num_layers=2,
    noise_scale=1.0,
)
GOAL = torch.zeros(1, 1, 2)


def state_of(latents: Tensor) -> State:
    rows = torch.ones(len(latents))
    return State(latents, 0 * rows, rows, NoMemory())


def demos(count: int) -> Batch:
    """A point, shown to go round an obstacle: up to y = 0.8 or down to -0.8, x as it is."""
    place = torch.rand(count, 1, 1, 2) - 0.5
    side = torch.where(torch.rand(count, 1) < 0.5, -1.0, 1.0)
    steps = torch.tensor([0.2, 0.4, 0.6, 0.8])
    y = side * steps
    return Batch(latents=place, actions=torch.stack([place[:, 0, :, 0].expand_as(y), y], dim=-1))


def fit(model: FlowPolicy, steps: int) -> list[float]:
    torch.manual_seed(0)
    model.begin(demos(1000))
    optimizer = torch.optim.AdamW(model.train().parameters(), 3e-3)
    history = []
    for _ in range(steps):
        loss = model.loss(demos(256))["flow_matching"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    model.eval()
    return history


@pytest.fixture(scope="module")
def trained() -> FlowPolicy:
    torch.manual_seed(0)
    model = FlowPolicy(SMALL, POINT, POINTER)
    history = fit(model, 600)
    assert sum(history[-50:]) < 0.5 * sum(history[:50])
    return model


def test_it_goes_one_way_or_the_other_and_never_between(trained: FlowPolicy) -> None:
    torch.manual_seed(1)
    latents = demos(400).require("latents")[0][:, 0]
    chunks = trained.sample(latents, torch.randn(400, 4, 2)).detach()
    y = chunks[..., 1]
    assert (y[:, -1].abs() > 0.5).float().mean() > 0.95
    up = (y[:, -1] > 0).float().mean()
    assert 0.35 < up < 0.65
    steps = torch.tensor([0.2, 0.4, 0.6, 0.8])
    assert (y.abs() - steps).abs().mean() < 0.08  # all of a chunk on one side
    assert (y.sign() == y[:, -1:].sign()).float().mean() > 0.95
    assert (chunks[..., 0] - latents[..., 0]).abs().mean() < 0.08


def first_plan(policy: FlowPolicy, *inputs: Any) -> Plan:
    """The first plan of an episode."""
    policy.reset()
    return policy.plan(*inputs)


def test_noise_changes_from_plan_to_plan_and_returns_with_the_next_episode(
    trained: FlowPolicy,
) -> None:
    state = state_of(torch.zeros(1, 1, 2))

    def episode() -> list[Tensor]:
        trained.reset()
        return [trained.plan(state, GOAL, None).actions for _ in range(10)]

    first, second = episode(), episode()
    assert all(map(torch.equal, first, second))
    assert not torch.equal(first[0], first[1])
    ends = {bool(actions[0, -1, 1] > 50) for actions in first}
    assert ends == {False, True}  # what is tried from one place is not always the same
    other = FlowPolicy(replace(SMALL, seed=1), POINT, POINTER).eval()
    other.load_state_dict(trained.state_dict())
    assert not torch.equal(other.plan(state, GOAL, None).actions, first[0])


def test_without_noise_all_plans_are_the_same(trained: FlowPolicy) -> None:
    model = FlowPolicy(replace(SMALL, noise_scale=0.0), POINT, POINTER).eval()
    model.load_state_dict(trained.state_dict())
    state = state_of(torch.full((1, 1, 2), 0.3))
    plan = model.plan(state, GOAL, None)
    assert torch.equal(plan.actions, model.plan(state, GOAL, None, plan.knots).actions)


def test_a_plan_does_not_depend_on_other_rows(trained: FlowPolicy) -> None:
    latents = torch.tensor([[[-0.4, 0.1]], [[0.2, 0.0]], [[0.5, -0.3]]])
    together = first_plan(trained, state_of(latents), GOAL.expand(3, 1, 2), None)
    alone = first_plan(trained, state_of(latents[1:2]), GOAL, None)
    assert torch.allclose(together.actions[1:2], alone.actions, atol=1e-3)  # of 100
    assert not torch.allclose(together.actions[0], together.actions[1], atol=1)


def test_a_plan_is_a_chunk_within_range_behind_the_last_action(trained: FlowPolicy) -> None:
    state = state_of(torch.tensor([[[-5.0, 5.0]], [[0.0, 0.0]]]))  # the first is far from all
    last = torch.tensor([[10.0, 90.0], [50.0, 50.0]])
    plan = first_plan(trained, state, GOAL, last)
    assert plan.actions.shape == (2, 4, 2) and plan.knots.shape == (2, 5, 2)
    assert torch.allclose(POINTER.denormalize(plan.knots[:, 0]), last)
    assert torch.equal(POINTER.denormalize(plan.knots[:, 1:]), plan.actions)
    assert plan.actions.min() >= 0 and plan.actions.max() <= 100
    assert torch.equal(plan.cost, torch.zeros(2))
    unknown = first_plan(trained, state, GOAL, None)
    assert torch.equal(unknown.knots[:, 0], torch.zeros(2, 2))
    assert torch.equal(unknown.actions, plan.actions)  # the last action is not read


def test_the_executor_replans_after_the_receding_horizon(trained: FlowPolicy) -> None:
    executor = PlanExecutor(trained, trained.config.receding_horizon)
    latents = torch.tensor([[[0.2, 0.0]], [[-0.2, 0.0]]])
    planned = []
    for step in range(6):
        assert executor.needs_plan == (step % 2 == 0)
        action = executor.act(state_of(latents), GOAL.expand(2, 1, 2))
        assert action.shape == (2, 2) and action.isfinite().all()
        if step % 2 == 0:
            assert trained.num_plans == step // 2 + 1
            assert executor.plans is not None
            planned.append(executor.plans)
        assert torch.equal(action, planned[-1][:, step % 2])
    assert not torch.equal(planned[0], planned[1])
    first = planned[0]
    executor.reset()
    executor.act(state_of(latents), GOAL.expand(2, 1, 2))
    assert executor.plans is not None and torch.equal(executor.plans, first)


def test_validation_measures_the_actions_that_are_executed(trained: FlowPolicy) -> None:
    latents, actions = demos(64).require("latents", "actions")
    sampled = trained.sample(latents[:, 0], torch.zeros_like(actions)).detach()
    changed = torch.cat([sampled[:, :2], -actions[:, 2:]], dim=1)
    metrics = trained.validate(Batch(latents=latents, actions=changed))
    assert metrics["action_error"] == 0 and metrics["flow_matching"] > 0
    assert trained.best.metric in metrics


def test_scales_come_from_the_data() -> None:
    """Latents in other units lead to the same loss."""
    losses = []
    for scale, shift in ((1.0, 0.0), (1000.0, -3.0)):
        torch.manual_seed(0)
        model = FlowPolicy(SMALL, POINT, POINTER).eval()
        batch = demos(500)
        assert batch.latents is not None
        batch.latents = batch.latents * scale + shift
        model.begin(batch)
        torch.nn.init.normal_(model.net.out.weight)
        torch.manual_seed(0)
        losses.append(model.loss(batch)["flow_matching"])
    assert torch.allclose(losses[0], losses[1], rtol=1e-3)


@pytest.mark.parametrize(
    "latents", [LatentSpec("discrete", (2, 2), 4, 16), LatentSpec("continuous", (4, 4), 3)]
)
def test_codes_and_grids_are_read_too_and_a_checkpoint_rebuilds_it(latents: LatentSpec) -> None:
    torch.manual_seed(0)
    model = FlowPolicy(SMALL, latents, POINTER).eval()
    tokens = (
        torch.randint(16, (8, 1, 4)) if latents.kind == "discrete" else torch.randn(8, 1, 16, 3)
    )
    batch = Batch(latents=tokens, actions=torch.rand(8, 4, 2) * 2 - 1)
    model.begin(batch)
    torch.nn.init.normal_(model.net.out.weight)  # zero before training
    model.loss(batch)["flow_matching"].backward()
    grads = [p.grad for p in model.encoder.parameters() if p.requires_grad]
    assert any(grad is not None and bool(grad.abs().sum() > 0) for grad in grads)
    again = build_controller(describe(model.config), DataSpec((32, 32), POINTER, latents)).eval()
    again.load_state_dict(model.state_dict())
    assert isinstance(again, FlowPolicy)
    state = state_of(tokens[:, 0])
    assert torch.equal(again.plan(state, None, None).actions, model.plan(state, None, None).actions)


def test_what_cannot_work_is_refused_in_a_line() -> None:
    codes = ActionSpec("discrete", ("left", "right"))
    with pytest.raises(
        ValueError, match="^a flow policy adds noise to actions, and these are disc"
    ):
        FlowPolicy(SMALL, POINT, codes)
    with pytest.raises(ValueError, match="--receding-horizon 5 is above --chunk-length 4"):
        replace(SMALL, receding_horizon=5)
