"""Search for the actions that bring a world model to a goal.

One sampler and four optimizers: the cross-entropy method (Rubinstein 1999), MPPI (Williams et al.,
arXiv:1509.01149), gradient descent through the model, and random shooting.

A candidate is a sequence of knots; actions between two knots are interpolated linearly.  With an
action block of 1 every action is free.  Discrete actions cannot be interpolated.

Letters: B worlds, N candidates, H action blocks, E = H + 1 knots, T = H * action_block actions,
A action numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from torch import Tensor

from data.ranges import MAX_SEED, CheckedConfig, Range
from models.dynamics.dynamics import State
from models.planning.candidates import (
    elite_weights,
    goals_in_turn,
    interpolate,
    select_best,
    weighted_moments,
    worst_if_not_finite,
)
from models.planning.plan import GoalDistance, Objective, Plan, PolicyPrior
from models.world import World

Search = Callable[..., tuple[Tensor, Tensor]]
MAX_LEVEL = 4
"""Stalls beyond this widen a search no more."""


@dataclass(frozen=True)
class PlannerConfig(CheckedConfig):
    """Settings of a search over sequences of continuous actions."""

    method: Literal["cem", "mppi", "gradient", "shooting"] = "cem"
    num_samples: Annotated[int, Range(1, 10**6)] = 300
    """Candidates per iteration."""
    iterations: Annotated[int, Range(1, 10**5)] = 30
    warm_start_iterations: Annotated[int, Range(1, 10**5)] = 5
    """Iterations with a warm start: the policy prior's candidate, or the rest of a plan."""
    num_elites: Annotated[int, Range(1, 10**6)] = 30
    """Candidates that the next iteration is sampled around (CEM)."""
    horizon: Annotated[int, Range(1, 10**4)] = 5
    """Action blocks of a plan."""
    action_block: Annotated[int, Range(1, 10**4)] = 5
    """Actions of a block, interpolated between two knots."""
    init_std: Annotated[float, Range(above=0, high=10)] = 0.2
    """Standard deviation between two knots at first; an action spans 2."""
    prior_noise_std: Annotated[float, Range(0, 10)] = 0.2
    """Standard deviation of the noise on the policy prior's first blocks."""
    prior_noise_blocks: Annotated[int, Range(1, 10**4)] = 3
    """Largest number of first blocks with that noise."""
    warm_start_std: Annotated[float, Range(above=0, high=10)] = 0.05
    """Standard deviation around the policy prior's best candidate at first."""
    min_std: Annotated[float, Range(0, 10)] = 0.01
    """Smallest standard deviation of the search."""
    temperature: Annotated[float, Range(above=0, high=10**6)] = 0.1
    """Of MPPI's weights, in standard deviations of the cost."""
    learning_rate: Annotated[float, Range(above=0, high=10)] = 0.05
    """Of gradient descent."""
    running_weight: Annotated[float, Range(0, 1)] = 0.0
    """Share of the mean cost over a plan's blocks; the rest is the cost at its end."""
    max_parallel: Annotated[int, Range(1, 2**24)] = 8192
    """Largest batch of the model; the plan does not depend on it."""
    seed: Annotated[int, Range(0, MAX_SEED)] = 0

    def with_action_block(self, action_block: int, num_actions: int) -> PlannerConfig:
        """Use a policy prior's `action_block`, and a horizon that holds `num_actions`."""
        return replace(self, action_block=action_block, horizon=-(-num_actions // action_block))


@dataclass
class Noise:
    """All random numbers of a search, sampled before it starts."""

    gaussian: list[Tensor]
    """(1, N, H, A) of each iteration, normal."""
    init_knots: list[Tensor]
    """(1, N, 1, A), uniform in [-1, 1]: first knots of an iteration that samples them."""
    prior: Tensor | None = None
    """(N, H, A): noise on the policy prior."""


class Planner:
    """Plans in a world, whatever its tokenizer and dynamics.

    With a `policy_prior` the search starts from the best of its rollouts, each with noise on its
    first blocks (as in TD-MPC2, arXiv:2310.16828, and in POPLIN, arXiv:1906.08649, which perturb
    every step): one of them may find a detour that a search around a single rollout does not.
    `capture` may wrap the search, a function of states and tensors that never waits for a GPU, in a
    CUDA graph.
    """

    def __init__(
        self,
        config: PlannerConfig,
        world: World,
        capture: Callable[[Search], Search] | None = None,
        policy_prior: PolicyPrior | None = None,
        objective: Objective | None = None,
    ) -> None:
        """objective: of a task; by default the distance from the goal's latents."""
        if policy_prior is not None and policy_prior.action_block != config.action_block:
            raise ValueError(
                f"the planner's action block ({config.action_block}) differs from the policy "
                f"prior's ({policy_prior.action_block}); give --planner.action-block "
                f"{policy_prior.action_block}"
            )
        if world.actions.kind != "continuous":
            raise ValueError(
                "planning interpolates actions; discrete actions cannot be interpolated"
            )
        self.config, self.world, self.policy_prior = config, world, policy_prior
        self.objective: Objective = objective or GoalDistance(world)
        self._per_block = self.objective.per_block or config.running_weight > 0
        self.horizon, self.action_block = config.horizon, config.action_block
        self._search_fn: Search = self._search if capture is None else capture(self._search)

    def reset(self) -> None:
        """Nothing is remembered."""

    def plan(
        self,
        state: State,
        goal: Tensor,
        last_action: Tensor | None,
        warm_start: Tensor | None = None,
        stalls: Tensor | None = None,
    ) -> Plan:
        """Plan towards a goal's latents, (B, N) codes or (B, P, D), or towards any of a set of
        goals, (B, G, N) or (B, G, P, D), which the candidates take in turn.

        last_action: (B, A), in the environment's units, the first knot of the plan.
        warm_start: (B, E, A), knots to start the search from, unless the policy prior has better
        ones; it sets the horizon.
        stalls: (B,) int64 on the CPU, plans in a row that brought a world no nearer to its goal.
        Each widens the search: other random numbers, more noise, a longer horizon.
        """
        spec, device = self.world.actions, self.world.device
        first_knot = None if last_action is None else spec.normalize(last_action.to(device))
        # a policy prior reads a goal's latents, an objective its vectors
        prior_goal = None if self.policy_prior is None else goal
        inputs = (self.world.vectors(goal), first_knot, warm_start, prior_goal)
        horizon = self.config.horizon if warm_start is None else warm_start.shape[1] - 1
        rows = torch.arange(len(state))
        levels = torch.zeros_like(rows) if stalls is None else stalls.clamp(max=MAX_LEVEL)
        groups = {int(level): rows[levels == level] for level in levels.unique()}
        knots = torch.empty(len(state), horizon + 1, spec.size, device=device)
        cost = torch.empty(len(state), device=device)
        for level, members in groups.items():
            found, cost[members] = self._plan_rows(state, inputs, members, horizon, level)
            knots[members] = found[:, : horizon + 1]
        goal = inputs[0][:, 0] if inputs[0].ndim > 3 else inputs[0]
        with torch.no_grad():
            start_cost = self.objective.cost(self.objective.start(state.latents), goal)
        actions = spec.denormalize(interpolate(knots, self.config.action_block))
        return Plan(actions, knots, cost, start_cost)

    def _plan_rows(
        self,
        state: State,
        inputs: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None],
        rows: Tensor,
        horizon: int,
        level: int,
    ) -> tuple[Tensor, Tensor]:
        """Search for the worlds at `rows`, (M,), at one level: knots (M, E, A) and costs (M,)."""
        config, device = self.config, self.world.device
        with_prior = self.policy_prior is not None
        goal, first_knot, warm_start, prior_goal = inputs
        if level and with_prior:
            horizon, warm_start = round(horizon * (1 + level / 4)), None
        # the same noise for all worlds: a plan does not depend on the other rows
        noise = self._sample_noise(horizon, with_prior or warm_start is not None, with_prior, level)
        chunk_size = max(1, config.max_parallel // config.num_samples)
        results = []
        for chunk in rows.to(device).split(chunk_size):
            given = goal, first_knot, warm_start, prior_goal
            own = [None if t is None else t[chunk] for t in given]
            results.append(self._search_fn(state.select(chunk), *own, noise))
        best, cost = (torch.cat(parts) for parts in zip(*results, strict=True))
        return best, cost

    def _sample_noise(
        self, horizon: int, warm_start: bool, with_prior: bool, level: int = 0
    ) -> Noise:
        config, size, device = self.config, self.world.actions.size, self.world.device
        generator = torch.Generator(device=device).manual_seed(config.seed + level)
        gaussian, init_knots = [], []

        def normal(rows: int) -> Tensor:
            shape = (1, config.num_samples, rows, size)
            return torch.randn(shape, generator=generator, device=device)

        for iteration in range(config.warm_start_iterations if warm_start else config.iterations):
            if iteration == 0 or config.method == "shooting":
                gaussian.append(normal(horizon))
                shape = (1, config.num_samples, 1, size)
                uniform = torch.rand(shape, generator=generator, device=device)
                init_knots.append(uniform * 2 - 1)
            elif config.method != "gradient":
                gaussian.append(normal(horizon + 1))
        if not with_prior:
            return Noise(gaussian, init_knots)
        max_blocks = min(config.prior_noise_blocks * (1 + level), horizon)
        num_noisy_blocks = torch.randint(
            1, max_blocks + 1, (config.num_samples, 1, 1), generator=generator, device=device
        )
        num_noisy_blocks[0] = 0  # the policy prior without noise
        block = torch.arange(horizon, device=device)[:, None]
        prior_noise = torch.where(
            block < num_noisy_blocks,
            (1 + level / 2) * config.prior_noise_std * normal(horizon)[0],
            0.0,
        )
        return Noise(gaussian, init_knots, prior_noise)

    def _search(
        self,
        state: State,
        goal: Tensor,
        first_knot: Tensor | None,
        warm_start: Tensor | None,
        prior_goal: Tensor | None,
        noise: Noise,
    ) -> tuple[Tensor, Tensor]:
        """Find the best knots, (B, E, A), and their cost, (B,); first_knot: (B, A) in [-1, 1]."""
        config, num_worlds = self.config, len(state)
        states = state.repeat(config.num_samples)
        goals = goals_in_turn(goal, config.num_samples)

        def cost(candidates: Tensor) -> Tensor:
            costs = self._rollout_cost(states, candidates.flatten(0, 1), goals)
            return worst_if_not_finite(costs.view(num_worlds, -1))

        std = config.init_std
        if noise.prior is not None and prior_goal is not None:
            with torch.no_grad():
                prior_goals = goals, goals_in_turn(prior_goal, config.num_samples)
                candidates, costs = self._prior_rollouts(
                    states, *prior_goals, first_knot, noise.prior
                )
                prior_knots, costs = select_best(candidates, worst_if_not_finite(costs))
                if warm_start is not None:
                    warm_start_cost = self._rollout_cost(
                        state, warm_start, goals[:: config.num_samples]
                    )
                    prior_knots = torch.where(
                        (warm_start_cost < costs)[:, None, None], warm_start, prior_knots
                    )
            warm_start, std = prior_knots, config.warm_start_std
        candidates = self._init_candidates(
            len(state), first_knot, warm_start, noise.gaussian[0], noise.init_knots[0], std
        )
        best = candidates[:, 0]
        best_cost = torch.full((len(state),), torch.inf, device=candidates.device)
        num_iterations = config.iterations if warm_start is None else config.warm_start_iterations
        for iteration in range(num_iterations):
            next_candidates = None
            if config.method == "gradient":
                next_candidates, costs = self._gradient_step(candidates, cost, first_knot)
            else:
                with torch.no_grad():
                    costs = cost(candidates)
            iteration_best, iteration_cost = select_best(candidates, costs)
            best = torch.where((iteration_cost < best_cost)[:, None, None], iteration_best, best)
            best_cost = torch.minimum(iteration_cost, best_cost)
            if next_candidates is not None:
                candidates = next_candidates
            elif iteration + 1 < num_iterations:
                gaussian = noise.gaussian[iteration + 1]
                if config.method == "shooting":
                    init_knots = noise.init_knots[iteration + 1]
                    candidates = self._init_candidates(
                        len(candidates), first_knot, warm_start, gaussian, init_knots, std
                    )
                else:
                    candidates = self._resample(candidates, costs, best, first_knot, gaussian)
        return best, best_cost

    def _rollout_cost(self, states: State, knots: Tensor, goals: Tensor) -> Tensor:
        """Roll out M candidates, (M, E, A), from as many states: their costs, (M,)."""
        block, objective, costs = self.config.action_block, self.objective, []
        tracked = objective.start(states.latents)
        parts = knots.unfold(1, 2, 1).mT.unbind(1) if self._per_block else [knots]
        for ends in parts:
            actions = interpolate(ends, block)
            states = self.world.imagine(states, actions)
            tracked = objective.follow(tracked, actions, states.latents)
            costs.append(objective.cost(tracked, goals))
        return self._over_blocks(costs)

    def _over_blocks(self, costs: list[Tensor]) -> Tensor:
        """The cost of plans, (M,), from those after each block."""
        weight = self.config.running_weight
        if not weight:
            return costs[-1]
        return (1 - weight) * costs[-1] + weight * torch.stack(costs).mean(0)

    def _prior_rollouts(
        self,
        states: State,
        goals: Tensor,
        prior_goals: Tensor,
        first_knot: Tensor | None,
        noise: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Roll out the policy prior, N rows for each of B worlds: knots, (B, N, E, A), and costs,
        (B, N); goals as vectors, and as latents."""
        assert self.policy_prior is not None
        num_samples, size = len(noise), noise.shape[-1]
        num_worlds = len(states) // num_samples
        start = (
            torch.zeros(num_worlds, size, device=noise.device) if first_knot is None else first_knot
        )
        last_action = start.repeat_interleave(num_samples, dim=0)
        knots, costs, tracked = [last_action], [], self.objective.start(states.latents)
        for block_noise in noise.repeat(num_worlds, 1, 1).unbind(1):
            knot = self.policy_prior(states.latents, prior_goals, last_action) + block_noise
            knot = knot.clamp(-1, 1).nan_to_num()  # a NaN would spread to the mean of the elites
            actions = interpolate(torch.stack([last_action, knot], 1), self.action_block)
            states = self.world.imagine(states, actions)
            knots.append(knot)
            last_action = knot
            tracked = self.objective.follow(tracked, actions, states.latents)
            costs.append(self.objective.cost(tracked, goals))
        knots_of_worlds = torch.stack(knots, 1).unflatten(0, (num_worlds, num_samples))
        return knots_of_worlds, self._over_blocks(costs).view(num_worlds, num_samples)

    def _init_candidates(
        self,
        num_worlds: int,
        first_knot: Tensor | None,
        warm_start: Tensor | None,
        noise: Tensor,
        init_knots: Tensor,
        std: float,
    ) -> Tensor:
        """Random walks from the first knot, or from `init_knots`: (B, N, E, A)."""
        noise = std * noise
        start = init_knots.expand(num_worlds, -1, -1, -1)
        if first_knot is not None:
            start = first_knot[:, None, None].expand_as(start)
        if warm_start is None:
            return self._clamp(torch.cat([start, start + noise.cumsum(2)], dim=2), first_knot)
        sampled = torch.cat([start, warm_start[:, None, 1:] + noise], dim=2)
        return self._clamp(torch.cat([warm_start[:, None], sampled[:, 1:]], dim=1), first_knot)

    def _resample(
        self,
        candidates: Tensor,
        costs: Tensor,
        best: Tensor,
        first_knot: Tensor | None,
        noise: Tensor,
    ) -> Tensor:
        """Sample around the elites (CEM), or around all, weighted by cost (MPPI)."""
        config = self.config
        if config.method == "cem":
            weights = elite_weights(costs, config.num_elites)
        else:
            cost_std = costs.std(1, keepdim=True).clamp(min=1e-8)
            weights = torch.softmax(-costs / (config.temperature * cost_std), dim=1)
        mean, std = weighted_moments(candidates, weights)
        sampled = mean + std.clamp(min=config.min_std) * noise
        return self._clamp(torch.cat([best[:, None], sampled[:, 1:]], dim=1), first_knot)

    def _gradient_step(
        self, candidates: Tensor, cost: Callable[[Tensor], Tensor], first_knot: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Move every candidate along its gradient; the costs are those before the step."""
        with torch.enable_grad():
            leaf = candidates.detach().requires_grad_()
            costs = cost(leaf)
            (gradient,) = torch.autograd.grad(costs.sum(), leaf)
        norm = gradient.flatten(2).norm(dim=2)[..., None, None].clamp(min=1e-8)
        # a gradient of unit length: the distance is flat far from the goal and steep near it
        step = self.config.learning_rate * gradient / norm * gradient[0, 0].numel() ** 0.5
        return self._clamp(candidates - step, first_knot), costs.detach()

    def _clamp(self, candidates: Tensor, first_knot: Tensor | None) -> Tensor:
        candidates = candidates.clamp(-1, 1)
        if first_knot is not None:
            first = first_knot[:, None, None].expand_as(candidates[:, :, :1])
            candidates = torch.cat([first, candidates[:, :, 1:]], dim=2)
        return candidates


def can_plan(world: World) -> bool:
    """Return whether planners can search in a world: its states and actions are continuous."""
    return world.state_spec.kind == "continuous" and world.actions.kind == "continuous"
