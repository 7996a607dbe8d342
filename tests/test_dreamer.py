"""DreamerV3's actor and critic: states of any world, actions of any kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from data.actions import ActionSpec, Factor
from data.batch import Batch
from models.controllers.dreamer import Dreamer, DreamerConfig
from models.controllers.policy import PolicyConfig
from models.dynamics.dynamics import State
from models.dynamics.rssm import Rssm, RssmConfig
from models.dynamics.rssm_base import NoMemory
from models.layers.categorical_groups import UNIMIX
from models.layers.sampling import Sampling
from models.tokenizers.tokenizer import LatentSpec
from models.world import World

SPEC = LatentSpec("continuous", (1, 1), dim=6)
MOUSE = ActionSpec("continuous", ("x", "y"), (0.0, 0.0), (512.0, 512.0))
KEYS = ActionSpec("discrete", ("left", "still", "right"))
PADS = ActionSpec("discrete", (), factors=(Factor("x", ("a", "b")), Factor("y", ("c", "d", "e"))))


def dreamer(actions: ActionSpec, **changes: Any) -> Dreamer:
    torch.manual_seed(0)
    policy = PolicyConfig(hidden_dim=16, num_modes=1, min_std=0.1, dropout=0.0)
    fields = {
        "horizon": 4,
        "min_return_scale": 0.1,
        "return_norm_rate": 0.1,
        "discount": 0.5,
        "slow_critic_rate": 0.3,
        "bc_weight": 0.0,
    }
    return Dreamer(DreamerConfig(policy, **(fields | changes)), SPEC, actions)


class Bandit:
    """A still world that rewards one action: a spot, or a code."""

    def __init__(self, actions: ActionSpec) -> None:
        self.actions, self.seen = actions, torch.zeros(0)
        self.spot = torch.tensor([0.5, -0.4])

    def start_from(self, latents: Tensor, actions: Tensor) -> State:
        rows = torch.ones(len(latents))
        return State(latents[:, -1], 0 * rows, rows, NoMemory())

    def step_from(self, state: State, action: Tensor) -> State:
        self.seen = action
        if self.actions.kind == "discrete":
            reward = (action == self.actions.size - 1).float()
        else:
            reward = 1 - (action - self.spot).square().sum(-1)
        return State(state.latents, reward, state.continues, NoMemory())

    def sampled(self, sampling: Sampling) -> Any:
        return torch.enable_grad()


def last_bias(model: Dreamer) -> Tensor:
    layers: Any = model.policy.head[1]
    return layers[-1].bias


def a_batch(actions: ActionSpec, rows: int = 64) -> Batch:
    latents = torch.ones(rows, 1, 1, 6)
    taken = actions.empty(rows, 1)
    return Batch(latents=latents, actions=taken, extra={"bc_latents": latents, "bc_actions": taken})


def trained(model: Dreamer, world: Any, steps: int = 200) -> dict[str, Tensor]:
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    batch, losses = a_batch(model.policy.actions), {}
    for _ in range(steps):
        losses = model.loss(batch, world)
        optimizer.zero_grad()
        sum((v for v in losses.values() if v.requires_grad), torch.zeros(())).backward()
        optimizer.step()
        with torch.no_grad():
            model.after_step()
    return losses


@pytest.mark.parametrize(
    "actions, gradient",
    [(MOUSE, "reinforce"), (MOUSE, "dynamics"), (KEYS, "reinforce"), (PADS, "reinforce")],
)
def test_the_actor_finds_the_rewarded_action(actions: ActionSpec, gradient: str):
    model, world = dreamer(actions, actor_gradient=gradient), Bandit(actions)
    losses = trained(model, world)
    mode = model.policy.distribution(torch.ones(1, 1, 6)).mode[0]
    if actions.kind == "discrete":
        assert int(mode) == actions.size - 1 and losses["imagined_reward"] > 0.9
    else:
        assert (mode - world.spot).norm() < 0.25
    # the critic knows the return of a reward of 1 that never ends, as far as the rollout says
    value = float(model.critic(torch.ones(1, 1, 6)))
    assert value == pytest.approx(float(losses["imagined_return"]), abs=0.3)


def test_gradients_through_the_world_are_of_continuous_actions_alone():
    with pytest.raises(ValueError, match="--model.actor-gradient dynamics is for continuous"):
        dreamer(KEYS, actor_gradient="dynamics")


@pytest.mark.parametrize("actions", [KEYS, PADS])
def test_no_code_is_impossible(actions: ActionSpec):
    model = dreamer(actions)
    with torch.no_grad():
        last_bias(model).copy_(torch.linspace(-500, 500, 3 if actions is KEYS else 5))
    dist = model.policy.distribution(torch.ones(1, 1, 6))
    log_probs = torch.stack(
        [dist.log_prob(torch.tensor([c])) for c in range(actions.size)]
    ).detach()
    assert log_probs.exp().sum() == pytest.approx(1)
    least = (UNIMIX / 3) * (UNIMIX / 2 if actions is PADS else 1)
    assert log_probs.min().exp() == pytest.approx(least, rel=0.05)


def test_the_world_never_sees_an_action_out_of_range_and_its_likelihood_is_the_samples():
    model, world = dreamer(MOUSE), Bandit(MOUSE)
    with torch.no_grad():
        last_bias(model).fill_(5.0)
    rollout = model.imagine(world, a_batch(MOUSE).latents, MOUSE.empty(64, 0))  # type: ignore[arg-type]
    assert rollout.actions.max() > 1 and world.seen.max() <= 1


def a_world() -> World:
    torch.manual_seed(0)
    model = Rssm(RssmConfig(32, 4, 4, 16, 4, 24, channels=8), (16, 16), MOUSE)
    for weight in model.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    return World(model, model).requires_grad_(False)


def test_rollouts_in_an_rssm_sample_its_states_and_leave_the_world_as_it_is():
    world, model = a_world(), None
    starts = torch.rand(8, 1, 1, 48)
    for temperature, varies in ((1.0, True), (0.0, False)):
        torch.manual_seed(0)
        model = Dreamer(DreamerConfig(horizon=3, temperature=temperature), world.state_spec, MOUSE)
        model.policy.distribution = lambda latents: Still(len(latents))  # type: ignore[method-assign]
        one, two = (model.imagine(world, starts, MOUSE.empty(8, 0)).latents for _ in range(2))
        assert torch.equal(one, two) != varies
    assert world.dynamics.sampling is None  # type: ignore[attr-defined]


class Still:
    def __init__(self, rows: int) -> None:
        self.rows = rows

    def sample(self) -> Tensor:
        return torch.zeros(self.rows, 2)


@pytest.mark.parametrize("gradient", ["reinforce", "dynamics"])
def test_in_an_rssm_actor_and_critic_have_gradients_and_the_world_has_none(gradient: Any):
    world = a_world()
    config = DreamerConfig(PolicyConfig(hidden_dim=16, num_modes=1), 3, actor_gradient=gradient)
    model = Dreamer(config, world.state_spec, MOUSE).train()
    batch = Batch(
        latents=torch.rand(8, 1, 1, 48), actions=MOUSE.empty(8, 1),
        extra={"bc_latents": torch.rand(8, 1, 1, 48), "bc_actions": torch.rand(8, 1, 2)},
    )  # fmt: skip
    losses = model.loss(batch, world)
    (losses["actor"] + losses["critic"]).backward()
    for part in (model.policy, model.critic):
        assert sum(float(p.grad.abs().sum()) for p in part.parameters() if p.grad is not None) > 0
    assert all(p.grad is None for p in world.parameters())
    assert all(p.grad is None for p in model.slow_critic.parameters())
