"""Actor-critic on model rollouts (DreamerV3, arXiv:2301.04104, section 3).

Letters: B starts, H rollout steps, P patches, N latents a frame, D latent width, A action numbers.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from data.actions import ActionSpec
from data.batch import Batch
from data.ranges import CheckedConfig, Range
from models.controllers.controller import TrainedController
from models.controllers.cost_reward import RewardedWorld
from models.controllers.policy import (
    Distribution,
    LatentPolicy,
    PolicyConfig,
    make_encoder,
    mlp,
)
from models.dynamics.dynamics import State
from models.layers.heads import TwoHot
from models.method import Best, Losses
from models.tokenizers.codes import HasCodebooks
from models.tokenizers.tokenizer import LatentSpec


@dataclass(frozen=True)
class ActorCriticConfig(CheckedConfig):
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    horizon: Annotated[int, Range(1, 1000)] = 15
    """Steps of a rollout."""
    discount: Annotated[float, Range(0, 1)] = 0.99
    """Factor on a reward one step later."""
    lam: Annotated[float, Range(0, 1)] = 0.95
    """Lambda of the returns: 0 uses the critic after one step, 1 only at the end."""
    entropy: Annotated[float, Range(0, 10**6)] = 3e-4
    """Weight of the policy's entropy."""
    slow_critic_rate: Annotated[float, Range(above=0, high=1)] = 0.02
    """Rate at which the slow critic follows the critic, per step."""
    return_norm_rate: Annotated[float, Range(above=0, high=1)] = 0.01
    """Rate of the running range of returns, per step."""
    bc_weight: Annotated[float, Range(0, 10**6)] = 0.1
    """Weight of behavior cloning, which keeps the policy near the data."""
    rewards: Literal["world", "task_cost"] = "world"
    """What is earned: what the world's reward head predicts, or what the task costs less after a
    block of actions, for which a task_cost of the run is needed."""

    ADDED: ClassVar[frozenset[str]] = frozenset({"rewards"})


class Rollout(NamedTuple):
    """A rollout of H steps from B states."""

    latents: Tensor  # (H + 1, B, N) or (H + 1, B, P, D)
    actions: Tensor  # (H, B, A), normalized, or (H, B) codes
    rewards: Tensor  # (H, B), that each action led to
    continues: Tensor  # (H, B), probabilities that each action led to


