"""Decode a PNG, JPEG or other image file."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from data.formats.recording import reading
from data.io.sniff import HEAD, describe_head

EIGHT_BIT = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr")


def decode_image(content: bytes, where: str) -> np.ndarray:
    """Return (H, W, 3) uint8, RGB, without transparency; ValueError for what is no image."""
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
        return np.asarray(image.convert("RGB"))
