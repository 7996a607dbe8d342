"""An image that a client sends: base64 of a PNG, JPEG or WebP file, to a frame.

Limits are checked before anything is decoded.  Of an animation the first image is taken, EXIF's
orientation is followed, transparency is dropped, and the largest square in the middle is resized,
as in preprocess.py images.
"""

from __future__ import annotations

import base64
import binascii
import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from data.opencv import resize_area
from pipeline.serve.refused import Refused
from pipeline.serve.service_config import ServiceConfig

FORMATS = ("PNG", "JPEG", "WEBP")
# too many pixels are refused below, with a message of ours
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr")


def frame_of(text: str, name: str, size: tuple[int, int], config: ServiceConfig) -> np.ndarray:
    """Return (3, H, W) uint8; Refused names the field."""
    limit = int(config.max_image_mb * 10**6)
    if len(text) > limit * 4 // 3 + 4:
        raise Refused(413, f"{name} is larger than {config.max_image_mb:g} MB")
    try:
        content = base64.b64decode(text.encode("ascii"), validate=True)
    except (ValueError, binascii.Error):
        raise Refused(422, f"{name} is not base64 (without a data: prefix)") from None
    pixels = decode(content, name, config.max_megapixels)
    if size[0] != size[1]:
        raise Refused(404, f"this run has frames of {size[0]} x {size[1]} pixels, no squares")
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = np.ascontiguousarray(pixels[top : top + side, left : left + side])
    if square.shape[:2] != size:
        square = resize_area(square, size[0])
    return np.ascontiguousarray(square.transpose(2, 0, 1))


def decode(content: bytes, name: str, max_megapixels: float) -> np.ndarray:
    """Return (H, W, 3) uint8, RGB."""
    too_large = f"at most {max_megapixels:g} million pixels are decoded"
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError:
        raise Refused(413, f"{name} has too many pixels; {too_large}") from None
    except Exception:  # a damaged head may raise anything
        raise Refused(422, f"{name} is no {', '.join(FORMATS)} that can be decoded") from None
    width, height = image.size
    if width * height > max_megapixels * 10**6:
        raise Refused(413, f"{name} has {width} x {height} pixels; {too_large}")
    if image.mode not in MODES:
        raise Refused(422, f"{name} has pixels of mode {image.mode}; save 8 bits a color")
    try:
        image.seek(0)
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception:  # nor is there a list of what a damaged body raises
        raise Refused(422, f"{name} is damaged and cannot be decoded") from None


def png_of(frame: np.ndarray) -> str:
    """Base64 of a PNG file: (3, H, W) uint8."""
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame.transpose(1, 2, 0))).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode("ascii")
