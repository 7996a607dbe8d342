import torch

from data.actions import ActionSpec
from data.batch import Batch
from models.controllers.actor_critic import ActorCritic, ActorCriticConfig, lambda_returns
from models.controllers.policy import PolicyConfig
from models.dynamics.dynamics import State
from models.tokenizers.tokenizer import LatentSpec
from pipeline.training.imagined_rewards import imagined_rewards

LATENTS = LatentSpec("continuous", (2, 2), dim=3)
ACTIONS = ActionSpec("continuous", ("x", "y"), (0.0, 0.0), (512.0, 512.0))


def test_lambda_returns_are_sums_at_one_and_one_step_at_zero():
    rewards = torch.tensor([[1.0], [2.0], [4.0]])
    values = torch.tensor([[0.0], [10.0], [20.0], [8.0]])
    discounts = torch.full((3, 1), 0.5)
    all_the_way = lambda_returns(rewards, values, discounts, 1.0)
    assert torch.allclose(all_the_way[:, 0], torch.tensor([1 + 1 + 1 + 1.0, 2 + 2 + 2, 4 + 4]))
    one_step = lambda_returns(rewards, values, discounts, 0.0)
    assert torch.allclose(one_step[:, 0], torch.tensor([1 + 5.0, 2 + 10, 4 + 4]))


class NoMemory:
    def select(self, index):
        return self


class Spot:
    """A still world whose reward is highest for an action at a spot."""

    spot = torch.tensor([0.5, -0.4])

    def start_from(self, latents, actions):
        rows = torch.ones(len(latents))
        return State(latents[:, -1], 0 * rows, rows, NoMemory())

    def step_from(self, state, action):
        reward = 1 - (action - self.spot).square().sum(-1)
        return State(state.latents, reward, state.continues, NoMemory())


def test_the_actor_finds_the_rewarded_action():
    torch.manual_seed(0)
    config = ActorCriticConfig(
        PolicyConfig(channels=8, num_keypoints=2, hidden_dim=16, min_std=0.1),
        horizon=5, bc_weight=0.0, entropy=1e-3, return_norm_rate=0.1, discount=0.5,
    )  # fmt: skip
    model = ActorCritic(config, LATENTS, ACTIONS)
    latents = torch.ones(32, 1, 4, 3)
    demos = {"bc_latents": latents, "bc_actions": torch.zeros(32, 1, 2)}
    batch = Batch(latents=latents, actions=torch.zeros(32, 1, 2), extra=demos)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    world = Spot()
    for _ in range(100):
        losses = model.loss(batch, world)  # type: ignore[arg-type]
        total = sum((v for v in losses.values() if v.requires_grad), torch.zeros(()))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        with torch.no_grad():
            model.after_step()
    action = model.policy.distribution(latents[:1, 0]).mode
    assert (action - world.spot).norm() < 0.25
    assert losses["imagined_reward"] > 0.8


class Level(Spot):
    """A world that rewards every action alike."""

    def step_from(self, state, action):
        rows = torch.ones(len(action))
        return State(state.latents, rows, state.continues, NoMemory())


def test_a_constant_reward_gives_the_actor_no_gradient():
    torch.manual_seed(0)
    config = ActorCriticConfig(
        PolicyConfig(channels=8, num_keypoints=2, hidden_dim=16), entropy=0.0
    )
    model = ActorCritic(config, LATENTS, ACTIONS)
    latents = torch.rand(8, 1, 1, 3).expand(-1, 1, 4, 3)
    actions = torch.zeros(8, 1, 2)
    demos = {"bc_latents": latents, "bc_actions": actions}
    batch = Batch(latents=latents, actions=actions, extra=demos)
    for world, learns in ((Level(), False), (Spot(), True)):
        model.zero_grad()
        model.loss(batch, world)["actor"].backward()  # type: ignore[arg-type]
        slopes = [p.grad.abs().max() for p in model.policy.parameters() if p.grad is not None]
        assert (max(slopes) > 1e-3) == learns


def test_behavior_cloning_learns_a_map_from_latents_to_actions():
    torch.manual_seed(0)
    config = ActorCriticConfig(PolicyConfig(channels=16, num_keypoints=4, hidden_dim=32))
    policy = ActorCritic(config, LATENTS, ACTIONS).policy
    latents = torch.rand(256, 4, 3)
    actions = torch.stack([latents[:, 0, 0], -latents[:, 3, 2]], dim=-1)
    optimizer = torch.optim.AdamW(policy.parameters(), 3e-3)
    for _ in range(200):
        losses = policy.loss(Batch(latents=latents[:, None], actions=actions[:, None]))
        optimizer.zero_grad()
        losses["bc_nll"].backward()
        optimizer.step()
    assert losses["action_error"] < 0.15


def test_a_true_end_starts_no_rollout():
    """A rollout from there counts neither for the actor nor for the critic."""
    torch.manual_seed(0)
    config = ActorCriticConfig(
        PolicyConfig(channels=8, num_keypoints=2, hidden_dim=16), bc_weight=0.0
    )
    model = ActorCritic(config, LATENTS, ACTIONS)
    latents, actions = torch.rand(8, 1, 4, 3), torch.zeros(8, 1, 2)
    demos = {"bc_latents": latents, "bc_actions": actions}
    for goes_on in (1.0, 0.0):
        continues = torch.full((8, 1), goes_on)
        batch = Batch(latents=latents, actions=actions, continues=continues, extra=demos)
        losses = model.loss(batch, Spot())  # type: ignore[arg-type]
        assert bool(losses["critic"] > 0) == bool(goes_on)
        assert bool(losses["actor"] != 0) == bool(goes_on)


class Falls(Level):
    """A world that is over after two steps."""

    def step_from(self, state, action):
        after = super().step_from(state, action)
        after.continues = 0.5 * state.continues
        return after


def test_what_is_earned_after_an_episodes_end_is_no_improvement():
    torch.manual_seed(0)
    config = ActorCriticConfig(PolicyConfig(channels=8, num_keypoints=2, hidden_dim=16), horizon=2)
    model = ActorCritic(config, LATENTS, ACTIONS)
    ends = torch.tensor([[1.0], [0.0]])
    starts = Batch(latents=torch.rand(2, 1, 4, 3), actions=torch.zeros(2, 1, 2), continues=ends)
    earned = imagined_rewards(model, Falls(), starts)  # type: ignore[arg-type]
    assert torch.allclose(earned[:, 0], torch.tensor([1, 1 / 2, 1 / 8, 1 / 64]))
    assert not earned[:, 1].any()
