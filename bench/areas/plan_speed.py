"""One plan by the cross-entropy method at LeWorldModel's size, against stable-worldmodel's.

Both start at one frame, as the authors' planning does, and the model has three frames of context;
encoding is not timed.  Their solver samples each action, ours the knots at the ends of blocks.

One file because the toy plane checks the very solvers that are timed here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench.peers import stable_worldmodel as peer
from bench.races.ceiling import share_of_ceiling
from bench.races.pairs import (
    EXACT,
    INT8,
    Incorrect,
    Options,
    Row,
    compare,
    drop_broken,
    missing_row,
    race,
    time_call,
    value_row,
)
from bench.races.products import LinearsAlone
from data.actions import ActionSpec
from models.dynamics.dynamics import State
from models.dynamics.predictor import Predictor, PredictorConfig
from models.layers.inference import cast_weights
from models.layers.int8 import quantize_linears
from models.layers.precision import Precision, autocast
from models.layers.transformer import TransformerConfig
from models.planning.plan import Plan
from models.planning.planner import Planner, PlannerConfig, Search
from models.tokenizers.tokenizer import LatentSpec
from models.world import World
from pipeline.cuda_graph import WARMUP_CALLS, CudaGraphed
from pipeline.device import pick_precision
from pipeline.inference.aot_inductor import pick_compile_fn

ACTIONS = ActionSpec("continuous", ("x", "y"), (-1.0, -1.0), (1.0, 1.0))
LATENTS = LatentSpec("continuous", (1, 1), 192)
# the published settings: 5 steps of 5 actions each, 300 candidates, 30 iterations, the best 30
CEM = PlannerConfig("cem", num_samples=300, iterations=30, num_elites=30, horizon=5, action_block=5)
# 3 frames of context, as theirs; mlp_dim for as many parameters as theirs
MODEL = PredictorConfig(
    transformer=TransformerConfig(
        dim=192, num_layers=6, num_heads=16, mlp_dim=3072, context_frames=3, qk_norm=False
    ),
    frameskip=5,
    rewards=False,
)
PEER = "stable-worldmodel 0.1.1 CEM"
CEILING = "the linear layers of the plan alone"
GPU_TARGET, GPU_STRETCH = 60.0, 12.0  # ms of a whole plan
TOLERANCE = 0.02  # distance to the goal that both solvers have to reach, on a plane 2 wide


def rows(options: Options) -> Iterator[Row]:
    """Race one plan of ours against one of theirs, from encoded frames."""
    config = replace(CEM, iterations=2) if options.quick else CEM
    yield from measure(options, config, compiled=not options.quick)


def measure(options: Options, config: PlannerConfig, compiled: bool = True) -> Iterator[Row]:
    """Measure as `rows`, with any number of candidates and iterations."""
    share = "" if config.iterations == CEM.iterations else f" (of {CEM.iterations})"
    what = (
        f"plan, {config.num_samples} x {config.iterations}{share} x {config.horizon}, LeWorldModel"
    )
    try:
        peer.submodule("solver.cem")
    except ImportError:
        yield missing_row("planning", what, PEER, peer.INSTALL)
        return
    torch.manual_seed(0)
    device = options.device
    check_solvers(our_toy_plan(CEM), their_toy_plan(CEM))
    latents = torch.randn(2, LATENTS.dim, device=device)
    now, goal = latents[:1], latents[1]

    precision: Precision = "bf16" if pick_precision(device, "auto") == "bf16" else "fp32"
    world = our_world(precision).to(device)
    wide = copy.deepcopy(world)
    cast_weights(world.dynamics, precision)  # type: ignore[arg-type]  # as load_world does
    on_gpu = device.type == "cuda"
    capture = partial(CudaGraphed, device=device) if on_gpu else None
    ours = {EXACT: {str(Setting(precision, False)): Ours(world, config, capture, (now, goal))}}
    if not on_gpu:  # int8 weights are for CPUs
        ours[INT8] = {}
    for weights in [EXACT] * compiled + [INT8] * (not on_gpu):
        fast_world = copy.deepcopy(wide if weights == INT8 else world)
        if weights == INT8:
            quantize_linears(fast_world.dynamics)  # type: ignore[arg-type]
        if compiled:
            fast_world.compile_steps(pick_compile_fn(device))
        ours[weights][str(Setting(precision, compiled))] = Ours(
            fast_world, config, capture, (now, goal)
        )
    tolerance = 5e-2 if precision == "bf16" else 1e-3
    for weights, runners in ours.items():
        slack = 0.1 if weights == INT8 else tolerance
        for our in runners.values():
            check_plan(our.plan(), world, our.state, goal, slack)
    settings = [Setting("fp32", False)]
    if precision == "bf16":
        settings.append(Setting("bf16", False))
    if compiled:
        settings += [replace(setting, compiled=True) for setting in settings]
        if on_gpu:
            settings.append(replace(settings[-1], graphs=True))
    peer_weights = peer.le_world_model(ACTIONS.size * config.action_block).state_dict()
    peer_inputs = peer.encoded(now, goal)
    theirs = {
        str(setting): Theirs(setting, peer_weights, config, peer_inputs) for setting in settings
    }
    for name, problem in drop_broken(
        {name: their.iterate for name, their in theirs.items()}
    ).items():
        del theirs[name]
        yield Row("planning", what, f"{PEER}, {name}", "", note=f"failed: {problem}")
    check_costs(theirs)
    for our in ours[EXACT].values() if on_gpu else ():
        for _ in range(WARMUP_CALLS):  # from the next call on, each search is a graph replay
            our.plan()
            our.iterate()
    # all have run by then: a plan of theirs takes too long for a warmup
    plans: dict[str, Callable[[], object]] = {}
    fastest, setting_notes = {}, {}
    for whose, runners in (ours | {PEER: theirs}).items():
        tried = {name: time_call(runner.iterate, device) for name, runner in runners.items()}
        best = fastest[whose] = min(tried, key=lambda name: tried[name])
        plans[whose] = runners[best].plan
        times = ", ".join(f"{name} {1e3 * taken:.0f} ms" for name, taken in tried.items())
        setting_notes[whose] = f"{best}, fastest an iteration of {times}"
    compile_fn = pick_compile_fn(device) if compiled else None
    for weights in ours if not on_gpu else ():
        plain = copy.deepcopy(wide if weights == INT8 else world)
        if weights == INT8:
            quantize_linears(plain.dynamics)  # type: ignore[arg-type]
        iterate = Ours(plain, config, None, (now, goal)).iterate
        alone = LinearsAlone(plain.dynamics, iterate, config.iterations, precision, compile_fn)
        alone()
        plans[f"{CEILING}, {weights}"] = alone
    seconds = race(plans, options.rounds, warmup=0, device=device)
    size, fewer = sizes(config)
    for weights in ours:
        yield from compare(
            "planning",
            f"{what}, {weights}",
            {whose: seconds[whose] for whose in (weights, PEER)},
            # on a CPU the bar is theirs at our number of operations: see the ceiling
            {PEER: (8.0, 50.0) if on_gpu else (fewer, 2 * fewer)},
            weights,
            unit="ms",
            notes={PEER: f"{size}; ours {setting_notes[weights]}; theirs {setting_notes[PEER]}"},
        )
        if not on_gpu:
            ceiling = seconds[f"{CEILING}, {weights}"]
            what_of = f"{what}, {weights}"
            yield share_of_ceiling("planning", what_of, seconds[weights], ceiling, CEILING)
    if on_gpu and not share:
        milliseconds = 1e3 * median(seconds[EXACT])
        yield value_row(
            "planning", f"{what}, {EXACT}", "ms", milliseconds, "(time alone)", GPU_TARGET,
            GPU_STRETCH, options.rounds,
        )  # fmt: skip
    fast_world = ours[EXACT][fastest[EXACT]].world
    mppi = Ours(fast_world, replace(config, method="mppi"), capture, (now, goal))
    for _ in range(WARMUP_CALLS if on_gpu else 0):
        mppi.plan()
    check_plan(mppi.plan(), world, mppi.state, goal, tolerance)
    rounds = options.rounds if on_gpu else 1  # a plan takes many seconds on two cores
    milliseconds = 1e3 * median(time_call(mppi.plan, device) for _ in range(rounds))
    yield value_row("planning", f"{what}, MPPI, {EXACT}", "ms", milliseconds, rounds=rounds)


@dataclass(frozen=True)
class IdentityTokenizer:
    """Stands in for a tokenizer where every frame is encoded already."""

    latents: LatentSpec = LATENTS
    image_size: tuple[int, int] = (224, 224)
    temporal_context: int = 1
    has_decoder: bool = False


def our_world(precision: Precision = "fp32") -> World:
    """Build our predictor of LeWorldModel's size, one latent a frame, in a world without images."""
    predictor = Predictor(MODEL, LATENTS, ACTIONS)
    nn.init.normal_(predictor.delta_head.weight, std=0.02)  # it starts at zero: no change
    return World(IdentityTokenizer(), predictor, precision)  # type: ignore[arg-type]


