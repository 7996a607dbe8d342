"""DreamerV3's actor-critic (arXiv:2301.04104, section 3), for recordings alone.

What differs from `ActorCritic`: states are sampled in rollouts, the advantage is that of the
paper, actions of codes have a share of uniform ones, and the actor may be trained by gradients
through the world.

Letters: B starts, H rollout steps, N latents of a state, A action numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from torch import Tensor
from torch.distributions import Categorical
from torch.func import functional_call

from data.actions import ActionSpec
from data.ranges import Range
from models.controllers.actor_critic import ActorCritic, ActorCriticConfig, Rollout
from models.controllers.cost_reward import RewardedWorld
from models.controllers.policy import Distribution, LatentPolicy, PolicyConfig
from models.layers.categorical_groups import unimix_probs
from models.layers.distributions import GaussianMixture, MultiCategorical
from models.layers.sampling import Sampling
from models.tokenizers.tokenizer import LatentSpec


@dataclass(frozen=True)
class DreamerConfig(ActorCriticConfig):
    policy: PolicyConfig = field(
        default_factory=lambda: PolicyConfig(num_modes=1, min_std=0.1, dropout=0.0)
    )
    discount: Annotated[float, Range(0, 1)] = 1 - 1 / 333
    """Factor on a reward one step later."""
    actor_gradient: Literal["reinforce", "dynamics"] = "reinforce"
    """REINFORCE, or gradients of the returns through the world, of continuous actions alone."""
    min_return_scale: Annotated[float, Range(above=0, high=10**6)] = 1.0
    """Smallest range that returns are divided by: small ones are not blown up to noise."""
    temperature: Annotated[float, Range(0, 1000)] = 1.0
    """Of the world's own choices in a rollout; 0 takes the likeliest."""


class Dreamer(ActorCritic):
    """Actor and critic on the states of a world."""

    config: DreamerConfig

    def __init__(self, config: DreamerConfig, latents: LatentSpec, actions: ActionSpec) -> None:
        if config.actor_gradient == "dynamics" and actions.kind != "continuous":
            raise ValueError(
                "--model.actor-gradient dynamics is for continuous actions, and these are codes; "
                "give reinforce"
            )
        super().__init__(config, latents, actions)

    def make_policy(self, latents: LatentSpec, actions: ActionSpec) -> LatentPolicy:
        return UnimixPolicy(self.config.policy, latents, actions)

    def sample_action(self, latents: Tensor) -> Tensor:
        """A sample beyond [-1, 1] stays as it is: the world clamps it, and its likelihood is that
        of the sample."""
        dist = self.policy.distribution(latents)
        return dist.rsample() if isinstance(dist, GaussianMixture) else dist.sample()

    @property
    def learns_through_world(self) -> bool:
        return self.config.actor_gradient == "dynamics"

    def values(self, latents: Tensor) -> Tensor:
        """Where the actor learns through the world, also how values depend on the states that its
        actions lead to; not on the critic's weights, which have a loss of their own."""
        if not self.learns_through_world:
            return super().values(latents)
        weights = {name: weight.detach() for name, weight in self.critic.named_parameters()}
        values = functional_call(self.critic, weights, (latents.flatten(0, 1),))
        return values.view(latents.shape[:2])

    def imagine(
        self,
        world: RewardedWorld,
        latents: Tensor,
        actions: Tensor,
        horizon: int | None = None,
    ) -> Rollout:
        with world.sampled(Sampling(temperature=self.config.temperature)):
            return super().imagine(world, latents, actions, horizon)

    def actor_gain(
        self, dist: Distribution, rollout: Rollout, returns: Tensor, values: Tensor
    ) -> Tensor:
        """The advantage is (R - v) / max(1, S), S the running range of returns (equation 7)."""
        scale = self.known_scale(returns).clamp(min=self.config.min_return_scale)
        advantage = (returns - values.detach()) / scale
        if self.learns_through_world:
            return advantage  # of returns that depend on the actions
        log_prob = dist.log_prob(rollout.actions.flatten(0, 1)).view(returns.shape)
        return log_prob * advantage.detach()


class UnimixPolicy(LatentPolicy):
    """A policy over codes takes 1% of its actions uniformly."""

    def distribution(self, latents: Tensor) -> Distribution:
        dist = super().distribution(latents)
        if isinstance(dist, MultiCategorical):
            dist.dists = [_with_uniform(factor) for factor in dist.dists]
        return _with_uniform(dist) if isinstance(dist, Categorical) else dist


def _with_uniform(dist: Categorical) -> Categorical:
    return Categorical(logits=unimix_probs(dist.logits).log(), validate_args=False)
