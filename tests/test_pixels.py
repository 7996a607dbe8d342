"""Where the pixels of an environment are, and how they become frames."""

from __future__ import annotations

from typing import Any

import counting_env  # noqa: F401  (registers Counting-v0)
import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from data.gym.env_spec import EnvSpec, env_spec_of, parse_kwargs
from data.gym.pixel_env import PixelEnv
from data.gym.pixels import find_pixel_source, to_frame

IMAGE = spaces.Box(0, 255, (20, 24, 3), np.uint8)
SYMBOLS = spaces.Box(0, 255, (7, 7, 3), np.uint8)
VECTOR = spaces.Box(-1.0, 1.0, (4,), np.float32)


@pytest.mark.parametrize(
    ("space", "pixels", "source", "state_dim"),
    [
        (IMAGE, "auto", "observation", 0),
        (IMAGE, "render", "render", 0),
        (VECTOR, "auto", "render", 4),
        (SYMBOLS, "auto", "render", 0),
        (spaces.Discrete(3), "auto", "render", 0),
        (spaces.Dict({"pixels": IMAGE, "agent_pos": VECTOR}), "auto", "pixels", 4),
        (spaces.Dict({"other": IMAGE, "image": IMAGE}), "auto", "image", 0),
        (spaces.Dict({"left": IMAGE, "right": IMAGE}), "right", "right", 0),
        (spaces.Dict({"image": SYMBOLS, "direction": spaces.Discrete(4)}), "auto", "render", 0),
        (spaces.Box(0, 255, (3, 20, 20), np.uint8), "auto", "observation", 0),
        (spaces.Box(0, 255, (20, 20), np.uint8), "auto", "observation", 0),
    ],
)
def test_pixels_are_found(space: spaces.Space, pixels: str, source: str, state_dim: int):
    found = find_pixel_source(space, pixels, "Some-v0")
    assert (found.source, found.state_dim) == (source, state_dim)


@pytest.mark.parametrize(
    ("space", "pixels", "message"),
    [
        (VECTOR, "observation", "--pixels observation: Some-v0 observes .*are: none; --pixels re"),
        (spaces.Dict({"left": IMAGE, "right": IMAGE}), "auto", r"several images \(left, right\)"),
        (spaces.Dict({"left": IMAGE}), "image", "--pixels image: .* are: left"),
    ],
)
def test_pixels_that_are_not_there_are_refused(space: spaces.Space, pixels: str, message: str):
    with pytest.raises(ValueError, match=message):
        find_pixel_source(space, pixels, "Some-v0")


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (8, 8, 3), (8, 8, 4), (3, 8, 8), (1, 8, 8)])
def test_any_order_of_axes_becomes_rgb(shape: tuple[int, ...]):
    pixels = np.zeros(shape, np.uint8)
    axis = 0 if shape[0] in (1, 3) else -1
    first = pixels if len(shape) == 2 else np.moveaxis(pixels, axis, -1)[..., 0]
    first[:4] = 200  # the upper half is red, or bright
    frame = to_frame(pixels, 8, False, "Some-v0")
    assert frame.shape == (8, 8, 3) and frame.dtype == np.uint8
    assert (frame[:4, :, 0] == 200).all() and (frame[4:] == 0).all()


def test_a_frame_is_averaged_over_areas_and_gray_is_brightness():
    pixels = np.zeros((32, 16, 3), np.uint8)
    pixels[::2] = (100, 0, 200)
    assert (to_frame(pixels, 16, False, "")[..., 2] == 100).all()
    gray = to_frame(pixels[::2], 16, True, "")
    assert (gray == round(0.299 * 100 + 0.114 * 200)).all() and gray.shape == (16, 16, 3)


@pytest.mark.parametrize("pixels", [np.zeros((8, 8, 3)), np.zeros((8, 8, 2), np.uint8), None])
def test_other_pixels_are_refused(pixels: Any):
    with pytest.raises(ValueError, match=r"^Some-v0 gives pixels of"):
        to_frame(pixels, 8, False, "Some-v0")