class ActorCritic(TrainedController):
    """A policy and a critic, each with an encoder of its own on the same latents."""

    needs = frozenset({"latents", "actions", "continues"})
    best = Best("improvement_ci_low")

    return_scale: Tensor

    def __init__(self, config: ActorCriticConfig, latents: LatentSpec, actions: ActionSpec) -> None:
        super().__init__()
        self.config = config
        self.policy = self.make_policy(latents, actions)
        self.critic = Critic(config.policy, latents)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.register_buffer("return_scale", torch.zeros(()))
        self._pending: list[Tensor] = []  # returns of each micro-batch, for after_step

    def make_policy(self, latents: LatentSpec, actions: ActionSpec) -> LatentPolicy:
        return LatentPolicy(self.config.policy, latents, actions)

    @property
    def learns_through_world(self) -> bool:
        """Gradients of the returns reach the policy through the world's steps."""
        return False

    def load_codebook(self, source: HasCodebooks) -> None:
        for encoder in (self.policy.encoder, self.critic.encoder, self.slow_critic.encoder):
            encoder.load_codebook(source)

    def act(self, state: State, goal: Tensor | None = None) -> Tensor:
        return self.policy.act(state, goal)

    def loss(self, batch: Batch, world: RewardedWorld) -> Losses:
        """Roll out from the last of latents (B, T, N), with actions (B, T, A) between them.

        `bc_latents` and `bc_actions` in the batch's extra are what to clone, as in
        `LatentPolicy.loss`.  A true end, by the batch's continues (B, T), starts no rollout.  The
        advantage's mean is that of the (micro-)batch.
        """
        latents, actions = batch.require("latents", "actions")
        bc_latents, bc_actions = batch.require("bc_latents", "bc_actions")
        rollout = self.imagine(world, latents, actions)
        config, steps = self.config, rollout.latents.detach()
        values = self.values(rollout.latents)
        discounts = config.discount * rollout.continues
        returns = lambda_returns(rollout.rewards, values, discounts, config.lam)  # (H, B)
        dist = self.policy.distribution(steps[:-1].flatten(0, 1))
        gain = self.actor_gain(dist, rollout, returns, values[:-1])
        with torch.no_grad():
            if self.training:
                self._pending.append(returns.detach().flatten())
            weights = torch.cumprod(torch.cat([lives(batch), discounts[:-1]]), dim=0)
        entropy = dist.entropy().view(weights.shape)
        actor_loss = -(weights * (gain + config.entropy * entropy)).mean()
        features = self.critic.features(steps[:-1].flatten(0, 1))
        with torch.no_grad():
            slow_value = self.slow_critic(steps[:-1].flatten(0, 1))
        head, target = self.critic.out, returns.detach().flatten()
        critic_loss = head.loss(features, target) + head.loss(features, slow_value)
        bc_loss = self.policy.loss(Batch(latents=bc_latents, actions=bc_actions))["bc_nll"]
        return {
            "actor": actor_loss,
            "critic": (weights.flatten() * critic_loss).mean(),
            "bc": config.bc_weight * bc_loss,
            "imagined_return": returns[0].mean().detach(),
            "imagined_reward": rollout.rewards.mean().detach(),
            "entropy": entropy.mean().detach(),
            "return_scale": self.return_scale.clone(),
        }

    @torch.no_grad()
    def values(self, latents: Tensor) -> Tensor:
        """The critic's, of a rollout's latents: (H + 1, B)."""
        return self.critic(latents.flatten(0, 1)).view(latents.shape[:2])

    def actor_gain(
        self, dist: Distribution, rollout: Rollout, returns: Tensor, values: Tensor
    ) -> Tensor:
        """What the actor raises, (H, B): by REINFORCE, the likelihood of actions by their
        advantage.

        dist: the policy's, of H * B rows.  returns, values: (H, B).
        """
        advantage = (returns - values) / self.known_scale(returns).clamp(min=1e-2)
        # an untrained critic underestimates: every action would look good
        advantage = advantage - advantage.mean(1, keepdim=True)
        log_prob = dist.log_prob(rollout.actions.flatten(0, 1)).view(returns.shape)
        return log_prob * advantage

    def known_scale(self, returns: Tensor) -> Tensor:
        """The running range of returns; until it has seen a step, that of the returns at hand."""
        at_hand = return_range(returns.detach())
        return torch.where(self.return_scale > 0, self.return_scale, at_hand)

    def sample_action(self, latents: Tensor) -> Tensor:
        """A normalized action, (B, A), or code, (B,), for states in a rollout."""
        action = self.policy.distribution(latents).sample()
        return action.clamp(-1, 1) if self.policy.actions.kind == "continuous" else action

    def imagine(
        self,
        world: RewardedWorld,
        latents: Tensor,
        actions: Tensor,
        horizon: int | None = None,
    ) -> Rollout:
        """Roll out the sampled policy from the last of latents (B, T, N)."""
        with torch.set_grad_enabled(self.training and self.learns_through_world):
            return self._roll_out(world, latents, actions, horizon or self.config.horizon)

    def _roll_out(
        self, world: RewardedWorld, latents: Tensor, actions: Tensor, horizon: int
    ) -> Rollout:
        continuous = self.policy.actions.kind == "continuous"
        state = world.start_from(latents, actions[:, : latents.shape[1] - 1])
        rollout_latents, rollout_actions, rewards, continues = [state.latents], [], [], []
        for _ in range(horizon):
            action = self.sample_action(state.latents)
            state = world.step_from(state, action.clamp(-1, 1) if continuous else action)
            rollout_latents.append(state.latents)
            rollout_actions.append(action)
            rewards.append(state.reward.float())
            continues.append(state.continues.float())
        return Rollout(
            torch.stack(rollout_latents),
            torch.stack(rollout_actions),
            torch.stack(rewards),
            torch.stack(continues),
        )

    def after_step(self) -> None:
        """Move the return scale, by all micro-batches together, and the slow critic."""
        if self._pending:
            found = return_range(torch.cat(self._pending))
            self._pending = []
            # `if` would wait for a GPU
            rate = torch.where(self.return_scale > 0, self.config.return_norm_rate, 1.0)
            self.return_scale.lerp_(found, rate)
        for slow, fast in zip(self.slow_critic.parameters(), self.critic.parameters(), strict=True):
            slow.lerp_(fast, self.config.slow_critic_rate)


class Critic(nn.Module):
    """Expected return of a state, as a distribution over bins."""

    def __init__(self, config: PolicyConfig, latents: LatentSpec) -> None:
        super().__init__()
        self.encoder = make_encoder(config, latents)
        self.features = nn.Sequential(
            self.encoder, mlp(self.encoder.out_dim, config.hidden_dim, config.hidden_dim), nn.SiLU()
        )
        self.out = TwoHot(config.hidden_dim)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, N) codes or (B, P, D) -> (B,)."""
        return self.out(self.features(latents))


def lives(starts: Batch) -> Tensor:
    """1 where an episode continues after the last frame of a start, 0 at a true end: (1, B)."""
    (latents,) = starts.require("latents")
    if starts.continues is None:
        return torch.ones(1, len(latents), device=latents.device)
    return starts.continues[None, :, -1].float()


def return_range(returns: Tensor) -> Tensor:
    """From the 5th to the 95th percentile (DreamerV3, equation 11): (...) -> ()."""
    flat = returns.flatten()
    return torch.quantile(flat, 0.95) - torch.quantile(flat, 0.05)


def lambda_returns(rewards: Tensor, values: Tensor, discounts: Tensor, lam: float) -> Tensor:
    """R_t = r_t + d_t ((1 - lambda) v_{t+1} + lambda R_{t+1}), R at the end = v (equation 7).

    rewards, discounts d: (H, B), of what action t led to.  values: (H + 1, B).  Returns (H, B).
    """
    next_return = values[-1]
    returns = []
    for t in range(len(rewards) - 1, -1, -1):
        next_return = rewards[t] + discounts[t] * ((1 - lam) * values[t + 1] + lam * next_return)
        returns.append(next_return)
    return torch.stack(returns[::-1])
