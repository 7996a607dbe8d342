"""An imitator of action chunks by flow matching: what imitation alone reaches on the same latents.

From noise to the demonstrated chunk leads a straight line; a network learns its velocity, given the
latents of the present frame (rectified flow: Lipman et al., arXiv:2210.02747; Liu et al.,
arXiv:2209.03003; for policies: pi0, arXiv:2410.24164).  A plan follows it in a few Euler steps.  As
in Diffusion Policy (arXiv:2303.04137) only the first half of a chunk is executed.

The last action is not an input: on Push-T it is no help, and a clone that sees it may learn to
repeat it.

Letters: B states, T frames, H actions of a chunk, A action numbers, P patches, D latent width,
W hidden width, F frequencies.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor, nn

from data.actions import ActionSpec
from data.batch import Batch
from data.ranges import MAX_SEED, CheckedConfig, Range
from models.controllers.controller import TrainedController
from models.controllers.policy import Encoder, IdentityEncoder, PolicyConfig, make_encoder
from models.dynamics.dynamics import State
from models.method import Best, Losses
from models.planning.plan import Plan
from models.tokenizers.codes import HasCodebooks
from models.tokenizers.tokenizer import LatentSpec


@dataclass(frozen=True)
class FlowPolicyConfig(CheckedConfig):
    encoder: PolicyConfig = field(default_factory=lambda: PolicyConfig(hidden_dim=384))
    """The latents' encoder, the width of the hidden layers and their dropout."""
    chunk_length: Annotated[int, Range(1, 1000)] = 16
    """Actions of a chunk."""
    receding_horizon: Annotated[int, Range(1, 1000)] = 8
    """Actions that are executed before the next chunk."""
    num_layers: Annotated[int, Range(1, 512)] = 3
    """Residual blocks."""
    latent_noise_std: Annotated[float, Range(0, 10)] = 0.02
    """Noise on the latents in training, in standard deviations of the data."""
    num_steps: Annotated[int, Range(1, 10**4)] = 10
    """Euler steps of a plan."""
    noise_scale: Annotated[float, Range(0, 10)] = 0.5
    """Standard deviation of the noise that a plan starts from; training has 1.  Less is more
    precise, and 0 repeats itself where it is stuck."""
    seed: Annotated[int, Range(0, MAX_SEED)] = 0
    """Of that noise."""

    def check(self) -> None:
        super().check()
        if self.receding_horizon > self.chunk_length:
            raise ValueError(
                f"--receding-horizon {self.receding_horizon} is above --chunk-length "
                f"{self.chunk_length}; give at most as much"
            )