# -- steps of several frames -----------------------------------------------------------------


class Flicker(gymnasium.Env):
    """A sprite that is drawn in every second frame; its brightness is the number of the frame."""

    action_space = spaces.Discrete(2)
    observation_space = IMAGE

    def __init__(self, length: int = 100) -> None:
        self.length = length

    def get_action_meanings(self) -> list[str]:
        return ["NOOP", "FIRE"]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.count = 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.count += 1
        return self._observe(), 1.0, self.count >= self.length, False, {}

    def _observe(self) -> np.ndarray:
        image = np.zeros(IMAGE.shape, np.uint8)
        image[self.count % 2 :: 2] = self.count
        return image


gymnasium.register("Flicker-v0", lambda **kwargs: Flicker(**kwargs))


def test_a_step_repeats_its_action_and_adds_up_rewards():
    env = PixelEnv(EnvSpec("Flicker-v0", image_size=20, frame_skip=4))
    env.reset(0)
    result = env.step(np.array(1))
    assert result.reward == 4.0 and result.frame.max() == 4


def test_the_last_two_frames_are_put_together():
    env = PixelEnv(EnvSpec("Flicker-v0", image_size=20, frame_skip=4, max_pool=True))
    env.reset(0)
    frame = env.step(np.array(0)).frame
    assert set(np.unique(frame)) == {3, 4}


@pytest.mark.parametrize(("length", "seen"), [(5, {0, 5}), (6, {5, 6}), (7, {6, 7})])
def test_an_end_within_a_step_shows_the_frames_of_that_step_alone(length: int, seen: set[int]):
    """Not an older one, as a buffer that is not refilled would."""
    spec = EnvSpec("Flicker-v0", {"length": length}, image_size=20, frame_skip=4, max_pool=True)
    env = PixelEnv(spec)
    env.reset(0)
    env.step(np.array(0))
    result = env.step(np.array(0))
    assert result.terminated and result.reward == length - 4
    assert set(np.unique(result.frame).tolist()) == seen


def test_no_ops_begin_an_episode_as_its_seed_says():
    env = PixelEnv(EnvSpec("Flicker-v0", image_size=20, noop_max=30))
    counts = [int(env.reset(seed).frame.max()) for seed in range(12)]
    assert counts == [int(env.reset(seed).frame.max()) for seed in range(12)]
    assert len(set(counts)) > 5 and max(counts) <= 30
    with pytest.raises(ValueError, match="--noop-max 3 needs an action NOOP, and Counting-v0 has"):
        PixelEnv(EnvSpec("Counting-v0", image_size=16, noop_max=3))


# -- what travels with the shards ------------------------------------------------------------


def test_a_description_brings_the_environment_back():
    spec = EnvSpec("ALE/Pong-v5", {"frameskip": 1}, "render", 84, True, 4, True, 30, 100)
    assert env_spec_of({"env": spec.as_dict()}) == spec
    assert env_spec_of({"source": "toy"}) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "describes no environment"),
        ({"frame_skip": 4}, "describes no environment: it has no id"),
        ({"id": "A-v0", "speed": 3}, "has the field 'speed', which this version does not know"),
        ({"id": "A-v0", "frame_skip": "4"}, "has frame_skip '4'"),
    ],
)
def test_a_damaged_description_is_refused(values: Any, message: str):
    with pytest.raises(ValueError, match=message):
        EnvSpec.from_dict(values)


def test_arguments_of_an_environment_are_json_or_text():
    given = ("continuous=true", "frameskip=4", "mode=easy", 'map=["SF", "FG"]')
    assert parse_kwargs(given) == {
        "continuous": True, "frameskip": 4, "mode": "easy", "map": ["SF", "FG"],
    }  # fmt: skip
    with pytest.raises(ValueError, match="--env-kwargs frameskip is no NAME=VALUE"):
        parse_kwargs(("frameskip",))
