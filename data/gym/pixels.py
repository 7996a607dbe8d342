"""Where the pixels of an environment are, and how they become a frame.

Letters: H W pixels of the environment, S side of a frame, D numbers of a state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from data.opencv import resize_area

MIN_SIDE = 16  # a smaller image is a grid of symbols, not pixels
MAX_STATE = 256  # numbers of a state that are stored
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
SOURCES = ("auto", "observation", "render")
COMMON_KEYS = ("pixels", "image", "rgb", "frame")


@dataclass(frozen=True)
class PixelSource:
    """What of an observation is stored."""

    source: str
    """`observation`, `render`, or the key of a Dict observation."""
    state_keys: tuple[str, ...] = ()
    """Keys of a Dict observation whose numbers are its state."""
    state_is_observation: bool = False
    state_dim: int = 0

    def pixels(self, observation: Any, render: Any) -> np.ndarray:
        """Return an image of the environment; render: called where it is drawn."""
        if self.source == "render":
            return render()
        return np.asarray(observation if self.source == "observation" else observation[self.source])

    def state(self, observation: Any) -> np.ndarray | None:
        """Return the observed numbers, (D,) float32; None where there are none."""
        if self.state_is_observation:
            return np.array(observation, np.float32).reshape(-1)  # it may be changed in place
        if not self.state_keys:
            return None
        parts = [np.asarray(observation[key], np.float32).reshape(-1) for key in self.state_keys]
        return np.concatenate(parts)


def find_pixel_source(space: spaces.Space, pixels: str, where: str) -> PixelSource:
    """Choose where pixels are from: `auto` takes an observation of pixels, and else `render`.

    ValueError where `pixels` names what the environment does not observe.
    """
    images = _images(space)
    source = pixels
    if pixels == "auto":
        known = [key for key in (*COMMON_KEYS, "observation") if key in images]
        source = known[0] if known else next(iter(images), "render")
        if len(images) > 1 and not known:
            raise ValueError(
                f"{where} observes several images ({', '.join(images)}); give one of them as "
                f"--pixels"
            )
    elif pixels != "render" and pixels not in images:
        found = ", ".join(images) or "none"
        raise ValueError(
            f"--pixels {pixels}: {where} observes {str(space)[:80]}, whose images of at least "
            f"{MIN_SIDE} pixels are: {found}; --pixels render draws it"
        )
    if isinstance(space, spaces.Dict):
        vectors = {k: s for k, s in space.spaces.items() if k != source and _is_vector(s)}
        dim = sum(int(np.prod(s.shape or (1,))) for s in vectors.values())
        keys = tuple(vectors) if 0 < dim <= MAX_STATE else ()
        return PixelSource(source, keys, state_dim=dim if keys else 0)
    if source == "render" and _is_vector(space):
        dim = int(np.prod(space.shape or (1,)))
        return PixelSource(source, (), dim <= MAX_STATE, dim if dim <= MAX_STATE else 0)
    return PixelSource(source)


def to_frame(pixels: Any, side: int, grayscale: bool, where: str) -> np.ndarray:
    """Turn (H, W), (H, W, 1), (H, W, 3 or 4) or (3, H, W) uint8 into (S, S, 3) uint8."""
    image = np.asarray(pixels)
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise ValueError(
            f"{where} gives pixels of {image.dtype} {image.shape}; uint8 (H, W, 3) is needed"
        )
    if image.ndim == 2:
        image = image[..., None]
    if image.shape[2] not in (1, 3, 4) and image.shape[0] in (1, 3):
        image = image.transpose(1, 2, 0)
    if image.shape[2] not in (1, 3, 4):
        raise ValueError(f"{where} gives pixels of {image.shape}; uint8 (H, W, 3) is needed")
    image = np.ascontiguousarray(image[..., :3])
    if image.shape[:2] != (side, side):
        image = resize_area(image, side).reshape(side, side, image.shape[2])
    if image.shape[2] == 1:
        return np.repeat(image, 3, 2)
    if grayscale:
        gray = np.rint(image.astype(np.float32) @ LUMA).astype(np.uint8)
        return np.repeat(gray[..., None], 3, 2)
    return image


def _images(space: spaces.Space) -> dict[str, spaces.Box]:
    """Return the parts of an observation that are images, by what --pixels calls them."""
    if isinstance(space, spaces.Dict):
        return {key: part for key, part in space.spaces.items() if _is_image(part)}  # type: ignore[misc]
    return {"observation": space} if _is_image(space) else {}  # type: ignore[dict-item]


def _is_image(space: spaces.Space) -> bool:
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8:
        return False
    shape = space.shape
    if len(shape) == 3:
        if shape[2] in (1, 3, 4):
            shape = shape[:2]
        elif shape[0] in (1, 3):
            shape = shape[1:]
        else:
            return False
    return len(shape) == 2 and min(shape) >= MIN_SIDE


def _is_vector(space: spaces.Space) -> bool:
    is_box = isinstance(space, spaces.Box) and space.dtype is not None
    return is_box and space.dtype.kind == "f" and len(space.shape) <= 1  # type: ignore[union-attr, arg-type]
