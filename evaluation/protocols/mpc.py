"""Planning in a world model as a policy: it is given frames, and the frame of the goal."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from data.clips import Clips
from data.shards.episode_dataset import EpisodeDataset
from evaluation.measures.probe import fit_ridge
from evaluation.measures.sample_clips import sample_clips
from evaluation.protocols.policies import Observation
from models.dynamics.dynamics import State
from models.layers.precision import to_float64
from models.planning.plan import GoalPlanner
from models.planning.plan_executor import PlanExecutor
from models.world import World


class LastActionProbe:
    """Predict the action before a frame from its latents, by ridge regression on training episodes.

    Where no last action is known, a plan could start anywhere, often with a jump that is in no
    episode and that the model cannot predict.
    """

    def __init__(self, world: World, dataset: EpisodeDataset, num_clips: int = 2000) -> None:
        clips = Clips(dataset, "train", clip_length=2, memory_limit=0)
        indices, _ = sample_clips(clips, num_clips, seed=0)
        batches = [
            clips.batch(part) for part in np.array_split(indices, max(1, len(indices) // 100))
        ]
        self.world = world
        with torch.no_grad():
            x = torch.cat([self._read(world.embed(p.frames[:, 1])) for p in batches])
        action = torch.cat([p.actions[:, 0] for p in batches]).to(x)
        self.mean, self.std = x.mean(0), x.std(0).clamp(min=1e-6)
        self.action_mean = action.mean(0)
        self.weight = fit_ridge((x - self.mean) / self.std, action - self.action_mean)

    def __call__(self, latents: Tensor) -> Tensor:
        """(B, N) codes or (B, P, D) -> the last action, (B, A), in the environment's units."""
        x = self._read(latents)
        action = (x - self.mean) / self.std @ self.weight + self.action_mean
        spec = self.world.actions
        action = action.clamp(action.new_tensor(spec.low), action.new_tensor(spec.high))
        return action.float().to(latents.device)

    def _read(self, latents: Tensor) -> Tensor:
        """(B, F): vectors as they are, of codes theirs."""
        vectors = latents if latents.is_floating_point() else self.world.vectors(latents)
        return to_float64(vectors.flatten(1))


class MpcPolicy:
    """Plan in the world towards the goal's frame, from the frames seen so far."""

    needs_pixels = True

    def __init__(
        self,
        world: World,
        planner: GoalPlanner,
        receding_horizon: int | None = None,
        last_action_probe: Callable[[Tensor], Tensor] | None = None,
        goals: Tensor | None = None,
        patience: int | None = None,
        by_pose: bool = False,
    ) -> None:
        """receding_horizon: actions executed before replanning; None is the whole plan.
        last_action_probe: predicts the last action from latents, where none is known.
        goals: latents of a task's goals, (G, P, D), where a protocol has none of its own.
        patience: see `PlanExecutor`.
        by_pose: the planner is given the poses of the task's goals, where observations have them.
        """
        self.world, self.last_action_probe, self.goals = world, last_action_probe, goals
        self.by_pose = by_pose
        self.executor = PlanExecutor(planner, receding_horizon, patience)

    @torch.no_grad()
    def reset(self, obs: Observation, goal: Observation | None) -> None:
        if self.by_pose and obs.task_goals is not None:
            poses = torch.from_numpy(obs.task_goals).float()
            self.goal_latents = poses.to(self.world.device)
        elif self.goals is not None:
            self.goal_latents = self.goals.expand(len(obs.states), *self.goals.shape)
        else:
            assert goal is not None and goal.frames is not None, "planning needs a goal"
            frames = torch.from_numpy(goal.frames).to(self.world.device)
            self.goal_latents = self.world.embed(frames)
        self.frame_history: list[np.ndarray] = []  # context frames and the actions between them
        self.action_history: list[np.ndarray] = []
        self.executor.reset()

    def act(self, obs: Observation) -> np.ndarray:
        assert obs.frames is not None
        context = self.world.context
        self.frame_history = [*self.frame_history, obs.frames][-context:]
        self.action_history = self.action_history[-(context - 1) :] if context > 1 else []
        rows = np.flatnonzero(obs.active)
        state, last_action = None, None
        if self.executor.needs_plan:
            state, last_action = self._observe(rows)
        action = self.executor.act(state, self.goal_latents, last_action, torch.from_numpy(rows))
        self.action_history.append(action.numpy())
        return self.action_history[-1]

    @torch.no_grad()
    def _observe(self, rows: np.ndarray) -> tuple[State, Tensor | None]:
        """Give the state at the last frame and the action before it, of the worlds at `rows`."""
        device = self.world.device
        frames = torch.from_numpy(np.stack([f[rows] for f in self.frame_history], 1)).to(device)
        actions = [torch.from_numpy(a[rows]).to(device) for a in self.action_history]
        no_actions = torch.zeros(len(rows), 0, self.world.actions.size)
        state = self.world.reset(frames, torch.stack(actions, 1) if actions else no_actions)
        if actions:
            return state, actions[-1]
        return state, self.last_action_probe(state.latents) if self.last_action_probe else None
