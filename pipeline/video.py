"""Write pictures to disk: numbered PNGs, a GIF and an mp4.

Letters: T pictures, H rows, W columns.  Pictures are (H, W, 3) uint8, RGB.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from PIL import Image

PALETTE_FRAMES = 16  # pictures of a film that its GIF's colours are chosen from


def write_png(path: Path, image: np.ndarray) -> None:
    """Write one (H, W, 3) uint8 picture, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        imageio.imwrite(partial, image, extension=".png")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_video(folder: Path, frames: Iterable[np.ndarray], fps: float) -> int:
    """Write FOLDER/frames/00000.png ..., FOLDER/film.gif and FOLDER/film.mp4; give T.

    Frames of an earlier film in this folder are removed first.
    """
    images = list(frames)
    _check(images, folder)
    frames_folder = folder / "frames"
    for old in frames_folder.glob("[0-9]*.png"):
        old.unlink()
    for index, image in enumerate(images):
        write_png(frames_folder / f"{index:05d}.png", image)
    write_gif(folder / "film.gif", images, fps)
    write_mp4(folder / "film.mp4", images, fps)
    return len(images)


def write_gif(path: Path, frames: Sequence[np.ndarray], fps: float) -> None:
    """Write a GIF that repeats for ever, with one set of colours so that it does not shimmer."""
    _check(frames, path)
    indices = np.linspace(0, len(frames) - 1, min(len(frames), PALETTE_FRAMES)).astype(int)
    sample = Image.fromarray(np.concatenate([frames[i] for i in indices]))
    palette = sample.quantize(256, method=Image.Quantize.MEDIANCUT)
    images = [
        Image.fromarray(p).quantize(palette=palette, dither=Image.Dither.NONE) for p in frames
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    hundredths = max(2, round(100 / fps))  # viewers slow down what is faster than 50 a second
    try:
        images[0].save(
            partial,
            format="GIF",
            save_all=True,
            append_images=images[1:],
            duration=hundredths * 10,
            loop=0,
        )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_mp4(path: Path, frames: Sequence[np.ndarray], fps: float) -> None:
    """Write H.264 that browsers play: an even size, the last row or column repeated if need be."""
    import av  # not at the top: an OpenCV window that opens after this import hangs (PyAV #1050)

    _check(frames, path)
    height, width = frames[0].shape[:2]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    try:
        with av.open(partial, "w", format="mp4", options={"movflags": "faststart"}) as container:
            stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1000))
            stream.width, stream.height = width + width % 2, height + height % 2
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": "18"}
            for frame in frames:
                padded = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
                container.mux(stream.encode(av.VideoFrame.from_ndarray(padded, format="rgb24")))
            container.mux(stream.encode())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _check(frames: Sequence[np.ndarray], path: Path) -> None:
    if not len(frames):
        raise ValueError(f"{path} would hold no picture; a film needs at least one")
    sizes = {p.shape for p in frames}
    if len(sizes) != 1:
        raise ValueError(f"{path} would hold pictures of different sizes: {sorted(sizes)}")
