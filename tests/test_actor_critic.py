import torch

from data.actions import ActionSpec
from models.controllers.actor_critic import ActorCritic, ActorCriticConfig, lambda_returns
from models.controllers.policy import PolicyConfig
from models.dynamics.dynamics import State
from models.tokenizers.tokenizer import LatentSpec

LATENTS = LatentSpec("continuous", (2, 2), dim=3)
ACTIONS = ActionSpec("continuous", ("x", "y"), (0.0, 0.0), (512.0, 512.0))


def test_lambda_returns_are_sums_at_one_and_one_step_at_zero():
    rewards = torch.tensor([[1.0], [2.0], [4.0]])
    values = torch.tensor([[0.0], [10.0], [20.0], [8.0]])
    live = torch.full((3, 1), 0.5)
    all_the_way = lambda_returns(rewards, values, live, 1.0)
    assert torch.allclose(all_the_way[:, 0], torch.tensor([1 + 1 + 1 + 1.0, 2 + 2 + 2, 4 + 4]))
    one_step = lambda_returns(rewards, values, live, 0.0)
    assert torch.allclose(one_step[:, 0], torch.tensor([1 + 5.0, 2 + 10, 4 + 4]))


class Nothing:
    def select(self, index):
        return self


class Spot:
    """A world whose reward is how near the action comes to a spot; no frame ever changes."""

    spot = torch.tensor([0.5, -0.4])

    @property
    def dynamics(self):
        return self

    def start(self, latents, actions):
        rows = torch.ones(len(latents))
        return State(latents[:, -1], 0 * rows, rows, Nothing())

    def step(self, state, action):
        reward = 1 - (action - self.spot).square().sum(-1)
        return State(state.latents, reward, state.continues, Nothing())


def test_the_actor_finds_what_is_rewarded():
    torch.manual_seed(0)
    config = ActorCriticConfig(
        PolicyConfig(channels=8, num_keypoints=2, hidden_dim=16, min_std=0.1),
        horizon=5, bc_weight=0.0, entropy=1e-3, return_norm_rate=0.1, discount=0.5,
    )  # fmt: skip
    model = ActorCritic(config, LATENTS, ACTIONS)
    latents = torch.ones(32, 1, 4, 3)
    shown = (latents[:, 0], torch.zeros(32, 2))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    world = Spot()
    for _ in range(250):
        losses = model.loss(world, latents, torch.zeros(32, 1, 2), *shown)  # type: ignore[arg-type]
        total = sum((v for v in losses.values() if v.requires_grad), torch.zeros(()))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    action = ACTIONS.normalize(model.act(world.start(latents[:1], None), sample=False))
    assert (action - world.spot).norm() < 0.25
    assert losses["imagined_reward"] > 0.8


class Level(Spot):
    """A world that rewards whatever is done."""

    def step(self, state, action):
        rows = torch.ones(len(action))
        return State(state.latents, rows, state.continues, Nothing())


def test_what_is_rewarded_anyway_teaches_the_actor_nothing():
    torch.manual_seed(0)
    config = ActorCriticConfig(
        PolicyConfig(channels=8, num_keypoints=2, hidden_dim=16), entropy=0.0
    )
    model = ActorCritic(config, LATENTS, ACTIONS)
    latents = torch.rand(8, 1, 1, 3).expand(-1, 1, 4, 3)
    given = (latents, torch.zeros(8, 1, 2), latents[:, 0], torch.zeros(8, 2))
    for world, learns in ((Level(), False), (Spot(), True)):
        model.zero_grad()
        model.loss(world, *given)["actor"].backward()  # type: ignore[arg-type]
        slopes = [p.grad.abs().max() for p in model.policy.parameters() if p.grad is not None]
        assert (max(slopes) > 1e-3) == learns


def test_behaviour_cloning_learns_a_map_from_latents_to_actions():
    torch.manual_seed(0)
    config = ActorCriticConfig(PolicyConfig(channels=16, num_keypoints=4, hidden_dim=32))
    policy = ActorCritic(config, LATENTS, ACTIONS).policy
    latents = torch.rand(256, 4, 3)
    actions = torch.stack([latents[:, 0, 0], -latents[:, 3, 2]], dim=-1)
    optimizer = torch.optim.AdamW(policy.parameters(), 3e-3)
    for _ in range(200):
        losses = policy.loss(latents, actions)
        optimizer.zero_grad()
        losses["cloning"].backward()
        optimizer.step()
    assert losses["distance"] < 0.15
