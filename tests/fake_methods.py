"""Small methods that use what the contracts allow, and no real one needs yet."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from data.actions import ActionSpec
from data.batch import Batch
from models import registry
from models.dynamics.dynamics import Dynamics, State
from models.method import Best, Losses
from models.tokenizers.tokenizer import LatentSpec, Tokenizer

DIM, HIDDEN = 4, 6


def squeeze(frames: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 -> (B, 3 * 16) means of a 4 x 4 grid, from 0 to 1."""
    return nn.functional.adaptive_avg_pool2d(frames.float() / 255, 4).flatten(1)


class PixelHead(nn.Module):
    """Numbers to a frame."""

    def __init__(self, dim: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.image_size = image_size
        self.out = nn.Linear(dim, 3 * 16)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, 3, H, W) float, from 0 to 1."""
        small = self.out(x).unflatten(1, (3, 4, 4))
        return nn.functional.interpolate(small, self.image_size)


def to_pixels(values: Tensor) -> Tensor:
    return (values.clamp(0, 1) * 255).round().to(torch.uint8)


@dataclass(frozen=True)
class JointConfig:
    clip_length: int = 5
    rewards: bool = True


@dataclass
class JointMemory:
    hidden: Tensor  # (B, HIDDEN)

    def select(self, index: Tensor) -> JointMemory:
        return JointMemory(self.hidden[index])


class JointWorld(Dynamics, Tokenizer):
    """Encoder, recurrent state and decoder trained together: no stage 2.  Its state is the hidden
    vector with the embedding, as RSSM's is (h, z); the decoder draws the state."""

    needs = frozenset({"frames", "actions", "rewards"})
    has_rewards = True
    encoder_parts, decoder_parts = ("embed",), ("draw",)

    def __init__(
        self, config: JointConfig, image_size: tuple[int, int], actions: ActionSpec
    ) -> None:
        super().__init__()
        self.config, self.image_size, self.actions = config, image_size, actions
        self.latents = LatentSpec("continuous", (1, 1), DIM)
        self.context = 3
        self.embed = nn.Linear(3 * 16, DIM)
        self.memory = nn.GRUCell(DIM + actions.size, HIDDEN)
        self.prior = nn.Linear(HIDDEN, DIM)
        self.reward = nn.Linear(HIDDEN, 1)
        self.draw = PixelHead(HIDDEN + DIM, image_size)

    @property
    def clip_length(self) -> int:
        return self.config.clip_length

    @property
    def state_spec(self) -> LatentSpec:
        return LatentSpec("continuous", (1, 1), HIDDEN + DIM)

    def encode(self, frames: Tensor) -> Tensor:
        return torch.tanh(self.embed(squeeze(frames)))[:, None]

    def decode(self, latents: Tensor) -> Tensor:
        """Of a state's latents; of an embedding alone, with no memory."""
        x = latents[:, 0]
        if x.shape[-1] == DIM:
            x = torch.cat([x.new_zeros(len(x), HIDDEN), x], dim=-1)
        return to_pixels(self.draw(x))

    def loss(self, batch: Batch) -> Losses:
        frames, actions = batch.require("frames", "actions")
        state = self.start(self.encode_clip(frames[:, :1]), actions[:, :0])
        image, reward = [], []
        for t in range(1, frames.shape[1]):
            state = self._advance(state, actions[:, t - 1], self.encode(frames[:, t]))
            drawn = self.draw(state.latents[:, 0])
            image.append((drawn - frames[:, t].float() / 255).square().mean())
            if batch.rewards is not None:
                reward.append((state.reward - batch.rewards[:, t]).square().mean())
        losses = {"image": torch.stack(image).mean()}
        return losses | ({"reward": torch.stack(reward).mean()} if reward else {})

    def start(self, latents: Tensor, actions: Tensor) -> State:
        hidden = latents.new_zeros(len(latents), HIDDEN)
        state = self._state(hidden, latents[:, 0])
        for t in range(1, latents.shape[1]):
            state = self._advance(state, actions[:, t - 1], latents[:, t])
        return state

    def from_state(self, latents: Tensor) -> State:
        return self._state(latents[:, 0, :HIDDEN], latents[:, :, HIDDEN:])

    def step(self, state: State, action: Tensor) -> State:
        return self._advance(state, action, None)

    def observe(self, state: State, action: Tensor, latents: Tensor) -> State:
        return self._advance(state, action, latents)

    def _advance(self, state: State, action: Tensor, latents: Tensor | None) -> State:
        assert isinstance(state.memory, JointMemory)
        before = torch.cat([state.latents[:, 0, HIDDEN:], action.float()], dim=-1)
        hidden = self.memory(before, state.memory.hidden)
        z = torch.tanh(self.prior(hidden))[:, None] if latents is None else latents
        return self._state(hidden, z)

    def _state(self, hidden: Tensor, z: Tensor) -> State:
        latents = torch.cat([hidden, z[:, 0]], dim=-1)[:, None]
        reward = self.reward(hidden)[:, 0]
        return State(latents, reward, torch.ones_like(reward), JointMemory(hidden))


