"""What finds ways in an imagined world as a policy: it looks at frames, and is shown the goal's."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from data.clips import Clips
from data.shards import EpisodeDataset
from evaluation.measures.sample_clips import sample_clips
from evaluation.protocols.policies import Observation, Policy
from models.controllers.planner import GoalPlanner, Plan
from models.world import World


class LastActionProbe:
    """Where the hand is, in a frame before which no action is known: its last action, read from the
    latents by ridge regression on training episodes.

    Without it a plan's first leg could begin anywhere, and the best imagined way often begins with
    a leap that no recording shows and the model knows nothing of.
    """

    RIDGE = 1e-3  # beside a variance of 1

    def __init__(self, world: World, dataset: EpisodeDataset, num_clips: int = 2000) -> None:
        clips = Clips(dataset, "train", clip_length=2, memory_limit=0)
        indices, _ = sample_clips(clips, num_clips, seed=0)
        batches = [
            clips.batch(part) for part in np.array_split(indices, max(1, len(indices) // 100))
        ]
        with torch.no_grad():
            latents = torch.cat([world.vectors(world.encode(p.frames[:, 1])) for p in batches])
        x = latents.flatten(1).double()
        action = torch.cat([p.actions[:, 0] for p in batches]).to(x)
        self.world = world
        self.mean, self.std = x.mean(0), x.std(0).clamp(min=1e-6)
        self.action_mean = action.mean(0)
        x = (x - self.mean) / self.std
        gram = x.T @ x + self.RIDGE * len(x) * torch.eye(x.shape[1]).to(x)
        self.weight = torch.linalg.solve(gram, x.T @ (action - self.action_mean))

    def __call__(self, latents: Tensor) -> Tensor:
        """(B, N) codes or (B, P, D) -> (B, A), in the environment's units."""
        x = self.world.vectors(latents).flatten(1).double()
        action = (x - self.mean) / self.std @ self.weight + self.action_mean
        spec = self.world.actions
        return action.clamp(action.new_tensor(spec.low), action.new_tensor(spec.high)).float()


class MpcPolicy:
    """Plan, carry out the first `keep` actions, revise what is left of the plan from what is seen.

    A plan arrives when its last leg ends; then the next is made. With `keep` as long as a plan it
    is never revised, as LeWorldModel is measured: two plans in a budget of 50 steps.
    """

    needs_pixels = True

    def __init__(
        self,
        world: World,
        planner: GoalPlanner,
        receding_horizon: int = 25,
        last_action_probe: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """hand: reads the last action from latents, where none is known (`Hand`)."""
        length = planner.horizon * planner.action_block
        if not 0 < receding_horizon <= length or receding_horizon % planner.action_block:
            raise ValueError(
                f"{receding_horizon} actions of a plan of {length} cannot be kept; give --keep whole legs of "
                f"{planner.action_block}, at most {length}"
            )
        self.world, self.planner, self.receding_horizon, self.last_action_probe = (
            world,
            planner,
            receding_horizon,
            last_action_probe,
        )
        self.plan_seconds: list[float] = []
        """Of each call of the planner, by world planned in."""

    @torch.no_grad()  # not inference mode: a planner may follow gradients
    def reset(self, obs: Observation, goal: Observation | None) -> None:
        assert goal is not None and goal.frames is not None, "planning needs a goal"
        device = self.world.device
        self.goal_latents = self.world.encode(torch.from_numpy(goal.frames).to(device))
        self.frame_history: list[np.ndarray] = []  # frames and, between them, actions so far
        self.action_history: list[np.ndarray] = []
        self.steps_left = 0
        self.warm_start: Tensor | None = None  # (N, E, A), what is left of the plans

    def act(self, obs: Observation) -> np.ndarray:
        assert obs.frames is not None
        self.frame_history = [*self.frame_history, obs.frames][-self.world.context :]
        self.action_history = (
            self.action_history[-(self.world.context - 1) :] if self.world.context > 1 else []
        )
        if self.steps_left == 0:
            rows = np.flatnonzero(obs.active)
            plan = self._plan(rows)
            self.steps_left = min(self.receding_horizon, plan.actions.shape[1])
            self.plans = np.zeros((len(obs.states), *plan.actions.shape[1:]), np.float32)
            self.plans[rows] = plan.actions.float().cpu().numpy()
            self.plan_step = 0
        action = self.plans[:, self.plan_step]
        self.plan_step += 1
        self.steps_left -= 1
        self.action_history.append(action)
        return action

    @torch.no_grad()
    def _plan(self, rows: np.ndarray) -> Plan:
        frames = torch.from_numpy(np.stack([f[rows] for f in self.frame_history], 1)).to(
            self.world.device
        )
        actions = [torch.from_numpy(a[rows]).to(self.world.device) for a in self.action_history]
        no_actions = torch.zeros(len(rows), 0, self.world.actions.size)
        past_actions = torch.stack(actions, 1) if actions else no_actions
        state = self.world.reset(frames, past_actions)
        last_action: Tensor | None = actions[-1] if actions else None
        if last_action is None and self.last_action_probe is not None:
            last_action = self.last_action_probe(state.latents)
        goals = self.goal_latents[torch.from_numpy(rows).to(self.world.device)]
        start = time.perf_counter()
        plan = self.planner.plan(
            state, goals, last_action, None if self.warm_start is None else self.warm_start[rows]
        )
        self.plan_seconds.append((time.perf_counter() - start) / len(rows))
        remaining = plan.knots[:, self.receding_horizon // self.planner.action_block :]
        self.warm_start = None
        if remaining.shape[1] > 1:
            self.warm_start = remaining.new_zeros(len(self.goal_latents), *remaining.shape[1:])
            self.warm_start[rows] = remaining
        return plan


class RecordVideo:
    """Keeps what a policy saw in its first episodes: (T, 3, H, W) uint8 each, the goal first."""

    needs_pixels = True

    def __init__(self, policy: Policy, num_episodes: int) -> None:
        self.policy, self.num_episodes = policy, num_episodes
        self._frames: list[np.ndarray] = []
        self._full = False

    def reset(self, obs: Observation, goal: Observation | None) -> None:
        self._full = bool(self._frames)
        if not self._full:
            assert goal is not None and goal.frames is not None
            self._frames = [goal.frames[: self.num_episodes]]
        self.policy.reset(obs, goal)

    def act(self, obs: Observation) -> np.ndarray:
        if not self._full:
            assert obs.frames is not None
            self._frames.append(obs.frames[: self.num_episodes])
        return self.policy.act(obs)

    def videos(self) -> Tensor:
        """(episodes, 1 + steps, 3, H, W) uint8; an episode that ended early stands still."""
        return torch.from_numpy(np.stack(self._frames, 1))
