"""Draw what the committed world sees, imagines and knows: strips of its frames.

Reads   checkpoints/pusht-goals.
Writes  docs/images/: keypoints-strip, horizon-strip, futures-strip, shards-strip, stillness-strip,
        views-strip, features-strip, steering-strip (.svg).
Try     python docs/make/world_figures.py
        python docs/make/world_figures.py keypoints horizon
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache

import numpy as np
import torch

from drawing import ROOT
from strips import Row, Strip, rows_last

sys.path[:0] = [str(ROOT)]

from data.clips import Clips  # noqa: E402
from data.shards.episode_dataset import EpisodeDataset  # noqa: E402
from evaluation.measures.metrics import capped_psnr, mse  # noqa: E402
from models.world import World  # noqa: E402
from pipeline.inference.load_world import load_world  # noqa: E402

RUN = ROOT / "checkpoints/pusht-goals"
MOVING = 1000  # the starts that are looked at for one in which much moves


@cache
def world() -> World:
    return load_world(RUN)


@cache
def dataset() -> EpisodeDataset:
    return EpisodeDataset(RUN / "shards")


def liveliest(length: int, split: str = "test", count: int = 1) -> list[int]:
    """Numbers of the held-out clips in which the block moves most."""
    clips = Clips(dataset(), split, length)  # type: ignore[arg-type]
    wanted = np.linspace(0, len(clips) - 1, min(MOVING, len(clips))).astype(int)
    moved = []
    for part in np.array_split(wanted, -(-len(wanted) // 100)):
        frames = clips.batch(part).frames[:, world().context - 1 :: 4].float()
        moved += frames.diff(dim=1).abs().mean((1, 2, 3, 4)).tolist()
    order = np.argsort(moved)[::-1]
    found: list[int] = []
    for at in order:
        if all(abs(int(wanted[at]) - other) > length for other in found):
            found.append(int(wanted[at]))
        if len(found) == count:
            break
    return found


def keypoints() -> Strip:
    """Frames, the 32 points on them, and what is drawn of the points alone."""
    clips = Clips(dataset(), "test", 40)
    frames = clips.batch(np.array(liveliest(40))).frames[0, ::8]
    latents = world().tokenizer.encode(frames)
    drawn = world().tokenizer.decode(latents)
    points = latents[:, 0].unflatten(-1, (-1, 2))
    seen = []
    for frame, places in zip(rows_last(frames), points, strict=True):
        large = frame.repeat(3, 0).repeat(3, 1).copy()
        large[:] = 255 - (255 - large) // 2
        for x, y in ((places + 1) / 2 * 191).round().int().tolist():
            large[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3] = (179, 60, 10)
        seen.append(large)
    return Strip(
        "Frames of Push-T, their 32 keypoints, and the frames drawn from the keypoints alone",
        [Row("frames, 12,288 numbers each", rows_last(frames)),
         Row("latents: 32 points, 64 numbers", seen),
         Row("drawn from the points", rows_last(drawn))],
        notes=["Held-out frames of the committed world, 8 steps apart."],
    )  # fmt: skip


def horizon() -> Strip:
    """A true future, the imagined one, and that under another clip's actions, with their PSNR."""
    steps, context = [0, 4, 8, 12, 16, 20], world().context
    number = liveliest(context + 20)[0]
    clips = Clips(dataset(), "test", context + 20)
    clip = clips.batch(np.array([number, (number + len(clips) // 2) % len(clips)]))
    truth = clip.frames[0, [context - 1 + step for step in steps]]
    rows = [Row("true frames", rows_last(truth))]
    for about, actor in (("imagined, true actions", 0), ("imagined, another clip's actions", 1)):
        state = world().reset(clip.frames[:1, :context], clip.actions[:1, : context - 1])
        drawn = [world().decode(state)]
        for action in clip.actions[actor, context - 1 : context + 19]:
            state = world().step(state, action[None])
            drawn.append(world().decode(state))
        frames = torch.cat(drawn)[steps]
        psnr = [capped_psnr(error) for error in mse(frames, truth)]
        under = [f"{value:.0f} dB" if step else "" for step, value in zip(steps, psnr, strict=True)]
        rows.append(Row(about, rows_last(frames), under))
    return Strip(
        "A true future, the imagined one, and one imagined under the actions of another clip",
        rows, heads=["start", *(f"+ {step}" for step in steps[1:])],
        notes=["PSNR of each frame. The difference of the last two rows is delta-PSNR: what the "
               "actions are worth. One held-out clip of the committed world."],
    )  # fmt: skip


def futures() -> Strip:
    """One start, three sequences of actions."""
    context = world().context
    number = liveliest(context + 20)[0]
    clip = Clips(dataset(), "test", context + 20).batch(np.array([number]))
    start = world().reset(clip.frames[:, :context], clip.actions[:, : context - 1])
    rows = []
    for name, target in (("through the block", (80.0, 330.0)), ("past it", (60.0, 100.0)),
                         ("to the corner", (480.0, 480.0))):  # fmt: skip
        state, drawn = start, [world().decode(start)]
        for _ in range(20):
            state = world().step(state, torch.tensor([target]))
            drawn.append(world().decode(state))
        rows.append(Row(f"the agent is sent {name}", rows_last(torch.cat(drawn)[::4])))
    return Strip(
        "Three futures of one start: the agent goes through the block, past it, to the corner",
        rows, heads=["start", *(f"+ {step}" for step in range(4, 21, 4))],
        notes=["All is imagined: the first frame is the last that the model was shown."],
    )  # fmt: skip


def shards() -> Strip:
    """What lies at frames t, t + 1 ... of an episode."""
    names = list(dataset().state_names)
    episode, start = _rewarded()
    stop = start + 6
    frames = dataset().read(episode, "frames", start, stop)
    actions = dataset().read(episode, "actions", start, stop)
    rewards = dataset().read(episode, "rewards", start, stop)
    states = dataset().read(episode, "states", start, stop)
    offsets = actions - states[:, [names.index("agent_x"), names.index("agent_y")]]
    scale = np.abs(offsets).max()
    return Strip(
        "Six frames of an episode, with the action that leads on from each, and the reward there",
        [Row("frames[t]", frames, [f"{reward:.2f}" for reward in rewards],
             [tuple(offset / scale) for offset in offsets])],
        heads=[f"t = {step}" for step in range(start, stop)],
        notes=["Arrows: actions[t], here from the agent to its target. It leads from frames[t] to "
               "frames[t + 1]. Numbers: rewards[t], earned on reaching frames[t]."],
    )  # fmt: skip


def _rewarded() -> tuple[int, int]:
    """An episode and a frame where the reward changes most in six frames."""
    best = (0.0, 0, 0)
    for episode in dataset().episodes("test"):
        rewards = dataset().read(episode, "rewards")
        if len(rewards) > 6:
            gain = rewards[5:] - rewards[:-5]
            best = max(best, (float(gain.max()), episode, int(gain.argmax())))
    return best[1], best[2]


def stillness() -> Strip:
    """What the metric of docs/how-to/add-a-metric.md measures, of six clips."""
    context = world().context
    clips = Clips(dataset(), "test", context + 1)
    clip = clips.batch(np.array(liveliest(context + 1, count=6)))
    state = world().reset(clip.frames[:, :context], clip.actions[:, : context - 1])
    before = world().decode(state)
    after = world().decode(world().step(state, clip.actions[:, context - 1]))
    change = (after.float() - before.float()).abs()
    shown = (255 - change.mean(1, keepdim=True).mul(4).clamp(max=255)).byte().expand_as(before)
    return Strip(
        "Frames before and after one imagined step, and how much each pixel changes",
        [Row("the start, drawn", rows_last(before)), Row("one step later", rows_last(after)),
         Row("the change: its mean is the metric", rows_last(shown),
             [f"{value:.2f}" for value in change.mean((1, 2, 3))])],
        notes=["Six held-out clips of the committed world; of 255, darker is more."],
    )  # fmt: skip


def views() -> Strip:
    """Pairs of views, what is seen and what is predicted of them."""
    from models.layers import views as v
    from models.layers.block_masks import draw_blocks

    torch.manual_seed(3)
    count, grid = 6, (8, 8)
    clips = Clips(dataset(), "test", 2)
    images = clips.batch(np.linspace(0, len(clips) - 1, count).astype(int)).frames[:, 0]
    source, target = torch.zeros(2, count, v.SLOTS).unbind(0)
    for row, kind in enumerate(("jitter", "blur", "grayscale", "solarize", "crop", "jitter")):
        v.draw(target[row : row + 1], kind)  # type: ignore[arg-type]
    seen, wanted = (v.apply(images.float() / 255, view) for view in (source, target))
    visible, predicted = draw_blocks(count, grid, 25, 25, images.device)

    def only(frames: torch.Tensor, patches: torch.Tensor) -> np.ndarray:
        mask = torch.zeros(count, grid[0] * grid[1]).scatter_(1, patches, 1.0)
        mask = mask.view(count, 1, *grid).repeat_interleave(8, 2).repeat_interleave(8, 3)
        return rows_last((255 * (frames * mask + 0.8 * (1 - mask))).round().byte())

    named = ["jitter", "blur", "gray", "solarized", "crop", "jitter"]
    return Strip(
        "Views of six frames: what the encoder sees of one, and what is predicted of the other",
        [Row("the encoder sees these patches", only(seen, visible)),
         Row("the other view", rows_last((255 * wanted).round().byte()), named),
         Row("latents of these patches are predicted", only(wanted, predicted))],
        notes=["The predictor is told the 16 numbers by which the second view differs."],
    )  # fmt: skip


def features() -> Strip:
    """The three main components of a pretrained encoder's features, and of an untrained one's."""
    from models.tokenizers.frozen_encoder import FrozenEncoder, FrozenEncoderConfig

    clips = Clips(dataset(), "test", 40)
    frames = clips.batch(np.array(liveliest(40))).frames[0, ::8]
    name = "models.tokenizers.efficientnet_lite:EfficientNetLite0"
    rows = [Row("frames", rows_last(frames))]
    for about, given in (("pretrained on ImageNet", name), ("the same network, untrained",
                                                            f"random:{name}")):  # fmt: skip
        torch.manual_seed(0)
        encoder = FrozenEncoder(FrozenEncoderConfig((64, 64), given, input_size=256))
        found = encoder.encode(frames)
        flat = found.flatten(0, 1)
        flat = flat - flat.mean(0)
        axes = torch.linalg.svd(flat, full_matrices=False).Vh[:3]
        colors = flat @ axes.T
        colors = ((colors / colors.std(0)).clamp(-2, 2) + 2) / 4 * 255
        grid = encoder.latents.grid
        maps = colors.view(len(frames), *grid, 3).byte().numpy()
        rows.append(Row(f"{about}: {grid[0]} x {grid[1]} places", maps))
    return Strip(
        "Frames, features of a pretrained encoder, and those of the same network untrained",
        rows, notes=["Colors: the three main components of the features, over all frames here."],
        quality=95,
    )  # fmt: skip


def steering() -> Strip:
    """Futures of one start, steered along a direction of a layer."""
    from evaluation.measures.steering import find_direction
    from models.hooks.layer_manipulator import AddDirection, LayerManipulator

    layer, context = "transformer.layers.3", world().context
    right = find_direction(world(), dataset(), layer, "block_x", num_steps=5, num_clips=1000)
    number = liveliest(context + 20)[0]
    clip = Clips(dataset(), "test", context + 20).batch(np.array([number]))
    start = world().reset(clip.frames[:, :context], clip.actions[:, : context - 1])
    rows = []
    for dose in (-10, 0, 10):
        about = "as it is" if not dose else f"{dose:+d} pixels of the block's x, each 5 steps"
        with LayerManipulator(world().dynamics, {"dose": (layer, AddDirection(right, dose))}):
            state, drawn = start, [world().decode(start)]
            for action in clip.actions[0, context - 1 : context + 19]:
                state = world().step(state, action[None])
                drawn.append(world().decode(state))
        rows.append(Row(about, rows_last(torch.cat(drawn)[::4])))
    return Strip(
        "Three imagined futures under the same actions: steered to the left, not, and to the right",
        rows, heads=["start", *(f"+ {step}" for step in range(4, 21, 4))],
        notes=["The same start and the same actions; a direction is added to one layer."],
    )  # fmt: skip


STRIPS: dict[str, Callable[[], Strip]] = {
    "keypoints": keypoints, "horizon": horizon, "futures": futures, "shards": shards,
    "stillness": stillness, "views": views, "features": features, "steering": steering,
}  # fmt: skip


def main(chosen: list[str]) -> None:
    for name in chosen or STRIPS:
        with torch.no_grad():
            STRIPS[name]().draw(f"{name}-strip.svg")


if __name__ == "__main__":
    main(sys.argv[1:])