@dataclass(frozen=True)
class CausalConfig:
    image_size: tuple[int, int] = (32, 32)


class CausalTokenizer(Tokenizer):
    """Encodes a frame with the two before it, and decodes it with their latents."""

    temporal_context = 3

    def __init__(self, config: CausalConfig) -> None:
        super().__init__()
        self.config, self.image_size = config, config.image_size
        self.latents = LatentSpec("continuous", (1, 1), DIM)
        self.embed = nn.ModuleList(nn.Linear(3 * 16, DIM) for _ in range(3))
        self.mix = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(3))
        self.draw = PixelHead(DIM, config.image_size)

    @property
    def clip_length(self) -> int:
        return 4

    def encode(self, frames: Tensor) -> Tensor:
        return self.encode_clip(frames[:, None])[:, 0]

    def decode(self, latents: Tensor) -> Tensor:
        return self.decode_clip(latents[:, None])[:, 0]

    def encode_clip(self, frames: Tensor) -> Tensor:
        small = squeeze(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        return self._causal(self.embed, small)[:, :, None]

    def decode_clip(self, latents: Tensor) -> Tensor:
        return to_pixels(self._drawn(latents))

    def loss(self, batch: Batch) -> Losses:
        (frames,) = batch.require("frames")
        drawn = self._drawn(self.encode_clip(frames))
        return {"reconstruction": (drawn - frames.float() / 255).square().mean()}

    def _drawn(self, latents: Tensor) -> Tensor:
        mixed = self._causal(self.mix, latents[:, :, 0])
        return self.draw(mixed.flatten(0, 1)).unflatten(0, mixed.shape[:2])

    @staticmethod
    def _causal(layers: nn.ModuleList, x: Tensor) -> Tensor:
        """(B, T, D) -> the sum of a layer of each of the last three: (B, T, E)."""
        total = layers[0](x)
        for back in (1, 2):
            past = nn.functional.pad(x, (0, 0, back, 0))[:, : x.shape[1]]
            known = (torch.arange(x.shape[1]) >= back)[None, :, None].to(x.device)
            total = total + layers[back](past) * known
        return total


@dataclass(frozen=True)
class LatentActionConfig:
    clip_length: int = 4
    rewards: bool = False


@dataclass
class NoMemory:
    def select(self, index: Tensor) -> NoMemory:
        return self


class LatentActions(Dynamics):
    """Learns from frames without actions: infers one of three between two frames."""

    needs = frozenset({"frames", "latents"})
    infers_actions = True
    has_rewards = False
    best = Best("prediction", higher_is_better=False)

    def __init__(self, config: LatentActionConfig, latents: LatentSpec) -> None:
        super().__init__()
        self.config, self.latents = config, latents
        self.actions = ActionSpec("discrete", ("left", "still", "right"))
        self.context = 1
        self.infer = nn.Linear(3 * 16, 3)
        self.effect = nn.Linear(3, latents.dim)

    @property
    def clip_length(self) -> int:
        return self.config.clip_length

    def loss(self, batch: Batch) -> Losses:
        frames, latents = batch.require("frames", "latents")
        soft = self._logits(frames).softmax(-1)
        predicted = latents[:, :-1] + self.effect(soft)[:, :, None]
        return {"prediction": (predicted - latents[:, 1:]).square().mean()}

    def validate(self, held_out: Batch) -> dict[str, float]:
        return {k: float(v) for k, v in self.loss(held_out).items()}

    def infer_actions(self, frames: Tensor) -> Tensor:
        return self._logits(frames).argmax(-1)

    def _logits(self, frames: Tensor) -> Tensor:
        small = squeeze(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        return self.infer(small[:, 1:] - small[:, :-1])

    def start(self, latents: Tensor, actions: Tensor) -> State:
        rows = torch.ones(len(latents), device=latents.device)
        return State(latents[:, -1], 0 * rows, rows, NoMemory())

    def step(self, state: State, action: Tensor) -> State:
        chosen = nn.functional.one_hot(action, 3).float()
        return State(
            state.latents + self.effect(chosen)[:, None], state.reward, state.continues, NoMemory()
        )

    def observe(self, state: State, action: Tensor, latents: Tensor) -> State:
        return self.start(latents[:, None], action)


@dataclass(frozen=True)
class TargetConfig:
    image_size: tuple[int, int] = (32, 32)
    decay: float = 0.9
    sizes: tuple[int, ...] = field(default=(8,))


class TargetEncoder(Tokenizer):
    """An encoder without a decoder that predicts an EMA copy of itself, chosen by a rank."""

    has_decoder = False
    best = Best("mrr")

    def __init__(self, config: TargetConfig) -> None:
        super().__init__()
        self.config, self.image_size = config, config.image_size
        self.latents = LatentSpec("continuous", (1, 1), DIM)
        self.encoder = nn.Sequential(nn.Linear(3 * 16, 8), nn.BatchNorm1d(8), nn.Linear(8, DIM))
        self.target = copy.deepcopy(self.encoder).requires_grad_(False)
        self.predictor = nn.Linear(DIM, DIM)
        self.steps = 0

    def encode(self, frames: Tensor) -> Tensor:
        return self.encoder(squeeze(frames))[:, None]

    def loss(self, batch: Batch) -> Losses:
        (frames,) = batch.require("frames")
        small = squeeze(frames.flatten(0, 1))
        with torch.no_grad():
            wanted = self.target(small)
        return {"prediction": (self.predictor(self.encoder(small)) - wanted).square().mean()}

    def after_step(self) -> None:
        self.steps += 1
        for slow, fast in zip(self.target.parameters(), self.encoder.parameters(), strict=True):
            slow.lerp_(fast, 1 - self.config.decay)

    def validate(self, held_out: Batch) -> dict[str, float]:
        """Mean reciprocal rank of the right target among the batch's."""
        (frames,) = held_out.require("frames")
        small = squeeze(frames.flatten(0, 1))
        distance = torch.cdist(self.predictor(self.encoder(small)), self.target(small))
        rank = (distance <= distance.diagonal()[:, None]).sum(1)
        return {"mrr": float((1 / rank).mean()), "n": float(len(small))}


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the registry know these methods, for one test."""
    monkeypatch.setitem(registry.DYNAMICS, "joint", lambda: (JointConfig, JointWorld))
    monkeypatch.setitem(
        registry.DYNAMICS, "latent_actions", lambda: (LatentActionConfig, LatentActions)
    )
    monkeypatch.setitem(registry.TOKENIZERS, "causal", lambda: (CausalConfig, CausalTokenizer))
    monkeypatch.setitem(registry.TOKENIZERS, "target", lambda: (TargetConfig, TargetEncoder))
