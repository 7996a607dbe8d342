"""Actor-critic on imagined trajectories (DreamerV3, arXiv:2301.04104, section 3).

Letters: B starts, H imagined steps, P patches, N latents a frame, D latent width, A action numbers.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from data.actions import ActionSpec
from models.controllers.policy import LatentPolicy, PolicyConfig, make_encoder, mlp
from models.dynamics.dynamics import State
from models.layers.heads import TwoHot
from models.tokenizers.tokenizer import LatentSpec, Tokenizer
from models.world import World


@dataclass(frozen=True)
class ActorCriticConfig:
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    horizon: int = 15
    """Imagined steps."""
    discount: float = 0.99
    """Worth of a reward one step later."""
    lam: float = 0.95
    """Lambda of the returns: 0 trusts the critic after one step, 1 only at the end."""
    entropy: float = 3e-4
    """Weight of the policy's entropy."""
    slow_critic_rate: float = 0.02
    """Share of the critic that its slow copy takes over each step."""
    return_norm_rate: float = 0.01
    """Share of a batch in the running range of returns."""
    bc_weight: float = 0.1
    """Weight of behaviour cloning beside the actor's loss, so that few steps do no harm."""


class ActorCritic(nn.Module):
    """A policy and a critic; the critic looks at the same latents with eyes of its own."""

    return_scale: Tensor

    def __init__(self, config: ActorCriticConfig, latents: LatentSpec, actions: ActionSpec) -> None:
        super().__init__()
        self.config = config
        self.policy = LatentPolicy(config.policy, latents, actions)
        self.critic = Critic(config.policy, latents)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.register_buffer("scale", torch.zeros(()))

    def load_codebook(self, tokenizer: Tokenizer) -> None:
        for encoder in (self.policy.encoder, self.critic.encoder, self.slow_critic.encoder):
            encoder.load_codebook(tokenizer)

    def act(self, state: State, sample: bool = True) -> Tensor:
        return self.policy.act(state, sample)

    def loss(
        self,
        world: World,
        latents: Tensor,
        actions: Tensor,
        bc_latents: Tensor,
        bc_actions: Tensor,
    ) -> dict[str, Tensor]:
        """Imagine from the last of latents (B, T, N) with actions (B, T, A) between them.

        shown, shown_actions: what to clone, as in `PolicyController.loss`.
        """
        rollout_latents, rollout_actions, rewards, continues = self.imagine(world, latents, actions)
        config = self.config
        with torch.no_grad():
            values = self.critic(rollout_latents.flatten(0, 1)).view(
                rollout_latents.shape[:2]
            )  # (H + 1, B)
            discounts = config.discount * continues
            returns = lambda_returns(rewards, values, discounts, config.lam)  # (H, B)
            return_range = torch.quantile(returns.flatten(), 0.95) - torch.quantile(
                returns.flatten(), 0.05
            )
            self._update_return_scale(return_range)
            advantage = (returns - values[:-1]) / self.return_scale.clamp(min=1e-2)
            # until the critic knows what to expect, all that is done would look good
            advantage = advantage - advantage.mean(1, keepdim=True)
            weights = torch.cumprod(
                torch.cat([torch.ones_like(discounts[:1]), discounts[:-1]]), dim=0
            )
            self._update_slow_critic()
        dist = self.policy.distribution(rollout_latents[:-1].flatten(0, 1))
        log_prob = dist.log_prob(rollout_actions.flatten(0, 1)).view(weights.shape)
        entropy = dist.entropy().view(weights.shape)
        actor_loss = -(weights * (log_prob * advantage + config.entropy * entropy)).mean()
        features = self.critic.features(rollout_latents[:-1].flatten(0, 1))
        target = returns.flatten()
        with torch.no_grad():
            slow_value = self.slow_critic(rollout_latents[:-1].flatten(0, 1))
        head = self.critic.out
        critic_loss = head.loss(features, target) + head.loss(features, slow_value)
        bc_loss = self.policy.loss(bc_latents, bc_actions)["cloning"]
        return {
            "actor": actor_loss,
            "critic": (weights.flatten() * critic_loss).mean(),
            "anchor": config.bc_weight * bc_loss,
            "imagined_return": returns[0].mean(),
            "imagined_reward": rewards.mean(),
            "entropy": entropy.mean().detach(),
            "scale": self.return_scale.clone(),
        }

    @torch.no_grad()
    def imagine(
        self, world: World, latents: Tensor, actions: Tensor, horizon: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Follow the sampled policy: latents (H + 1, B, N), normalised actions (H, B, A),
        rewards (H, B) and continue probabilities (H, B) of what each action led to."""
        state = world.dynamics.start(latents, actions[:, : latents.shape[1] - 1])
        rollout_latents, rollout_actions, rewards, continues = [state.latents], [], [], []
        for _ in range(horizon or self.config.horizon):
            action = self.policy.distribution(state.latents).sample()
            if self.policy.actions.kind == "continuous":
                action = action.clamp(-1, 1)
            state = world.dynamics.step(state, action)
            rollout_latents.append(state.latents)
            rollout_actions.append(action)
            rewards.append(state.reward.float())
            continues.append(state.continues.float())
        return (
            torch.stack(rollout_latents),
            torch.stack(rollout_actions),
            torch.stack(rewards),
            torch.stack(continues),
        )

    def _update_return_scale(self, return_range: Tensor) -> None:
        rate = torch.where(
            self.return_scale > 0, self.config.return_norm_rate, 1.0
        )  # `if` would wait for a GPU
        self.return_scale.lerp_(return_range, rate)

    def _update_slow_critic(self) -> None:
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


def lambda_returns(rewards: Tensor, values: Tensor, discounts: Tensor, lam: float) -> Tensor:
    """R_t = r_t + live_t ((1 - lambda) v_{t+1} + lambda R_{t+1}), R at the end = v (equation 7).

    rewards, live: (H, B), of what action t led to.  values: (H + 1, B).  Returns (H, B).
    """
    next_return = values[-1]
    returns = []
    for t in range(len(rewards) - 1, -1, -1):
        next_return = rewards[t] + discounts[t] * ((1 - lam) * values[t + 1] + lam * next_return)
        returns.append(next_return)
    return torch.stack(returns[::-1])
