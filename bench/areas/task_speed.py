"""The latency of a decision on the run's task: a new frame in, a chunk of actions out, by a search
in imagination and by a policy alone."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from bench.areas.play_speed import DEFAULT_RUN, check_world, start_clip
from bench.races.pairs import Incorrect, Options, Row, time_call, value_row
from models.controllers.flow_policy import FlowPolicy
from models.dynamics.dynamics import State
from models.planning.best_of_n import BestOfN, BestOfNConfig, Noise
from models.planning.plan import Plan
from models.world import World
from pipeline.inference.load_controllers import PROPOSERS, load_task_cost
from pipeline.inference.load_world import load_world
from pipeline.play.goal_planners import load_proposer
from pipeline.play.goals import task_goal

AREA = "task"
SEARCH_TARGETS, POLICY_TARGETS = (1500.0, 300.0), (20.0, 5.0)  # ms
TOLERANCE = 0.02  # of an action, whose range is 2: frames are encoded alone or in a batch
COST_TOLERANCE = 0.02  # relative: bf16 rounds otherwise in another batch


def rows(options: Options) -> Iterator[Row]:
    """Measure decisions at batch 1, encoding included, in --run or the run in checkpoints/."""
    run = options.run or DEFAULT_RUN
    world = load_world(run, options.device)
    if load_task_cost(run, world) is None:
        note = f"not measured: {run / 'controller'} holds no task cost"
        yield Row(AREA, f"decision on the task of {run.name}", "task_cost", "", note=note)
        return
    goal = task_goal(run, world)
    policy = load_proposer(run, world, goal, "auto")
    if policy is None or goal.objective is None or goal.action_block is None:
        note = f"not measured: {run / 'controller'} holds none of {', '.join(PROPOSERS)}"
        yield Row(AREA, f"decision on the task of {run.name}", "flow_policy", "", note=note)
        return
    frames, actions = start_clip(run, world)
    check_world(world, frames, actions)
    search = BestOfN(BestOfNConfig(), world, policy, goal.objective, goal.action_block)
    planners = {
        f"best_of_n of {BestOfNConfig.num_samples} chunks": (search, SEARCH_TARGETS),
        f"{type(policy).__name__} alone": (policy, POLICY_TARGETS),
    }
    for what, (planner, targets) in planners.items():
        decide = Decision(world, planner, frames, actions)
        decide.check()
        if planner is search:
            check_search(search, decide.state)
        yield measure(f"{what}, {run.name}", decide, policy, targets, options)


def measure(
    what: str,
    decide: Decision,
    policy: FlowPolicy,
    targets: tuple[float, float],
    options: Options,
) -> Row:
    """Time decisions one by one; each makes a new chunk, so this is the slowest a step can be."""
    for _ in range(10):
        decide()
    count = 50 if options.quick else 200
    taken = sorted(1000 * time_call(decide, options.device) for _ in range(count))
    late, executed = taken[math.ceil(0.95 * count) - 1], policy.config.receding_horizon
    return value_row(
        AREA, f"observe and plan, {what}", "ms", taken[count // 2], target=targets[0],
        stretch=targets[1], rounds=count,
        note=f"95% within {late:.1f} ms; {executed} actions are executed of each plan",
    )  # fmt: skip


class Decision:
    """Observes a real frame and plans, repeatedly."""

    def __init__(
        self, world: World, planner: BestOfN | FlowPolicy, frames: Tensor, actions: Tensor
    ) -> None:
        self.world, self.planner = world, planner
        self.frames, self.actions = frames, actions
        self.frame, self.action = frames[None, -1], actions[None, len(frames) - 1]
        self.state = self.at_start()

    @torch.inference_mode()
    def at_start(self, frames: Tensor | None = None) -> State:
        """At the last of these frames, (T, 3, H, W), or of the real ones."""
        frames = self.frames if frames is None else frames
        return self.world.reset(frames[None], self.actions[None, : len(frames) - 1])

    @torch.inference_mode()
    def __call__(self) -> Plan:
        self.state = self.world.observe(self.state, self.action, self.frame)
        plan = self.planner.plan(self.state, None, self.action)
        plan.actions.cpu()  # a decision is there once it can be carried out
        return plan

    @torch.inference_mode()
    def check(self) -> None:
        """Raise Incorrect unless, with the same random numbers, the plan after observing a frame
        is that of a world reset at the same frame, and another frame gives another one."""
        self.planner.reset()
        found = self()
        self.planner.reset()
        expected = self.planner.plan(self.at_start(), None, self.action)
        off, allowed = self._apart(found, expected)
        if not off <= allowed:
            raise Incorrect(f"a plan after observing a frame is {off:.3f} off that after a reset")
        self.planner.reset()
        state = self.world.reset(
            self.frames.flip(-1)[None], self.actions[None, : len(self.frames) - 1]
        )
        if self._apart(found, self.planner.plan(state, None, self.action))[0] <= allowed:
            raise Incorrect("a mirrored frame gives the same plan: nothing would be compared")

    def _apart(self, one: Plan, other: Plan) -> tuple[float, float]:
        """How far two plans are apart, and how far they may be: in the cost of a search, since
        another chunk may cost as much, else in actions."""
        if isinstance(self.planner, BestOfN):
            return float((one.cost / other.cost - 1).abs()), COST_TOLERANCE
        first, second = (self.world.actions.normalize(p.actions).float() for p in (one, other))
        return float((first - second).abs().max()), TOLERANCE


def check_search(search: BestOfN, state: State) -> None:
    """Raise Incorrect unless the chosen chunk costs as much as the best of all that are rolled out
    one by one."""
    noise = search.sample_noise(1, torch.Generator().manual_seed(0))
    noise = noise.to(state.latents.device)
    found = float(search.search(state, noise).cost)
    one_by_one = [
        float(
            search.search(
                state,
                Noise(noise.candidates[:, i : i + 1], noise.later, noise.added[:, i : i + 1]),
            ).cost
        )
        for i in range(search.config.num_samples)
    ]
    if not abs(found - min(one_by_one)) <= COST_TOLERANCE * min(one_by_one):
        raise Incorrect(f"the chosen chunk costs {found:g}, and the best alone {min(one_by_one):g}")
