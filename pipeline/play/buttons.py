"""The buttons of a world of latent actions: what each does, measured once, and what it is called.

Letters: C codes, H W pixels.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from data.clips import Clips
from data.io.files import atomic_write, parse_json, read_text
from data.shards.episode_dataset import EpisodeDataset
from models.world import World
from pipeline import checkpoint as ckpt
from pipeline.inference.action_effects import MOVES, measure_effects
from pipeline.play.panels import BACKGROUND, DIM_COLOR, MIN_WIDTH, RING_COLOR, TEXT_COLOR, font

FILE = "buttons.json"
NUM_STARTS, BATCH = 32, 16
ROW = 34  # pixels of a row of buttons
CELL = 44  # pixels of a button, at least
MAX_DRAWN = 64


@dataclass(frozen=True)
class Buttons:
    """What latent actions do, over `n` starts of held-out episodes."""

    dynamics: str
    """Fingerprint of the model that they are of."""
    names: tuple[str, ...]
    motion: tuple[tuple[float, float], ...]
    """Mean motion that each causes in a step, x and y as shares of a frame's width."""
    consistency: tuple[float, ...]
    """Mean cosine of that motion between two starts."""
    n: int

    def draw(self, image: np.ndarray, pressed: int | None = None) -> np.ndarray:
        """Add the buttons below an image (H, W, 3) uint8: the number, the motion as an arrow, and
        the name where it has one of its own."""
        width = max(image.shape[1], MIN_WIDTH)
        cells = self.motion[:MAX_DRAWN]
        longest = max(math.hypot(*motion) for motion in cells)
        columns = max(1, min(len(cells), width // CELL))
        rows = -(-len(cells) // columns)
        canvas = Image.new("RGB", (width, image.shape[0] + rows * ROW), BACKGROUND)
        canvas.paste(Image.fromarray(image), (0, 0))
        pen = ImageDraw.Draw(canvas)
        for code, motion in enumerate(cells):
            left = code % columns * (width // columns)
            top = image.shape[0] + code // columns * ROW
            color = RING_COLOR if code == pressed else TEXT_COLOR
            pen.text((left + 6, top + 14), str(code + 1), fill=color, font=font(), anchor="ls")
            pen.text((left + 6, top + 29), self.names[code][:9], fill=DIM_COLOR, font=font(),
                     anchor="ls")  # fmt: skip
            _draw_arrow(pen, (left + 30, top + 10), motion, longest, color)
        return np.asarray(canvas)

    def describe(self, code: int) -> str:
        """Name a button: its number, and its name where it has one."""
        return f"{code + 1} {self.names[code]}".strip()


def moves(motion: tuple[float, float]) -> bool:
    """Whether a mean motion is one that has a direction."""
    return math.hypot(*motion) >= MOVES


def _draw_arrow(
    pen: ImageDraw.ImageDraw,
    center: tuple[float, float],
    motion: tuple[float, float],
    longest: float,
    color: tuple[int, int, int],
) -> None:
    """An arrow as long as the motion is to the longest one; a dot where nothing moves."""
    (x, y), length = center, math.hypot(*motion)
    if not moves(motion):
        pen.ellipse((x - 1.5, y - 1.5, x + 1.5, y + 1.5), fill=color)
        return
    half = 3 + 5 * length / longest
    dx, dy = half * motion[0] / length, half * motion[1] / length
    pen.line((x - dx, y - dy, x + dx, y + dy), fill=color, width=2)
    for turn in (2.5, -2.5):
        angle = math.atan2(dy, dx) + turn
        pen.line(
            (x + dx, y + dy, x + dx + 5 * math.cos(angle), y + dy + 5 * math.sin(angle)),
            fill=color, width=2,
        )  # fmt: skip


def find_buttons(
    run: Path, world: World, dataset: EpisodeDataset, names: tuple[str, ...] = ()
) -> Buttons:
    """Read RUN/buttons.json, or measure what each latent action does, and keep it there.

    names: of the buttons from the first on, which are kept, too; none leaves those that are there.
    """
    count, path = world.actions.size, run / FILE
    if len(names) > count:
        raise ValueError(
            f"--button-names gives {len(names)} names, and this world has {count} latent actions; "
            f"give {count} at most"
        )
    fingerprint = ckpt.load(run / "dynamics" / "best.pt", "dynamics")["fingerprint"]
    known = _read(path)
    if known is None or known.dynamics != fingerprint or len(known.names) != count:
        known = _measure(world, dataset, fingerprint)
    elif not names:
        return known
    if names:
        known = replace(known, names=(*names, *known.names[len(names) :]))
    try:
        atomic_write(path, json.dumps(asdict(known), indent=1).encode())
    except OSError as problem:  # a run that others share; names given again do no harm
        print(f"play: {path} cannot be written ({problem.strerror}); names are not kept")
    return known


def _measure(world: World, dataset: EpisodeDataset, fingerprint: str) -> Buttons:
    split = "test" if dataset.episodes("test") else "train"
    clips = Clips(dataset, split, world.context, memory_limit=0)
    spaced = np.unique(np.linspace(0, len(clips) - 1, NUM_STARTS).astype(np.int64))
    states = []
    with torch.inference_mode():
        for part in np.array_split(spaced, -(-len(spaced) // BATCH)):
            clip = clips.batch(part)
            actions = world.actions_of(clip.frames, clip.actions)
            states.append(world.reset(clip.frames.to(world.device), actions))
    effects = measure_effects(world, states)
    return Buttons(
        fingerprint,
        ("",) * world.actions.size,
        tuple((float(x), float(y)) for x, y in effects.motion),
        tuple(effects.consistency.tolist()),
        effects.n,
    )


def _read(path: Path) -> Buttons | None:
    """None where there are none; ValueError where names that somebody gave would be lost."""
    try:
        values = parse_json(read_text(path))
        motion = tuple((float(x), float(y)) for x, y in values["motion"])
        names = tuple(str(name) for name in values["names"])
        consistency = tuple(float(share) for share in values["consistency"])
        if not len(motion) == len(names) == len(consistency):
            raise ValueError("its lists differ in length")
        return Buttons(str(values["dynamics"]), names, motion, consistency, int(values["n"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise ValueError(
            f"{path} is damaged ({problem}); correct or delete it, and what each button does is "
            f"measured again"
        ) from None
