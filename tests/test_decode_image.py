"""Images of any file format to pixels: upright, and one at a time."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import preprocess
from data.formats.decode_image import decode_image
from pipeline.play.goals import read_goal_image

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8).repeat(8, 0).repeat(8, 1)
ORIENTATION = 0x0112  # the EXIF tag
TURNED = 6  # stored lying on its side, shown after a quarter turn clockwise


def encoded(kind: str, *others: np.ndarray, **options: Any) -> bytes:
    content = io.BytesIO()
    more = [Image.fromarray(other) for other in others]
    several: dict[str, Any] = {"save_all": True, "append_images": more} if more else {}
    Image.fromarray(PIXELS).save(content, kind, **several, **options)
    return content.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "WEBP", "JPEG", "TIFF"])
def test_a_single_image_of_any_format_is_read(kind: str):
    read = decode_image(encoded(kind, **({"lossless": True} if kind == "WEBP" else {})), "a")
    assert read.shape == PIXELS.shape and read.dtype == np.uint8
    assert np.abs(read.astype(int) - PIXELS).mean() < (12 if kind in ("JPEG", "GIF") else 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_image_is_turned_as_its_exif_says(kind: str, tmp_path: Path):
    exif = Image.Exif()
    exif[ORIENTATION] = TURNED
    content = encoded(kind, exif=exif)
    upright = np.rot90(PIXELS, -1)
    read = decode_image(content, "a")
    assert read.shape == upright.shape == (48, 32, 3)
    assert np.abs(read.astype(int) - upright).mean() < 12
    (tmp_path / f"a.{kind.lower()}").write_bytes(content)
    assert read_goal_image(tmp_path / f"a.{kind.lower()}", (24, 16)).shape == (24, 16, 3)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_is_refused_in_one_line(kind: str, tmp_path: Path):
    content = encoded(kind, 255 - PIXELS, PIXELS // 2)
    message = "a holds 3 images, as animations do; save one of them alone"
    with pytest.raises(ValueError, match=message):
        decode_image(content, "a")
    (tmp_path / "goal").write_bytes(content)
    with pytest.raises(ValueError, match="goal holds 3 images"):
        read_goal_image(tmp_path / "goal", (32, 48))


def test_a_camera_that_stores_a_second_image_has_its_first_read():
    read = decode_image(encoded("MPO", 255 - PIXELS), "a")
    assert np.abs(read.astype(int) - PIXELS).mean() < 12


def test_an_animation_among_numbered_images_is_named(tmp_path: Path):
    folder = tmp_path / "recordings" / "episode"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"{number}.png").write_bytes(encoded("PNG"))
    (folder / "1.png").write_bytes(encoded("PNG", 255 - PIXELS))
    config = preprocess.ArraysConfig(tmp_path / "recordings", tmp_path / "run", num_workers=1)
    with pytest.raises(ValueError, match=r"1\.png holds 2 images"):
        preprocess.arrays(config)
