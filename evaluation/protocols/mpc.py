"""What finds ways in an imagined world as a policy: it looks at frames, and is shown the goal's."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from data.clips import Clips
from data.shards import Recordings
from evaluation.measures.sample_clips import spread_windows
from evaluation.protocols.policies import Policy, View
from models.controllers.planner import Plan, ToGoal
from models.world import World


class Hand:
    """Where the hand is, in a frame before which no action is known: its last action, read from the
    latents by ridge regression on training episodes.

    Without it a plan's first leg could begin anywhere, and the best imagined way often begins with
    a leap that no recording shows and the model knows nothing of.
    """

    PENALTY = 1e-3  # beside a variance of 1

    def __init__(self, world: World, recordings: Recordings, count: int = 2000) -> None:
        clips = Clips(recordings, "train", frames=2, memory_limit=0)
        chosen, _ = spread_windows(clips, count, seed=0)
        parts = [clips.batch(part) for part in np.array_split(chosen, max(1, len(chosen) // 100))]
        with torch.no_grad():
            seen = torch.cat([world.vectors(world.encode(p.frames[:, 1])) for p in parts])
        x = seen.flatten(1).double()
        action = torch.cat([p.actions[:, 0] for p in parts]).to(x)
        self.world = world
        self.centre, self.spread = x.mean(0), x.std(0).clamp(min=1e-6)
        self.middle = action.mean(0)
        x = (x - self.centre) / self.spread
        gram = x.T @ x + self.PENALTY * len(x) * torch.eye(x.shape[1]).to(x)
        self.map = torch.linalg.solve(gram, x.T @ (action - self.middle))

    def __call__(self, latents: Tensor) -> Tensor:
        """(B, N) codes or (B, P, D) -> (B, A), in the environment's units."""
        x = self.world.vectors(latents).flatten(1).double()
        action = (x - self.centre) / self.spread @ self.map + self.middle
        spec = self.world.actions
        return action.clamp(action.new_tensor(spec.low), action.new_tensor(spec.high)).float()


class PlansInWorld:
    """Plan, carry out the first `keep` actions, revise what is left of the plan from what is seen.

    A plan arrives when its last leg ends; then the next is made. With `keep` as long as a plan it
    is never revised, as LeWorldModel is measured: two plans in a budget of 50 steps.
    """

    looks = True

    def __init__(
        self,
        world: World,
        planner: ToGoal,
        keep: int = 25,
        hand: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """hand: reads the last action from latents, where none is known (`Hand`)."""
        length = planner.legs * planner.leg
        if not 0 < keep <= length or keep % planner.leg:
            raise ValueError(
                f"{keep} actions of a plan of {length} cannot be kept; give --keep whole legs of "
                f"{planner.leg}, at most {length}"
            )
        self.world, self.planner, self.keep, self.hand = world, planner, keep, hand
        self.seconds: list[float] = []
        """Of each call of the planner, by world planned in."""

    @torch.no_grad()  # not inference mode: a planner may follow gradients
    def begin(self, view: View, goal: View | None) -> None:
        assert goal is not None and goal.frames is not None, "planning needs a goal"
        device = self.world.device
        self.goals = self.world.encode(torch.from_numpy(goal.frames).to(device))
        self.seen: list[np.ndarray] = []  # frames and, between them, actions so far
        self.done: list[np.ndarray] = []
        self.left = 0
        self.ways: Tensor | None = None  # (N, E, A), what is left of the plans

    def act(self, view: View) -> np.ndarray:
        assert view.frames is not None
        self.seen = [*self.seen, view.frames][-self.world.context :]
        self.done = self.done[-(self.world.context - 1) :] if self.world.context > 1 else []
        if self.left == 0:
            rows = np.flatnonzero(view.active)
            plan = self._plan(rows)
            self.left = min(self.keep, plan.actions.shape[1])
            self.plans = np.zeros((len(view.states), *plan.actions.shape[1:]), np.float32)
            self.plans[rows] = plan.actions.float().cpu().numpy()
            self.at = 0
        action = self.plans[:, self.at]
        self.at += 1
        self.left -= 1
        self.done.append(action)
        return action

    @torch.no_grad()
    def _plan(self, rows: np.ndarray) -> Plan:
        frames = torch.from_numpy(np.stack([f[rows] for f in self.seen], 1)).to(self.world.device)
        actions = [torch.from_numpy(a[rows]).to(self.world.device) for a in self.done]
        none = torch.zeros(len(rows), 0, self.world.actions.size)
        done = torch.stack(actions, 1) if actions else none
        state = self.world.reset(frames, done)
        last: Tensor | None = actions[-1] if actions else None
        if last is None and self.hand is not None:
            last = self.hand(state.latents)
        goals = self.goals[torch.from_numpy(rows).to(self.world.device)]
        started = time.perf_counter()
        plan = self.planner.to_goal(
            state, goals, last, None if self.ways is None else self.ways[rows]
        )
        self.seconds.append((time.perf_counter() - started) / len(rows))
        rest = plan.ends[:, self.keep // self.planner.leg :]
        self.ways = None
        if rest.shape[1] > 1:
            self.ways = rest.new_zeros(len(self.goals), *rest.shape[1:])
            self.ways[rows] = rest
        return plan


class Filmed:
    """Keeps what a policy saw in its first episodes: (T, 3, H, W) uint8 each, the goal first."""

    looks = True

    def __init__(self, policy: Policy, episodes: int) -> None:
        self.policy, self.episodes = policy, episodes
        self._films: list[np.ndarray] = []
        self._full = False

    def begin(self, view: View, goal: View | None) -> None:
        self._full = bool(self._films)
        if not self._full:
            assert goal is not None and goal.frames is not None
            self._films = [goal.frames[: self.episodes]]
        self.policy.begin(view, goal)

    def act(self, view: View) -> np.ndarray:
        if not self._full:
            assert view.frames is not None
            self._films.append(view.frames[: self.episodes])
        return self.policy.act(view)

    def films(self) -> Tensor:
        """(episodes, 1 + steps, 3, H, W) uint8; an episode that ended early stands still."""
        return torch.from_numpy(np.stack(self._films, 1))
