"""A run as the service sees it: images to latents, latents and steps to latents, and back.

Two kinds: a world, whose steps are actions, and a tokenizer alone, which may predict what a
transformation makes of an image.  Both speak of latents as numbers, codes included.

Letters: B rows, b of them, k steps, P patches, D width, E numbers of a pooled latent, A action
numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from data.actions import ActionSpec
from models.layers.inference import cast_weights
from models.layers.packed_vit import pack_vit_layers
from models.layers.precision import Precision, autocast
from models.planning.plan import PolicyPrior
from models.planning.planner import Planner, PlannerConfig, can_plan
from models.tokenizers.tokenizer import LatentSpec, Tokenizer
from models.world import World
from pipeline import checkpoint
from pipeline.device import pick_device, pick_precision
from pipeline.inference.load_controllers import load_goal_policy
from pipeline.inference.load_tokenizer import load_tokenizer
from pipeline.inference.load_world import load_world
from pipeline.serve.row_threads import RowThreads
from pipeline.serve.run_spec import ActionsSpec, RunSpec

NOISE_SEED = 0
SLOTS = 16  # numbers of a transformation (models/layers/views.py)
HIGHEST = (1.5, 1.5, 1.0, 1.0, 2.0, 1.0, 1.0, 2.0, 2.0, 1.0, 1.0, *[0.0] * 5)
"""Limits of each of them, to either side: a step leads from one view to another
(docs/concepts/iwm.md)."""
NO_DECODER = "this run has no decoder, so latents cannot be drawn"
NO_ACTIONS = "this run has no actions, so nothing can be planned"
ONLY_TOKENIZER = (
    "this run has a tokenizer and no dynamics, so nothing can be predicted; train_dynamics.py "
    "trains one"
)
VARIANTS = {4: "invariant", 8: "core", 16: "equivariant"}
"""By the predictor's layers."""


@dataclass(frozen=True)
class FoundPlan:
    actions: Tensor  # (T, A)
    cost: float
    start_cost: float | None


