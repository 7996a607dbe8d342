"""Search for the actions that lead an imagined world to a goal.

One sampler, four ways of narrowing it: the cross-entropy method (Rubinstein 1999), MPPI (Williams
et al., arXiv:1509.01149), gradient descent through the model, and random shooting.

A candidate is a way: actions at the ends of its legs, between which the action moves evenly, as a
hand does.  With legs of one action every action is free.  Discrete actions cannot be moved evenly.

Letters: B worlds, N candidates, L legs, E = L + 1 ends, T = L * leg actions, A action numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from models.config import check_positive
from models.dynamics.dynamics import State
from models.world import World

Search = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class PlannerConfig:
    method: Literal["cem", "mppi", "gradient", "shooting"] = "cem"
    num_samples: int = 300
    """Candidates of an iteration."""
    iterations: int = 30
    warm_start_iterations: int = 5
    """Iterations of a search that starts from a way: a guide's, or what is left of a plan."""
    num_elites: int = 30
    """Candidates that the next iteration is drawn around (CEM)."""
    horizon: int = 5
    action_block: int = 5
    """Actions of a leg."""
    init_std: float = 0.2
    """Standard deviation of a leg's length at first; an action spans 2."""
    prior_noise_std: float = 0.2
    """Standard deviation of what is added to a guide's answers on the first legs of its ways."""
    prior_noise_blocks: int = 3
    """Legs of a way that are changed so, at most."""
    warm_start_std: float = 0.05
    """Standard deviation around the best of a guide's ways, at first."""
    min_std: float = 0.01
    """Standard deviation below which the search is not narrowed."""
    temperature: float = 0.1
    """Of MPPI's weights, in standard deviations of the candidates' costs."""
    learning_rate: float = 0.05
    """Of gradient descent."""
    max_parallel: int = 8192
    """Candidates that are imagined at once; the plan does not depend on it."""
    seed: int = 0

    def __post_init__(self) -> None:
        positive = ("samples", "iterations", "revisions", "best", "legs", "leg", "detours")
        check_positive(self, "--planner.", *positive)

    def with_action_block(self, action_block: int, num_actions: int) -> PlannerConfig:
        """The same with a guide's legs of `leg` actions, as many as `steps` actions take."""
        return replace(self, action_block=action_block, legs=-(-num_actions // action_block))


@dataclass
class Plan:
    actions: Tensor
    """(B, T, A), in the environment's units."""
    knots: Tensor
    """(B, E, A), in [-1, 1]: what another search can start from."""
    cost: Tensor
    """(B,)"""


class GoalPlanner(Protocol):
    """Finds ways to goals: a planner, or a controller that answers at once."""

    horizon: int
    action_block: int

    def plan(
        self, state: State, goal: Tensor, last_action: Tensor | None, warm_start: Tensor | None
    ) -> Plan:
        """As `Planner.to_goal`."""
        ...


class PolicyPrior(Protocol):
    """Says at once where the next leg should end."""

    action_block: int

    def __call__(self, latents: Tensor, goal: Tensor, last_action: Tensor) -> Tensor:
        """latents, goal (B, P, D), the action before (B, A) -> (B, A); actions in [-1, 1]."""
        ...


@dataclass
class Noise:
    """All that is drawn in a search, before it begins: nothing in it asks for chance."""

    gaussian: list[Tensor]
    """(1, N, L, A) of each iteration, normal."""
    init_knots: list[Tensor]
    """(1, N, 1, A), even over [-1, 1]: where ways begin, of an iteration that draws them anew."""
    prior: Tensor | None = None
    """(N, L, A): what is added to a guide's answers."""


class Planner:
    """Plans in a world, whatever its tokenizer and dynamics.

    `guide` answers at once.  A search for a goal is then one around the best of many ways that it
    would go in imagination, each led astray on its first legs and guided from where it has come to:
    one of them goes around what a single answer, or a search around it, does not (a policy's
    proposals, as in TD-MPC2, arXiv:2310.16828, and in POPLIN, arXiv:1906.08649, which disturb every
    step).  `record` may wrap the search, a function of states and tensors in which nothing waits
    for a GPU, in something that replays it (pipeline/inference/recorded.py).
    """

    def __init__(
        self,
        config: PlannerConfig,
        world: World,
        capture: Callable[[Search], Search] | None = None,
        policy_prior: PolicyPrior | None = None,
    ) -> None:
        if policy_prior is not None and policy_prior.action_block != config.action_block:
            raise ValueError(
                f"a plan of legs of {config.action_block} actions cannot begin from ways of legs of "
                f"{policy_prior.action_block}; give --planner.leg {policy_prior.action_block}"
            )
        if world.actions.kind != "continuous":
            raise ValueError("planning moves actions evenly, which codes of actions cannot be")
        self.config, self.world, self.policy_prior = config, world, policy_prior
        self.horizon, self.action_block = config.horizon, config.action_block
        self._search_fn: Search = self._search if capture is None else capture(self._search)

    def plan(
        self, state: State, goal: Tensor, last_action: Tensor | None, warm_start: Tensor | None
    ) -> Plan:
        """Plan towards latents, (B, N) codes or (B, P, D).

        last: (B, A), the action before, in the environment's units, where the way begins.
        ends: (B, E, A), a way to start the search from, if a guide has none that is better; its
        legs are as many as are planned.
        """
        config, spec = self.config, self.world.actions
        first_knot = (
            None if last_action is None else spec.normalize(last_action.to(self.world.device))
        )
        # one draw for all worlds: what is planned in one does not depend on its neighbours
        with_prior = self.policy_prior is not None
        horizon = config.horizon if warm_start is None else warm_start.shape[1] - 1
        noise = self._sample_noise(horizon, with_prior or warm_start is not None, with_prior)
        chunk_size = max(1, config.max_parallel // config.num_samples)
        inputs = (self.world.vectors(goal), first_knot, warm_start)
        results = []
        for rows in torch.arange(len(state), device=self.world.device).split(chunk_size):
            row_inputs = [None if t is None else t[rows] for t in inputs]
            results.append(self._search_fn(state.select(rows), *row_inputs, noise))
        best, best_cost = (torch.cat(parts) for parts in zip(*results, strict=True))
        return Plan(spec.denormalize(interpolate(best, config.action_block)), best, best_cost)

    def _goal_mse(self, final_state: State, goal: Tensor) -> Tensor:
        """Of ends, M rows, each from its target, (M, ...): (M,)."""
        return (self.world.vectors(final_state.latents) - goal).square().flatten(1).mean(1)

    def _sample_noise(self, horizon: int, warm_start: bool, with_prior: bool) -> Noise:
        config, size, device = self.config, self.world.actions.size, self.world.device
        generator = torch.Generator(device=device).manual_seed(config.seed)
        gaussian, init_knots = [], []

        def normal(rows: int) -> Tensor:
            shape = (1, config.num_samples, rows, size)
            return torch.randn(shape, generator=generator, device=device)

        for iteration in range(config.warm_start_iterations if warm_start else config.iterations):
            if iteration == 0 or config.method == "shooting":
                gaussian.append(normal(horizon))
                uniform = torch.rand(
                    (1, config.num_samples, 1, size), generator=generator, device=device
                )
                init_knots.append(uniform * 2 - 1)
            elif config.method != "gradient":
                gaussian.append(normal(horizon + 1))
        if not with_prior:
            return Noise(gaussian, init_knots)
        max_blocks = min(config.prior_noise_blocks, horizon)
        num_noisy_blocks = torch.randint(
            1, max_blocks + 1, (config.num_samples, 1, 1), generator=generator, device=device
        )
        num_noisy_blocks[0] = 0  # the guide's own way
        block = torch.arange(horizon, device=device)[:, None]
        prior_noise = torch.where(
            block < num_noisy_blocks, config.prior_noise_std * normal(horizon)[0], 0.0
        )
        return Noise(gaussian, init_knots, prior_noise)

    def _search(
        self,
        state: State,
        goal: Tensor,
        first_knot: Tensor | None,
        warm_start: Tensor | None,
        noise: Noise,
    ) -> tuple[Tensor, Tensor]:
        """Give the best way, (B, E, A), and what it costs, (B,); first: (B, A) in [-1, 1]."""
        config = self.config
        states = state.repeat(config.num_samples)
        goals = goal.repeat_interleave(config.num_samples, dim=0)

        def cost(ways: Tensor) -> Tensor:
            there = self.world.imagine(states, interpolate(ways.flatten(0, 1), config.action_block))
            return self._goal_mse(there, goals).view(len(state), config.num_samples)

        std = config.init_std
        if noise.prior is not None:
            with torch.no_grad():
                candidates, final_state = self._prior_rollouts(
                    states, goals, first_knot, noise.prior
                )
                costs = self._goal_mse(final_state, goals).view(len(state), -1)
                prior_knots, costs = _select_best(candidates, costs)
                if warm_start is not None:
                    final_state = self.world.imagine(
                        state, interpolate(warm_start, config.action_block)
                    )
                    warm_start_cost = self._goal_mse(final_state, goal)
                    prior_knots = torch.where(
                        (warm_start_cost < costs)[:, None, None], warm_start, prior_knots
                    )
            warm_start, std = prior_knots, config.warm_start_std
        candidates = self._init_candidates(
            len(state), first_knot, warm_start, noise.gaussian[0], noise.init_knots[0], std
        )
        best, best_cost = (
            candidates[:, 0],
            torch.full((len(state),), torch.inf, device=candidates.device),
        )
        num_iterations = config.iterations if warm_start is None else config.warm_start_iterations
        for iteration in range(num_iterations):
            next_candidates = None
            if config.method == "gradient":
                next_candidates, costs = self._gradient_step(candidates, cost, first_knot)
            else:
                with torch.no_grad():
                    costs = cost(candidates)
            iteration_best, iteration_cost = _select_best(candidates, costs)
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

    def _prior_rollouts(
        self, states: State, goals: Tensor, first_knot: Tensor | None, noise: Tensor
    ) -> tuple[Tensor, State]:
        """Let the guide go, N rows for each of B worlds: its ways, (B, N, E, A), and their ends."""
        assert self.policy_prior is not None
        num_samples, size = len(noise), noise.shape[-1]
        num_worlds = len(states) // num_samples
        start = (
            torch.zeros(num_worlds, size, device=noise.device) if first_knot is None else first_knot
        )
        last_action = start.repeat_interleave(num_samples, dim=0)
        knots = [last_action]
        for block_noise in noise.repeat(num_worlds, 1, 1).unbind(1):
            knot = (self.policy_prior(states.latents, goals, last_action) + block_noise).clamp(
                -1, 1
            )
            states = self.world.imagine(
                states, interpolate(torch.stack([last_action, knot], 1), self.action_block)
            )
            knots.append(knot)
            last_action = knot
        return torch.stack(knots, 1).unflatten(0, (num_worlds, num_samples)), states

    def _init_candidates(
        self,
        num_worlds: int,
        first_knot: Tensor | None,
        warm_start: Tensor | None,
        noise: Tensor,
        init_knots: Tensor,
        std: float,
    ) -> Tensor:
        """Walks from where the hand is, or from anywhere: (B, N, E, A)."""
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
        """Draw around the best ways (CEM), or around all by how good they are (MPPI)."""
        config = self.config
        if config.method == "cem":
            elites = costs.argsort(1)[:, : config.num_elites]
            weights = torch.zeros_like(costs).scatter(1, elites, 1 / elites.shape[1])
        else:
            cost_std = costs.std(1, keepdim=True).clamp(min=1e-8)
            weights = torch.softmax(-costs / (config.temperature * cost_std), dim=1)
        weights = weights[..., None, None]
        mean = (weights * candidates).sum(1, keepdim=True)
        std = (weights * (candidates - mean).square()).sum(1, keepdim=True).sqrt()
        sampled = mean + std.clamp(min=config.min_std) * noise
        return self._clamp(torch.cat([best[:, None], sampled[:, 1:]], dim=1), first_knot)

    def _gradient_step(
        self, candidates: Tensor, cost: Callable[[Tensor], Tensor], first_knot: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Move every candidate along its own gradient; the costs are those before the move."""
        with torch.enable_grad():
            leaf = candidates.detach().requires_grad_()
            costs = cost(leaf)
            (gradient,) = torch.autograd.grad(costs.sum(), leaf)
        norm = gradient.flatten(2).norm(dim=2)[..., None, None].clamp(min=1e-8)
        # a slope of unit length: far from the goal the distance is flat, near it steep
        step = self.config.learning_rate * gradient / norm * gradient[0, 0].numel() ** 0.5
        return self._clamp(candidates - step, first_knot), costs.detach()

    def _clamp(self, candidates: Tensor, first_knot: Tensor | None) -> Tensor:
        candidates = candidates.clamp(-1, 1)
        if first_knot is not None:
            candidates = torch.cat(
                [first_knot[:, None, None].expand_as(candidates[:, :, :1]), candidates[:, :, 1:]], 2
            )
        return candidates


def interpolate(knots: Tensor, action_block: int) -> Tensor:
    """Go evenly from end to end: (..., E, A) -> the actions, (..., (E - 1) * leg, A)."""
    fraction = torch.arange(1, action_block + 1, device=knots.device)[:, None] / action_block
    before, after = knots[..., :-1, None, :], knots[..., 1:, None, :]
    return (before + (after - before) * fraction).flatten(-3, -2)


def _select_best(candidates: Tensor, costs: Tensor) -> tuple[Tensor, Tensor]:
    """(B, N, E, A) and (B, N) -> the best way of each world, (B, E, A), and its cost, (B,)."""
    min_cost, index = costs.min(1)
    return candidates[torch.arange(len(candidates), device=candidates.device), index], min_cost