def start_state(world: World, now: Tensor) -> State:
    """Start at one encoded frame: (1, D)."""
    return world.dynamics.start(now[:, None, None], now.new_zeros(1, 0, ACTIONS.size))


@dataclass(frozen=True)
class Setting:
    """The precision of a model, and how it is compiled."""

    precision: Precision
    compiled: bool
    graphs: bool = False
    """CUDA graphs of torch.compile."""

    def __str__(self) -> str:
        return self.precision + " + compile" * self.compiled + ", CUDA graphs" * self.graphs


class Ours:
    """Our planner in one of our worlds, from one encoded frame, (1, D), to another, (D,)."""

    def __init__(
        self,
        world: World,
        config: PlannerConfig,
        capture: Callable[[Search], Search] | None,
        given: tuple[Tensor, Tensor],
    ) -> None:
        now, self.goal = given
        self.world, self.state = world, start_state(world, now)
        self.planner = Planner(config, world, capture)
        self.short = Planner(replace(config, iterations=1), world, capture)

    def plan(self) -> Plan:
        return self.planner.plan(self.state, self.goal[None, None], None, None)

    def iterate(self) -> Plan:
        """Search for one iteration."""
        return self.short.plan(self.state, self.goal[None, None], None, None)


class Theirs:
    """Their solver with their model, in one setting."""

    def __init__(
        self,
        setting: Setting,
        weights: dict[str, Tensor] | None,
        config: PlannerConfig,
        given: dict[str, Tensor],
    ) -> None:
        """weights: of the model; None to initialize new ones.  given: what it plans from."""
        device = given["emb"].device
        self.setting, self.config, self.given = setting, config, given
        self.model = peer.le_world_model(ACTIONS.size * config.action_block)
        if weights is not None:
            self.model.load_state_dict(weights)
        self.model.to(device)
        cast_weights(self.model, setting.precision)  # as ours are
        if setting.compiled:  # one graph for each number of context frames: 1, 2 and 3
            mode = "reduce-overhead" if setting.graphs else "default"
            fast = torch.compile(self.model.predict, dynamic=False, mode=mode)
            # a graph writes each result to the same memory
            self.model.predict = (lambda *given: fast(*given).clone()) if setting.graphs else fast
        self.solver = their_solver(self.model, config, device)
        self.short = their_solver(self.model, replace(config, iterations=1), device)

    def plan(self) -> Tensor:
        return self._solve(self.solver)

    def iterate(self) -> Tensor:
        """Search for one iteration."""
        return self._solve(self.short)

    @torch.inference_mode()
    def costs(self, candidates: Tensor) -> Tensor:
        """Compute the costs of candidates: (N, steps, A) -> (N,)."""
        repeated = {
            name: given[:, None].expand(-1, len(candidates), *given.shape[1:])
            for name, given in self.given.items()
        }
        with autocast(candidates.device, self.setting.precision):
            return self.model.get_cost(repeated, candidates[None])[0].float()

    def _solve(self, solver: Any) -> Tensor:
        with autocast(self.given["emb"].device, self.setting.precision):
            return peer.solve(solver, self.given)