class LatentModel(ABC):
    spec: RunSpec

    @abstractmethod
    def encode(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, P, D) float32."""

    @abstractmethod
    def steps(self, latents: Tensor, actions: Iterable[Tensor]) -> Iterator[Tensor]:
        """Predict step by step from (B, P, D): actions (b, A) are of the first b rows, which are
        never more than before; give their latents, (b, P, D)."""

    def rollout(self, latents: Tensor, actions: Tensor) -> Tensor:
        """(B, P, D), (B, k, A) -> (B, k, P, D), those after each step."""
        return torch.stack(list(self.steps(latents, actions.unbind(1))), 1)

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """(B, P, D) -> (B, 3, H, W) uint8."""

    def plan(self, frame: Tensor, goal: Tensor, steps: int, rollouts: int, seed: int) -> FoundPlan:
        """Search for `steps` actions from one image to another, (3, H, W) uint8, by about as many
        `rollouts`."""
        raise NotImplementedError

    def noise(self, std: float) -> Tensor:
        """What a start is moved by, to see how far a prediction moves: (P, D), always the same."""
        generator = torch.Generator().manual_seed(NOISE_SEED)
        drawn = torch.randn(self.spec.num_patches, self.spec.dim, generator=generator)
        return (std * drawn).to(self.spec.device)

    def pool(self, latents: Tensor) -> Tensor:
        """(..., P, D) -> (..., E)."""
        return latents.mean(-2) if self.spec.pooling == "mean" else latents.flatten(-2)

    def unpool(self, pooled: Tensor) -> Tensor:
        """(B, E) -> (B, P, D): what z_cls alone says; every patch has the mean."""
        if self.spec.pooling == "mean":
            return pooled[:, None].expand(-1, self.spec.num_patches, -1).contiguous()
        return pooled.unflatten(1, (self.spec.num_patches, self.spec.dim))


class WorldModel(LatentModel):
    """A world: a latent is that of its state, and starts it without a past."""

    def __init__(self, world: World, spec: RunSpec, prior: PolicyPrior | None = None) -> None:
        """prior: a goal policy, whose rollouts a search starts from."""
        self.world, self.spec, self.prior = world, spec, prior

    def encode(self, frames: Tensor) -> Tensor:
        latents = self.world.embed(frames)
        return latents.float().view(len(frames), self.spec.num_patches, self.spec.dim)

    def steps(self, latents: Tensor, actions: Iterable[Tensor]) -> Iterator[Tensor]:
        state, rows = self._state(latents), len(latents)
        for action in actions:
            if len(action) < rows:
                rows = len(action)
                state = state.select(torch.arange(rows, device=latents.device))
            if self.world.actions.kind == "discrete":
                action = action[..., 0].long()
            state = self.world.step(state, action)
            yield state.latents.float().view(rows, *latents.shape[1:])

    def decode(self, latents: Tensor) -> Tensor:
        return self.world.decode(self._state(latents))

    def plan(self, frame: Tensor, goal: Tensor, steps: int, rollouts: int, seed: int) -> FoundPlan:
        none = self.world.actions.empty(1, 0)
        state = self.world.reset(frame[None, None], none)
        planner = self._planner(steps, rollouts, seed)
        found = planner.plan(state, self.world.embed(goal[None]), None)
        start = found.start_cost
        return FoundPlan(
            found.actions[0, :steps].float().cpu(),
            float(found.cost[0]),
            None if start is None else float(start[0]),
        )

    def _planner(self, steps: int, rollouts: int, seed: int) -> Planner:
        default = PlannerConfig()
        block = default.action_block if self.prior is None else self.prior.action_block
        samples = min(default.num_samples, rollouts)
        iterations = max(1, rollouts // samples)
        config = PlannerConfig(
            num_samples=samples,
            iterations=iterations,
            warm_start_iterations=max(1, iterations - 1),  # the prior's own rollouts are one
            num_elites=min(default.num_elites, samples),
            action_block=block,
            horizon=-(-steps // block),
            seed=seed,
        )
        return Planner(config, self.world, policy_prior=self.prior)

    def _state(self, latents: Tensor):
        spec = self.world.state_spec
        if spec.kind == "discrete":
            latents = latents.long().flatten(1)
        none = self.world.actions.normalize(self.world.actions.empty(len(latents), 0))
        return self.world.start_from(latents[:, None], none.to(latents.device))


@runtime_checkable
class Transforms(Protocol):
    """A tokenizer that predicts what 16 numbers make of an image's latents (IWM)."""

    def predict(self, latents: Tensor, action: Tensor) -> Tensor:
        """(B, P, D), (B, 16) -> (B, P, D)."""
        ...


class ImageModel(LatentModel):
    """A tokenizer alone: z_cls is the mean over patches, and a step is a transformation."""

    def __init__(self, tokenizer: Tokenizer, spec: RunSpec, precision: Precision = "fp32") -> None:
        """precision: of products."""
        self.tokenizer, self.spec = tokenizer, spec
        self.precision: Precision = precision
        self.threads = RowThreads(1)

    def encode(self, frames: Tensor) -> Tensor:
        def of_rows(frames: Tensor) -> Tensor:
            with self._autocast():
                return self.tokenizer.encode_clip(frames[:, None])[:, 0].float()

        latents = self.threads.map(of_rows, frames)
        return latents.view(len(frames), self.spec.num_patches, self.spec.dim)

    def steps(self, latents: Tensor, actions: Iterable[Tensor]) -> Iterator[Tensor]:
        tokenizer = self.tokenizer
        assert isinstance(tokenizer, Transforms)

        def of_rows(latents: Tensor, action: Tensor) -> Tensor:
            with self._autocast():
                return tokenizer.predict(latents, action).float()

        for action in actions:
            latents = self.threads.map(of_rows, latents[: len(action)], action)
            yield latents

    def decode(self, latents: Tensor) -> Tensor:
        if self.spec.kind == "discrete":
            latents = latents.long().flatten(1)
        with self._autocast():
            return self.tokenizer.decode_clip(latents[:, None])[:, 0]

    def _autocast(self) -> AbstractContextManager[object]:
        return autocast(torch.device(self.spec.device), self.precision)


