"""What a policy earns in imagination, and how much more than the clone it started from."""

from __future__ import annotations

import torch
from torch import Tensor

from data.batch import Batch
from models.controllers.actor_critic import ActorCritic, lives
from models.controllers.cost_reward import RewardedWorld


def imagined_rewards(model: ActorCritic, world: RewardedWorld, starts: Batch) -> Tensor:
    """Rewards over twice the horizon, each as likely as the episode is not over before it, from the
    same draws each time: (2 H, B)."""
    latents, actions = starts.require("latents", "actions")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        rollout = model.imagine(world, latents, actions, 2 * model.config.horizon)
    reached = torch.cumprod(torch.cat([lives(starts), rollout.continues[:-1]]), dim=0)
    return reached * rollout.rewards


def improvement(rewards: Tensor, baseline: Tensor) -> dict[str, float]:
    """How much better than the clone's rewards, (2 H, starts) each: `improvement_ci_low` is the
    lower end of a 95% interval of the mean over starts, 0 for the clone itself."""
    better = (rewards - baseline).mean(0)
    low = better.mean() - 1.96 * better.std(correction=0) / len(better) ** 0.5
    return {
        "imagined_reward": float(rewards.mean()),
        "final_reward": float(rewards[-1].mean()),
        "improvement": float(better.mean()),
        "improvement_ci_low": float(low),
    }