class FlowPolicy(TrainedController):
    """State to the next H actions.

    It plans as a `GoalPlanner` whose goal is that of its demonstrations.  All rows of a plan start
    from the same noise, so that none depends on the others; the noise changes from plan to plan,
    or the policy would repeat what has not worked.  It is the same in all episodes.
    """

    action_block = 1

    latent_mean: Tensor
    latent_std: Tensor
    action_std: Tensor

    needs = frozenset({"latents", "actions"})
    best = Best("action_error", higher_is_better=False)

    def __init__(self, config: FlowPolicyConfig, latents: LatentSpec, actions: ActionSpec) -> None:
        super().__init__()
        if actions.kind != "continuous":
            raise ValueError(
                f"a flow policy adds noise to actions, and these are {actions.kind}; use "
                f"--methods bc, or a dataset of continuous actions"
            )
        self.config, self.latents, self.actions = config, latents, actions
        self.horizon = config.chunk_length
        self.encoder = self.make_encoder(latents)
        self.net = VelocityNet(config, self.encoder.out_dim, actions.size)
        self.register_buffer("latent_mean", torch.zeros(self.encoder.out_dim))
        self.register_buffer("latent_std", torch.ones(self.encoder.out_dim))
        self.register_buffer("action_std", torch.ones(actions.size))
        self.reset()

    def make_encoder(self, latents: LatentSpec) -> Encoder:
        """What the network reads, as a function of latents."""
        return make_encoder(self.config.encoder, latents)

    def reset(self) -> None:
        self.num_plans = 0  # of the present episodes

    @property
    def clip_length(self) -> int:
        return self.config.chunk_length

    def load_codebook(self, source: HasCodebooks) -> None:
        self.encoder.load_codebook(source)

    def begin(self, sample: Batch) -> None:
        """Take the scales of actions, and of latents that the encoder does not change."""
        latents, actions = sample.require("latents", "actions")
        self.action_std.copy_(actions.flatten(0, 1).std(0).clamp(min=1e-4))
        if isinstance(self.encoder, IdentityEncoder):
            with torch.no_grad():
                features = self.encoder(latents[:, 0]).float()
            self.latent_mean.copy_(features.mean(0))
            self.latent_std.copy_(features.std(0).clamp(min=1e-4))

    def observe(self, latents: Tensor) -> Tensor:
        """(B, N) codes or (B, P, D) -> what the network reads, (B, C)."""
        return (self.encoder(latents).float() - self.latent_mean) / self.latent_std

    def sample(
        self,
        latents: Tensor,
        noise: Tensor,
        num_steps: int | None = None,
        goal: Tensor | None = None,
    ) -> Tensor:
        """Follow the flow from noise (B, H, A) to chunks (B, H, A) in [-1, 1], in the config's
        number of Euler steps or another; goal: not looked at, the demonstrations have their own."""
        return self.follow(self.observe(latents), noise, num_steps).clamp(-1, 1)

    def follow(self, observed: Tensor, noise: Tensor, num_steps: int | None = None) -> Tensor:
        """The same from what the network reads, (B, C); the chunks may leave [-1, 1]."""
        chunk, count = noise, num_steps or self.config.num_steps
        for step in range(count):
            time = torch.full((len(noise),), step / count, device=noise.device)
            chunk = chunk + self.net(chunk, time, observed) / count
        return chunk * self.action_std

    @torch.no_grad()
    def plan(
        self,
        state: State,
        goal: Tensor | None,
        last_action: Tensor | None,
        warm_start: Tensor | None = None,
        stalls: Tensor | None = None,
    ) -> Plan:
        """Plan a chunk, as `Planner.plan`, whatever the warm start; the cost is 0."""
        device, size = state.latents.device, self.actions.size
        generator = torch.Generator().manual_seed(self.config.seed + 1_000_003 * self.num_plans)
        self.num_plans += 1
        noise = torch.randn(1, self.horizon, size, generator=generator).to(device)
        noise = self.config.noise_scale * noise.expand(len(state), -1, -1)
        chunk = self.sample(state.latents, noise, goal=goal)
        return self.as_plan(chunk, last_action, torch.zeros(len(state), device=device))

    def as_plan(
        self,
        chunk: Tensor,
        last_action: Tensor | None,
        cost: Tensor,
        start_cost: Tensor | None = None,
    ) -> Plan:
        """Give chunks (B, H, A) in [-1, 1] as plans, whose first knot is the last action, or 0."""
        first_knot = torch.zeros_like(chunk[:, 0])
        if last_action is not None:
            first_knot = self.actions.normalize(last_action.to(chunk.device))
        knots = torch.cat([first_knot[:, None], chunk], dim=1)
        return Plan(self.actions.denormalize(chunk), knots, cost, start_cost)

    def loss(self, batch: Batch) -> Losses:
        """Flow matching (arXiv:2210.02747, equation 23, without its smallest variance).

        latents (B, T, N) or (B, T, P, D), of which the first frame is read; normalized actions
        (B, H, A) from there on.
        """
        latents, actions = batch.require("latents", "actions")
        return self.imitate(latents[:, 0], actions.float())

    def imitate(self, latents: Tensor, chunk: Tensor) -> Losses:
        """The loss of chunks (B, H, A) in [-1, 1] at latents (B, N) or (B, P, D)."""
        return self.flow_matching(self.observe(latents), chunk)

    def flow_matching(self, observed: Tensor, chunk: Tensor) -> Losses:
        """The loss of chunks (B, H, A) after what the network reads, (B, C)."""
        chunk = chunk / self.action_std
        observed = observed + self.config.latent_noise_std * torch.randn_like(observed)
        noise = torch.randn_like(chunk)
        time = torch.rand(len(chunk), device=chunk.device)
        along = time[:, None, None]
        velocity = self.net(noise + along * (chunk - noise), time, observed)
        return {"flow_matching": (velocity - (chunk - noise)).square().mean()}

    @torch.no_grad()
    def validate(self, held_out: Batch) -> dict[str, float]:
        """The loss, and `action_error`: the distance of executed actions from held-out ones, an
        action spans 2."""
        latents, actions = held_out.require("latents", "actions")
        sampled = self.sample(latents[:, 0], torch.zeros_like(actions))
        return super().validate(held_out) | self.action_error(sampled, actions.float())

    def action_error(self, sampled: Tensor, chunk: Tensor) -> dict[str, float]:
        """Mean distance of executed actions, of chunks (B, H, A)."""
        error = (sampled - chunk)[:, : self.config.receding_horizon].square().sum(-1).sqrt()
        return {"action_error": float(error.mean())}


