"""Decode a PNG, JPEG or other image file."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

from data.formats.recording import reading
from data.io.sniff import HEAD, describe_head

ONE_SHOWN = "MPO"  # a camera's format of several images, of which every viewer shows the first
EIGHT_BIT = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr")


def decode_image(content: bytes, where: str) -> np.ndarray:
    """Return (H, W, 3) uint8, RGB, without transparency, turned as EXIF says it is shown.

    ValueError for what is no image, or several.
    """
    try:
        image = Image.open(io.BytesIO(content))
    except Image.DecompressionBombError as problem:
        raise ValueError(f"{where} has too many pixels ({problem})") from None
    except Exception:  # a damaged head may raise anything
        kind = describe_head(content[:HEAD])
        raise ValueError(f"{where} is no image that can be decoded: it is {kind}") from None
    if image.mode not in EIGHT_BIT:
        raise ValueError(f"{where} has pixels of mode {image.mode}; save 8 bits a color")
    with reading(where):
        count = getattr(image, "n_frames", 1)
        upright = ImageOps.exif_transpose(image)
        pixels = np.asarray(upright.convert("RGB"))
    if count > 1 and image.format != ONE_SHOWN:
        raise ValueError(f"{where} holds {count} images, as animations do; save one of them alone")
    return pixels
