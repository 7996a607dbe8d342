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

COLOURS_FROM = 16  # pictures of a film that its GIF's colours are chosen from


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write one (H, W, 3) uint8 picture, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        imageio.imwrite(partial, picture, extension=".png")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_film(folder: Path, pictures: Iterable[np.ndarray], fps: float) -> int:
    """Write FOLDER/frames/00000.png ..., FOLDER/film.gif and FOLDER/film.mp4; give T.

    Frames of an earlier film in this folder are removed first.
    """
    shots = list(pictures)
    _check(shots, folder)
    frames = folder / "frames"
    for old in frames.glob("[0-9]*.png"):
        old.unlink()
    for number, shot in enumerate(shots):
        write_png(frames / f"{number:05d}.png", shot)
    write_gif(folder / "film.gif", shots, fps)
    write_mp4(folder / "film.mp4", shots, fps)
    return len(shots)


def write_gif(path: Path, pictures: Sequence[np.ndarray], fps: float) -> None:
    """Write a GIF that repeats for ever, with one set of colours so that it does not shimmer."""
    _check(pictures, path)
    chosen = np.linspace(0, len(pictures) - 1, min(len(pictures), COLOURS_FROM)).astype(int)
    together = Image.fromarray(np.concatenate([pictures[i] for i in chosen]))
    colours = together.quantize(256, method=Image.Quantize.MEDIANCUT)
    shots = [
        Image.fromarray(p).quantize(palette=colours, dither=Image.Dither.NONE) for p in pictures
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    hundredths = max(2, round(100 / fps))  # viewers slow down what is faster than 50 a second
    try:
        shots[0].save(
            partial,
            format="GIF",
            save_all=True,
            append_images=shots[1:],
            duration=hundredths * 10,
            loop=0,
        )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_mp4(path: Path, pictures: Sequence[np.ndarray], fps: float) -> None:
    """Write H.264 that browsers play: an even size, the last row or column repeated if need be."""
    import av  # not at the top: an OpenCV window that opens after this import hangs (PyAV #1050)

    _check(pictures, path)
    height, width = pictures[0].shape[:2]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    try:
        with av.open(partial, "w", format="mp4", options={"movflags": "faststart"}) as film:
            stream = film.add_stream(codec, rate=Fraction(fps).limit_denominator(1000))
            stream.width, stream.height = width + width % 2, height + height % 2
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": "18"}
            for picture in pictures:
                even = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
                film.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
            film.mux(stream.encode())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _check(pictures: Sequence[np.ndarray], where: Path) -> None:
    if not len(pictures):
        raise ValueError(f"{where} would hold no picture; a film needs at least one")
    sizes = {p.shape for p in pictures}
    if len(sizes) != 1:
        raise ValueError(f"{where} would hold pictures of different sizes: {sorted(sizes)}")