class VelocityNet(nn.Module):
    """The velocity of a chunk at a time between noise, 0, and data, 1.

    An MLP over the whole chunk: residual blocks that observation and time scale and shift (FiLM,
    arXiv:1709.07871).
    """

    frequencies: Tensor

    def __init__(self, config: FlowPolicyConfig, observed_dim: int, action_dim: int) -> None:
        super().__init__()
        dim, dropout = config.encoder.hidden_dim, config.encoder.dropout
        chunk_dim = config.chunk_length * action_dim
        self.register_buffer("frequencies", torch.linspace(0, 6, 32).exp(), persistent=False)
        self.observed_in = nn.Sequential(
            nn.Linear(observed_dim, dim), nn.SiLU(), nn.Dropout(dropout), nn.Linear(dim, dim)
        )
        self.time_in = nn.Linear(2 * len(self.frequencies), dim)
        self.chunk_in = nn.Linear(chunk_dim, dim)
        self.blocks = nn.ModuleList(FilmBlock(dim, dropout) for _ in range(config.num_layers))
        self.out = nn.Linear(dim, chunk_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, chunk: Tensor, time: Tensor, observed: Tensor) -> Tensor:
        """(B, H, A), (B,), (B, C) -> (B, H, A)."""
        angles = time[:, None] * self.frequencies
        observed = self.observed_in(observed)
        time_features = self.time_in(torch.cat([angles.sin(), angles.cos()], dim=1))
        condition = nn.functional.silu(observed + time_features)
        x = self.chunk_in(chunk.flatten(1)) + observed
        for block in self.blocks:
            x = block(x, condition)
        return self.out(x).float().view_as(chunk)


class FilmBlock(nn.Module):
    """A residual block, at first the identity."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.film = nn.Linear(dim, 2 * dim)
        self.up = nn.Linear(dim, 2 * dim)
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(2 * dim, dim)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)
        nn.init.normal_(self.down.weight, std=0.01)
        nn.init.zeros_(self.down.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, W), (B, W) -> (B, W)."""
        scale, shift = self.film(condition).chunk(2, dim=-1)
        hidden = nn.functional.silu(self.up(self.norm(x) * (1 + scale) + shift))
        return x + self.down(self.dropout(hidden))


def whole_blocks(chunk_length: int, receding_horizon: int, block: int) -> int:
    """Count the actions of a chunk that are rolled out: those that are executed, in whole blocks;
    ValueError where a chunk holds none."""
    num_blocks = min(-(-receding_horizon // block), chunk_length // block)
    if num_blocks == 0:
        raise ValueError(
            f"chunks of {chunk_length} actions hold no block of the task's cost, {block}; give "
            f"--flow-policy.chunk-length {block} or more"
        )
    return num_blocks * block
