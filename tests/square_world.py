"""A world of latent actions whose codes are known: the direction in which a square moves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from data.actions import ActionSpec
from data.batch import Batch
from data.shards.build_info import shard_name
from data.shards.episode_dataset import EpisodeDataset
from data.shards.episodes import Episode
from data.shards.write_shard import write_shard
from models.dynamics.dynamics import Dynamics, State
from models.method import Losses
from models.tokenizers.tokenizer import LatentSpec, Tokenizer
from models.world import World

SIDE, SQUARE, MOVE = 32, 6, 2.0  # pixels
STICK = ActionSpec("continuous", ("x", "y"), (-1.0, -1.0), (1.0, 1.0))
MOVES = ActionSpec("discrete", ("stay", *(f"{45 * i} degrees" for i in range(8))))
ANGLES = np.arange(8) * np.pi / 4
VECTORS = np.concatenate([np.zeros((1, 2)), np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1)])
"""(9, 2): what each of MOVES does, x and y; the others are of length 1."""
NAMES = np.array([4, 7, 1, 0, 8, 3, 6, 2, 5])
"""The latent code of each of them: latent actions have no order of their own."""
BUTTONS = ActionSpec("discrete", tuple(f"action {i}" for i in range(1, 10)))


def draw(places: Tensor) -> Tensor:
    """Places of the square's center in pixels, (B, 2) -> (B, 3, SIDE, SIDE) uint8."""
    axis = torch.arange(SIDE) + 0.5
    x, y = places[:, 0, None, None], places[:, 1, None, None]
    inside = (SQUARE / 2 + 0.5 - (axis[None, None, :] - x).abs()).clamp(0, 1)
    inside = inside * (SQUARE / 2 + 0.5 - (axis[None, :, None] - y).abs()).clamp(0, 1)
    return (200 * inside).round().to(torch.uint8)[:, None].expand(-1, 3, -1, -1).contiguous()


def find(frames: Tensor) -> Tensor:
    """The inverse of `draw`: (B, 3, SIDE, SIDE) uint8 -> (B, 2)."""
    weight = frames[:, 0].float()
    axis = torch.arange(SIDE) + 0.5
    total = weight.sum((1, 2)).clamp(min=1)
    return (
        torch.stack([(weight.sum(1) * axis).sum(1), (weight.sum(2) * axis).sum(1)], 1)
        / (total[:, None])
    )


@dataclass(frozen=True)
class SquareConfig:
    deaf: bool = False


@dataclass
class NoMemory:
    def select(self, index: Tensor) -> NoMemory:
        return self


class SquareWorld(Dynamics, Tokenizer):
    """The latent of a frame is the square's place. The oracle infers in which direction it went,
    and moves it so; the deaf one infers what the frame before says, and moves nothing."""

    needs = frozenset({"frames"})
    infers_actions = True
    has_rewards = False
    encoder_parts, decoder_parts = (), ()

    def __init__(self, config: SquareConfig | None = None) -> None:
        super().__init__()
        self.config = config or SquareConfig()
        self.image_size, self.context = (SIDE, SIDE), 2
        self.latents = LatentSpec("continuous", (1, 1), 2)
        self.actions = BUTTONS
        self.unused = nn.Parameter(torch.zeros(1))

    @property
    def clip_length(self) -> int:
        return 3

    def loss(self, batch: Batch) -> Losses:
        return {"nothing": self.unused.square().sum()}

    def encode(self, frames: Tensor) -> Tensor:
        return find(frames)[:, None]

    def decode(self, latents: Tensor) -> Tensor:
        return draw(latents[:, 0])

    def latent_action_vectors(self, frames: Tensor) -> Tensor:
        places = find(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        if self.config.deaf:
            return (places[:, :-1] * 7.3).sin()
        return places[:, 1:] - places[:, :-1]

    def infer_actions(self, frames: Tensor) -> Tensor:
        vectors = self.latent_action_vectors(frames)
        if self.config.deaf:
            return (vectors[..., 0] * 1000).long() % len(NAMES)
        distance = torch.cdist(vectors.flatten(0, 1), MOVE * torch.from_numpy(VECTORS).float())
        return torch.from_numpy(NAMES)[distance.argmin(1)].unflatten(0, vectors.shape[:2])

    def start(self, latents: Tensor, actions: Tensor) -> State:
        rows = torch.ones(len(latents))
        return State(latents[:, -1], 0 * rows, rows, NoMemory())

    def step(self, state: State, action: Tensor) -> State:
        if self.config.deaf:
            return state
        move = torch.from_numpy(VECTORS).float()[torch.from_numpy(NAMES).argsort()[action]]
        return self.start(state.latents[:, None] + MOVE * move[:, None, None], action)

    def observe(self, state: State, action: Tensor, latents: Tensor) -> State:
        return self.start(latents[:, None], action)


def square_world(deaf: bool = False) -> World:
    model = SquareWorld(SquareConfig(deaf))
    return World(model, model, data_actions=STICK)


def write_squares(
    folder: Path,
    actions: ActionSpec | None = STICK,
    episodes: int = 9,
    length: int = 24,
    seed: int = 0,
) -> EpisodeDataset:
    """Write shards of a square that moves in a random direction at each step, or stays.

    actions: STICK, MOVES, or None for none at all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    made = []
    for number in range(episodes):
        place = rng.uniform(12, SIDE - 12, 2)
        places, taken = [place], []
        for _ in range(length):
            options = [
                move for move in range(9)
                if (abs(place + MOVE * VECTORS[move] - SIDE / 2) < SIDE / 2 - 5).all()
            ]  # fmt: skip
            taken.append(int(rng.choice(options)))
            place = place + MOVE * VECTORS[taken[-1]]
            places.append(place)
        frames = draw(torch.from_numpy(np.stack(places[:-1])).float()).permute(0, 2, 3, 1).numpy()
        codes = np.array(taken, np.int64)
        stored = {STICK: VECTORS[codes].astype(np.float32), MOVES: codes}.get(actions)  # type: ignore[arg-type]
        made.append(Episode(frames, stored, split=(0, 1, 2)[number % 3], source=number))
    spec = actions or ActionSpec("none", ())
    description = {"source": "squares", "image_size": [SIDE, SIDE], "actions": spec.as_dict()}
    write_shard(folder / shard_name(0), made, description)
    return EpisodeDataset(folder)