def their_solver(model: Any, config: PlannerConfig, device: torch.device) -> Any:
    """Build their CEM with our settings; a step of their horizon is an action block of ours."""
    return peer.solver(
        model, config.num_samples, config.iterations, config.num_elites, config.horizon,
        config.action_block, ACTIONS.size, device,
    )  # fmt: skip


# -- checks before anything is timed --------------------------------------------------------------


def check_plan(plan: Plan, world: World, state: State, goal: Tensor, slack: float) -> None:
    """Raise Incorrect unless the rollout of a plan alone, with exact weights, has the cost that the
    search returned."""
    with torch.no_grad():
        end = world.rollout(state, plan.actions).latents
    rollout_cost = (end - goal).square().mean()
    if not torch.isclose(rollout_cost, plan.cost[0], rtol=slack):
        raise Incorrect(
            f"a plan of cost {plan.cost[0]:.5f} costs {rollout_cost:.5f} when rolled out alone"
        )


def check_costs(theirs: dict[str, Theirs]) -> None:
    """Raise Incorrect unless all of their settings compute the same costs of the same candidates.

    The costs themselves are compared: their ranks depend on differences far smaller.
    """
    first = next(iter(theirs.values()))
    # as many as in a plan: another number would trigger a compilation
    shape = (
        first.config.num_samples,
        first.config.horizon,
        ACTIONS.size * first.config.action_block,
    )
    candidates = torch.randn(shape, device=first.given["emb"].device)
    exact = first.costs(candidates)
    for name, their in theirs.items():
        slack = 5e-2 if their.setting.precision == "bf16" else 1e-3
        costs = their.costs(candidates)
        if not torch.allclose(costs, exact, rtol=slack):
            error = float((costs - exact).abs().max())
            raise Incorrect(f"their {name} is up to {error:.4f} off the costs of their fp32")


