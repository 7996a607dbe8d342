"""Synthetic recordings in VPT's format, for tests: a scene that turns with the mouse."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from data.vpt.vpt_actions import CAMERA_SCALER

HEIGHT, WIDTH = 360, 640
X264 = {"crf": "12", "g": "50", "preset": "superfast"}
PIXELS_PER_DEGREE = 9  # of a field of view of 71 degrees


def write_log(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def line(dx: float = 0, dy: float = 0, **changes: Any) -> dict[str, Any]:
    """Make a line of a log; changes: `keys`, `buttons`, `new`, or any field of a line."""
    mouse = {"x": 640.0, "y": 360.0, "dx": dx, "dy": dy, "dwheel": 0.0}
    mouse |= {"buttons": changes.pop("buttons", []), "newButtons": changes.pop("new", [])}
    keys = [f"key.keyboard.{key}" for key in changes.pop("keys", [])]
    keyboard = {"keys": keys, "newKeys": [], "chars": ""}
    return {"mouse": mouse, "keyboard": keyboard, "isGuiOpen": False, "hotbar": 0,
            "yaw": 0.0, "pitch": 0.0} | changes  # fmt: skip


def turning_lines(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Make lines of a player who looks around randomly; the logged view follows the mouse."""
    random = np.random.default_rng(seed)
    lines, yaw = [], 0.0
    for tick in range(count):
        dx = float(random.integers(-40, 41)) if tick % 3 else 0.0
        keys = ["w"] if tick % 20 < 8 else []
        lines.append(line(dx, keys=keys, yaw=yaw))
        yaw += CAMERA_SCALER * dx
    return lines


def scene(yaw: float) -> np.ndarray:
    """Render (HEIGHT, WIDTH, 3) uint8: a wall that moves left when the view turns right."""
    wall = np.random.default_rng(0).integers(0, 256, (6, 400, 3)).astype(np.uint8)
    columns = (np.arange(WIDTH) + round(yaw * PIXELS_PER_DEGREE) + 10_000) // 16 % 400
    rows = np.arange(HEIGHT) // 60
    return wall[rows][:, columns]


def write_video(
    path: Path,
    frames: list[np.ndarray],
    rate: int = 20,
    codec: str = "libx264",
    times: Sequence[float] | None = None,
) -> None:
    """Encode frames (H, W, 3) RGB; the header is in front, so a truncated file still opens.

    times: when each is shown, in units of 1 / rate seconds; by default at 0, 1, 2 and so on.
    """
    with av.open(str(path), "w", options={"movflags": "faststart"}) as file:
        stream: Any = file.add_stream(codec, rate=rate, options=X264)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        unit = Fraction(1, 100 * rate)
        if times is not None:
            stream.time_base = stream.codec_context.time_base = unit
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(100 * times[number]), unit
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def write_pair(folder: Path, name: str, count: int = 60, seed: int = 0, late: int = 0) -> Path:
    """Write a video and its log; with `late`, frames lag the log by as many ticks."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = turning_lines(count, seed)
    yaws = [lines[max(0, tick - late)]["yaw"] for tick in range(count)]
    write_video(folder / f"{name}.mp4", [scene(yaw) for yaw in yaws])
    write_log(folder / f"{name}.jsonl", lines)
    return folder / f"{name}.mp4"