def load_latent_model(
    run: Path, device: torch.device | None = None, image_precision: Precision | None = None
) -> LatentModel:
    """Load the world of a run, or its tokenizer where it has no dynamics.

    image_precision: of the products of a tokenizer alone; by default the device's, and fp32 where
    it was trained in it.  A world has its own (load_world).
    """
    device = device or pick_device()
    if (run / "dynamics" / "best.pt").exists():
        world = load_world(run, device)
        prior = load_goal_policy(run, world) if can_plan(world) else None
        return WorldModel(world, world_spec(run, world), cast("PolicyPrior | None", prior))
    tokenizer, fields = load_tokenizer(run, device)
    in_fp32 = fields.get("train", {}).get("precision") == "fp32"
    precision = image_precision or pick_precision(device, "fp32" if in_fp32 else "auto")
    spec = image_spec(run, tokenizer, fields, device)
    pack_vit_layers(tokenizer, precision)
    cast_weights(tokenizer, precision)
    return ImageModel(tokenizer, spec, precision)


def world_spec(run: Path, world: World) -> RunSpec:
    fields = checkpoint.load(run / "dynamics" / "best.pt", "dynamics")
    latents, actions = world.state_spec, world.actions
    cannot = {}
    if not world.has_decoder:
        cannot["decode"] = NO_DECODER
    if actions.kind == "none":
        cannot["plan"] = NO_ACTIONS
    elif not can_plan(world):
        cannot["plan"] = (
            f"a plan needs continuous latents and actions, and this run has {latents.kind} latents "
            f"and {actions.kind} actions"
        )
    parent = fields["parent"].get("fingerprint", "")
    return RunSpec(
        run=run.resolve().name,
        model_id=f"{fields['fingerprint']}-{parent}"[:33],
        model_variant=str(fields["config"]["kind"]),
        device=str(world.device),
        image_size=_pair(world.image_size),
        pooling="flat",
        actions=actions_spec(actions),
        cannot=cannot,
        **_sizes(latents),
    )


def image_spec(
    run: Path, tokenizer: Tokenizer, fields: checkpoint.Checkpoint, device: torch.device
) -> RunSpec:
    can_predict = isinstance(tokenizer, Transforms)
    cannot = {"plan": NO_ACTIONS}
    if not tokenizer.has_decoder:
        cannot["decode"] = NO_DECODER
    if not can_predict:
        cannot["predict"] = ONLY_TOKENIZER
    variant = type(tokenizer).__name__.lower()
    if can_predict:
        layers = tokenizer.config.predictor.num_layers  # type: ignore[attr-defined]
        variant = VARIANTS.get(layers, f"{layers} layers")
    return RunSpec(
        run=run.resolve().name,
        model_id=fields["fingerprint"],
        model_variant=variant,
        device=str(device),
        image_size=_pair(tokenizer.image_size),
        # where latents are codes, a mean says nothing
        pooling="mean" if can_predict else "flat",
        actions=transformation_spec() if can_predict else ActionsSpec("none", 0),
        cannot=cannot,  # type: ignore[arg-type]
        **_sizes(tokenizer.latents),
    )


def transformation_spec() -> ActionsSpec:
    lowest = tuple(-most for most in HIGHEST)
    return ActionsSpec("transformation", SLOTS, low=lowest, high=HIGHEST)


def actions_spec(actions: ActionSpec) -> ActionsSpec:
    if actions.kind == "discrete":
        names = tuple(actions.describe(code) for code in range(min(actions.size, 64)))
        return ActionsSpec("discrete", 1, names, num_codes=actions.size)
    return ActionsSpec(actions.kind, actions.size, actions.names, actions.low, actions.high)


def _sizes(latents: LatentSpec) -> dict:
    if latents.kind == "discrete":
        return {
            "kind": "discrete",
            "num_patches": latents.num_patches,
            "dim": latents.num_codebooks,
            "codebook_size": latents.codebook_size,
        }
    return {"kind": "continuous", "num_patches": latents.num_patches, "dim": latents.dim}


def _pair(size: tuple[int, int]) -> tuple[int, int]:
    height, width = size
    return int(height), int(width)
