"""Write frames to disk: numbered PNGs, a GIF, an mp4, or one grid.

Letters: T frames, H rows, W columns.  Frames are (H, W, 3) uint8, RGB.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.io.files import atomic_path, remove_abandoned

PALETTE_FRAMES = 16  # frames of a video that the palette of its GIF is chosen from


def write_png(path: Path, image: np.ndarray) -> None:
    """Write one (H, W, 3) uint8 image, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        imageio.imwrite(partial, image, extension=".png")


def write_video(folder: Path, frames: Iterable[np.ndarray], fps: float) -> int:
    """Write FOLDER/frames/00000.png ..., FOLDER/rollout.gif and FOLDER/rollout.mp4; return T.

    Frames of an earlier video in this folder are removed first.
    """
    images = list(frames)
    _check(images, folder)
    frames_folder = folder / "frames"
    for old in frames_folder.glob("[0-9]*.png"):
        old.unlink()
    for index, image in enumerate(images):
        write_png(frames_folder / f"{index:05d}.png", image)
    remove_abandoned(folder)
    write_gif(folder / "rollout.gif", images, fps)
    write_mp4(folder / "rollout.mp4", images, fps)
    return len(images)


def write_gif(path: Path, frames: Sequence[np.ndarray], fps: float) -> None:
    """Write a GIF that loops forever, with one palette so that it does not flicker."""
    _check(frames, path)
    indices = np.linspace(0, len(frames) - 1, min(len(frames), PALETTE_FRAMES)).astype(int)
    sample = Image.fromarray(np.concatenate([frames[i] for i in indices]))
    palette = sample.quantize(256, method=Image.Quantize.MEDIANCUT)
    images = [
        Image.fromarray(p).quantize(palette=palette, dither=Image.Dither.NONE) for p in frames
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    hundredths = max(2, round(100 / fps))  # viewers slow down GIFs faster than 50 frames/s
    with atomic_path(path) as partial:
        images[0].save(
            partial,
            format="GIF",
            save_all=True,
            append_images=images[1:],
            duration=hundredths * 10,
            loop=0,
        )


def write_mp4(path: Path, frames: Sequence[np.ndarray], fps: float) -> None:
    """Write H.264 that browsers play.

    Sizes must be even: the last row or column is repeated where they are odd.
    """
    import av  # not at the top: an OpenCV window that opens after this import hangs (PyAV #1050)

    _check(frames, path)
    height, width = frames[0].shape[:2]
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with (
        atomic_path(path) as partial,
        av.open(partial, "w", format="mp4", options={"movflags": "faststart"}) as container,
    ):
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "18"}
        for frame in frames:
            padded = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(padded, format="rgb24")))
        container.mux(stream.encode())


def make_grid(rows: Sequence[Tensor], gap: int = 2, scale: int = 2) -> np.ndarray:
    """Lay out rows of frames, each (T, 3, H, W) uint8, as one (height, width, 3) uint8 image.

    gap: pixels between frames.  scale: pixels of a side that one pixel becomes.
    """
    row_images = []
    for frames in rows:
        padded = torch.nn.functional.pad(frames.cpu(), (0, gap, 0, gap), value=128)
        row_images.append(torch.cat(list(padded), dim=-1))
    image = torch.cat(row_images, dim=-2).permute(1, 2, 0).numpy()
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


def _check(frames: Sequence[np.ndarray], path: Path) -> None:
    if not len(frames):
        raise ValueError(f"{path} would hold no frame; a video needs at least one")
    sizes = {p.shape for p in frames}
    if len(sizes) != 1:
        raise ValueError(f"{path} would hold frames of different sizes: {sorted(sizes)}")