class Plane:
    """A point that moves half of the distance to the action at each step: latents (B, 1, 2)."""

    actions = ACTIONS
    device = torch.device("cpu")
    start = torch.tensor([-0.5, -0.5])
    goal = torch.tensor([0.4, 0.2])

    def select(self, index: Tensor) -> Self:
        return self

    def vectors(self, latents: Tensor) -> Tensor:
        return latents

    def state(self, positions: Tensor) -> State:
        """positions: (B, 2)."""
        rows = torch.ones(len(positions))
        return State(positions[:, None], 0 * rows, rows, self)

    def imagine(self, state: State, actions: Tensor) -> State:
        """actions: (B, T, 2)."""
        position = state.latents[:, 0]
        for action in actions.unbind(1):
            position = position + 0.5 * (action - position)
        return self.state(position)

    def end(self, actions: Tensor) -> Tensor:
        """Return the positions that actions, (B, T, 2), lead to: (B, 2)."""
        return self.imagine(self.state(self.start.expand(len(actions), 2)), actions).latents[:, 0]

    def get_cost(self, given: dict[str, Tensor], candidates: Tensor) -> Tensor:
        """Compute costs as their models do: candidates (1, N, steps, A) -> (1, N)."""
        end_positions = self.end(candidates[0].unflatten(-1, (-1, ACTIONS.size)).flatten(1, 2))
        return (end_positions - self.goal).square().sum(-1)[None]


def our_toy_plan(config: PlannerConfig) -> Tensor:
    """Plan on the plane with our planner: actions (1, T, 2)."""
    plane = Plane()
    planner = Planner(config, plane)  # type: ignore[arg-type]
    return planner.plan(plane.state(plane.start[None]), plane.goal[None, None], None, None).actions


def their_toy_plan(config: PlannerConfig) -> Tensor:
    """Plan on the plane with their solver: actions (1, T, 2)."""
    plane = Plane()
    solver = their_solver(plane, config, plane.device)
    steps = peer.solve(solver, {"emb": plane.start[None]})
    return steps.unflatten(-1, (-1, ACTIONS.size)).flatten(0, 1)[None]


def check_solvers(ours: Tensor, theirs: Tensor) -> None:
    """Raise Incorrect unless both plans, (1, T, 2), end at the goal of the plane."""
    plane = Plane()
    for name, actions in (("our", ours), ("their", theirs)):
        error = float((plane.end(actions) - plane.goal).norm())
        if not error < TOLERANCE:
            raise Incorrect(f"{name} plan ends {error:.3f} from the goal, {TOLERANCE} is allowed")


# -- the sizes of both ----------------------------------------------------------------------------


def sizes(config: PlannerConfig) -> tuple[str, float]:
    """Describe both models' parameters and the matrix products of both plans; also how many times
    fewer operations ours are.

    Products are counted in one iteration on a few candidates, on the CPU, where the counter knows
    every operation.
    """
    small = replace(config, num_samples=8, num_elites=2, iterations=1)
    latents = torch.randn(2, LATENTS.dim)
    ours, state = our_world(), peer.encoded(latents[:1], latents[1])
    theirs = Theirs(Setting("fp32", False), None, small, state)
    runners = (
        lambda: Planner(small, ours).plan(
            start_state(ours, latents[:1]), latents[1:, None], None, None
        ),
        theirs.plan,
    )
    each = config.num_samples * config.iterations / small.num_samples / 1e12
    products = []
    for runner in runners:
        with FlopCounterMode(display=False) as counter:
            runner()
        products.append(each * counter.get_total_flops())
    return (
        f"{params_millions(ours.dynamics):.2f}M parameters against "
        f"{params_millions(theirs.model):.2f}M, "
        f"{products[0]:.2f} TFLOP a plan against {products[1]:.2f}"
    ), products[1] / products[0]


def params_millions(model: Any) -> float:
    """Count a model's parameters, in millions."""
    return sum(p.numel() for p in model.parameters()) / 1e6
