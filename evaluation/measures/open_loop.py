"""Imagine held-out clips from their actions alone, and compare with what really happened.

Letters: B windows, T frames, C context frames, H horizons, S numbers of a simulator state.

Horizon h is the frame h steps after the last true frame that the world was shown.  Beside every
figure stand two copies that cost nothing: the last true frame, and that frame as the tokenizer
gives it back.  delta-PSNR is what the actions are worth: PSNR with the true actions minus PSNR
with those of another window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from evaluation.measures.intervals import resampled_means, spread
from evaluation.measures.metrics import SAME, capped_psnr, mse, pooled_psnr, ssim
from evaluation.measures.sample_clips import spread_windows

HORIZONS = (1, 2, 3, 4, 6, 8, 12, 16)


class Ruler(Protocol):
    """What measures the state of the world in a picture (evaluation/readers/estimator.py)."""

    def read(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, S) states."""
        ...

    def errors(self, truth: Tensor, read: Tensor) -> dict[str, Tensor]:
        """Two (..., S) -> distances (...), by the name of what they measure."""
        ...


@torch.inference_mode()
def imagine(
    world: Any, frames: Tensor, actions: Tensor, context: int, horizons: Sequence[int]
) -> Tensor:
    """Show the world `context` true frames, then let it go on alone.

    frames: (B, T >= C, 3, H, W) uint8; actions: (B, T >= C - 1 + last horizon, ...).
    Returns the frames at the horizons; horizon 0 is the last true frame as the world gives it
    back: (B, len(horizons), 3, H, W) uint8.
    """
    state = world.reset(frames[:, :context], actions[:, : context - 1])
    pictures = []
    for step in range(max(horizons) + 1):
        if step > 0:
            state = world.step(state, actions[:, context - 2 + step])
        if step in horizons:
            pictures.append(world.decode(state))
    return torch.stack(pictures, 1)


def open_loop(
    world: Any,
    clips: Any,
    horizons: Sequence[int] = HORIZONS,
    context: int | None = None,
    windows: int = 64,
    batch_size: int = 64,
    estimator: Ruler | None = None,
    intervals: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Measure a world on windows of held-out clips: lists over the horizons.

    clips: windows (data/clips.py) of at least context + max(horizons) frames.  Windows are spread
    evenly over the episodes and start anywhere.  The result is for JSON: `n`, `sources`,
    `horizons`, and lists; errors of states only with an `estimator`, and `_low` and `_high` (a 95%
    bootstrap over whole sources, such as a demonstration and its replays) only with `intervals`.
    """
    shown = world.context if context is None else context
    chosen, sources = spread_windows(clips, windows, seed)
    # Windows are in order of their episodes, so half the list away lies another one.
    others = np.roll(chosen, len(chosen) // 2)

    measured: dict[str, list[Tensor]] = {}
    batches = range(0, len(chosen), batch_size)
    for start in tqdm(batches, "open loop", disable=not progress, leave=False):
        rows = slice(start, start + batch_size)
        clip = clips.batch(chosen[rows])
        shuffled = clips.batch(others[rows]).actions
        for name, values in _measure(world, clip, shuffled, horizons, shown, estimator).items():
            measured.setdefault(name, []).append(values.cpu())
    cases = {name: torch.cat(values) for name, values in measured.items()}
    return {
        "n": len(chosen),
        "sources": len(np.unique(sources)),
        "context": shown,
        "horizons": list(horizons),
        **_summary(cases),
        **(_intervals(cases, sources, seed) if intervals else {}),
    }


@torch.inference_mode()
def _measure(
    world: Any,
    clip: Any,
    shuffled: Tensor,
    horizons: Sequence[int],
    context: int,
    estimator: Ruler | None,
) -> dict[str, Tensor]:
    """Give (B, H) figures of every window: `mse:NAME`, `ssim:NAME` and `NAME:WHAT` distances."""
    frames, actions = clip.frames.to(world.device), clip.actions.to(world.device)
    mixed = torch.cat([actions[:, : context - 1], shuffled.to(world.device)[:, context - 1 :]], 1)
    ahead = torch.as_tensor(horizons) + context - 1
    truth = frames[:, ahead.to(world.device)]
    imagined = imagine(world, frames, actions, context, horizons)
    last, flat = frames[:, context - 1], truth.flatten(0, 1)
    given_back = world.tokenizer.decode(world.tokenizer.encode(last))
    pictures = {
        "model": imagined,
        "shuffled": imagine(world, frames, mixed, context, horizons),
        "copy_last": last[:, None].expand_as(truth),
        "copy_last_reconstructed": given_back[:, None].expand_as(truth),
        "reconstruction": world.tokenizer.decode(world.tokenizer.encode(flat)).view_as(truth),
    }
    figures = {}
    for name, picture in pictures.items():
        figures[f"mse:{name}"] = mse(truth, picture)
        figures[f"ssim:{name}"] = ssim(truth, picture)
    if estimator is not None and clip.states is not None:
        states = clip.states[:, ahead].to(world.device)
        for name in ("model", "copy_last", "reconstruction"):
            seen = pictures[name]
            single = name == "copy_last"  # one picture for all horizons: read it once
            read = estimator.read(seen[:, 0] if single else seen.flatten(0, 1))
            read = read[:, None].expand_as(states) if single else read.view_as(states)
            for what, distance in estimator.errors(states, read).items():
                figures[f"{name}:{what}"] = distance
    return figures


def _prefix(name: str) -> str:
    return "" if name == "model" else f"{name}_"


def _summary(cases: dict[str, Tensor]) -> dict[str, list[float]]:
    curves: dict[str, list[float]] = {}
    for key, values in cases.items():
        kind, name = key.split(":")
        columns = values.unbind(1)
        if kind == "mse":
            curves[f"{_prefix(name)}psnr"] = [pooled_psnr(c) for c in columns]
            curves[f"{_prefix(name)}psnr_mean_of_frames"] = [capped_psnr(c) for c in columns]
        elif kind == "ssim":
            curves[f"{_prefix(name)}ssim"] = [float(c.mean()) for c in columns]
        else:
            curves[f"{_prefix(kind)}{name}"] = [float(c.mean()) for c in columns]
    pairs = zip(curves["psnr"], curves["shuffled_psnr"], strict=True)
    curves["delta_psnr"] = [true - mixed for true, mixed in pairs]
    return curves


def _intervals(cases: dict[str, Tensor], sources: np.ndarray, seed: int) -> dict[str, list[float]]:
    """Bootstrap every curve over whole sources, all curves on the same draws."""
    resampled = {
        key: resampled_means(values.double().numpy(), sources, seed=seed)
        for key, values in cases.items()
    }
    curves: dict[str, np.ndarray] = {}
    for key, means in resampled.items():
        kind, name = key.split(":")
        if kind == "mse":
            curves[f"{_prefix(name)}psnr"] = -10 * np.log10(means.clip(min=SAME))
        elif kind == "ssim":
            curves[f"{_prefix(name)}ssim"] = means
        else:
            curves[f"{_prefix(kind)}{name}"] = means
    curves["delta_psnr"] = curves["psnr"] - curves["shuffled_psnr"]
    limits = {}
    for name, draws in curves.items():
        low, high = spread(draws)
        limits[f"{name}_low"], limits[f"{name}_high"] = low.tolist(), high.tolist()
    return limits
