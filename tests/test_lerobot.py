"""LeRobot's folders, as their formats 2 and 3 lay them out."""

from __future__ import annotations

import builtins
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.formats.raw_episodes import ReadOptions
from data.formats.read_raw import read_raw
from pipeline.video import write_mp4

LENGTHS = (4, 6, 5)
FPS = 10
TOP = "observation.images.top"


def frame(episode: int, step: int) -> np.ndarray:
    """Brightness tells the step, and the upper half the episode."""
    image = np.full((32, 48, 3), 20 * step + 10, np.uint8)
    image[:16] = 60 * episode + 30
    return image


def column(name: str) -> list[list[Any]]:
    values = {
        "action": lambda e, t: [float(e), float(t)],
        "observation.state": lambda e, t: [float(10 * e + t)],
        "next.reward": lambda e, t: float(t == LENGTHS[e] - 1),
        "episode_index": lambda e, t: e,
        TOP: lambda e, t: {"bytes": png(frame(e, t)), "path": None},
    }[name]
    return [[values(e, t) for t in range(length)] for e, length in enumerate(LENGTHS)]


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder: Path, version: str, camera: str) -> Path:
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    is_v3 = version.startswith("v3")
    names = ["action", "observation.state", "next.reward", "episode_index"]
    names += [TOP] if camera == "image" else []
    parts = [{name: column(name)[e] for name in names} for e in range(len(LENGTHS))]
    joined = [{n: [v for part in parts for v in part[n]] for n in names}] if is_v3 else parts
    pattern = "file-{:03d}" if is_v3 else "episode_{:06d}"
    for number, table in enumerate(joined):
        path = folder / "data" / "chunk-000" / f"{pattern.format(number)}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.table(table), path)
    films = [[frame(e, t) for t in range(n)] for e, n in enumerate(LENGTHS)]
    if camera == "video":
        films = [[f for film in films for f in film]] if is_v3 else films
        base = folder / "videos"
        base = base / TOP / "chunk-000" if is_v3 else base / "chunk-000" / TOP
        base.mkdir(parents=True)
        for number, film in enumerate(films):
            write_mp4(base / f"{pattern.format(number)}.mp4", film, FPS)
    starts = np.cumsum([0, *LENGTHS[:-1]])
    if is_v3:
        places: dict[str, Any] = {"episode_index": [*range(len(LENGTHS))], "length": LENGTHS}
        for key in ("data", f"videos/{TOP}"):
            places |= {f"{key}/chunk_index": [0] * 3, f"{key}/file_index": [0] * 3}
        places[f"videos/{TOP}/from_timestamp"] = (starts / FPS).tolist()
        (folder / "meta" / "episodes").mkdir(parents=True)
        parquet.write_table(
            pyarrow.table(places), folder / "meta" / "episodes" / "file-000.parquet"
        )
    kinds = {"action": "float32", "observation.state": "float32", "next.reward": "float32"}
    info = {
        "codebase_version": version,
        "fps": FPS,
        "total_episodes": len(LENGTHS),
        "chunks_size": 1000,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet" if is_v3 else
        "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        if is_v3 else "videos/chunk-{episode_chunk:03d}/{video_key}/"
        "episode_{episode_index:06d}.mp4",
        "features": {TOP: {"dtype": camera}} | {n: {"dtype": k} for n, k in kinds.items()},
    }  # fmt: skip
    (folder / "meta").mkdir(exist_ok=True)
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    return folder


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize("camera", ["video", "image"])
def test_episodes_are_read_with_their_frames(tmp_path: Path, version: str, camera: str):
    raw = read_raw(write(tmp_path / "set", version, camera))
    assert raw.lengths == LENGTHS
    for episode, length in enumerate(LENGTHS):
        frames = raw.read(episode, "frames").astype(int)
        truth = np.stack([frame(episode, t) for t in range(length)]).astype(int)
        assert frames.shape == truth.shape
        assert np.abs(frames - truth).mean() < (6 if camera == "video" else 0.5)
        actions, states = raw.read(episode, "actions"), raw.read(episode, "states")
        assert actions.tolist() == [[episode, t] for t in range(length)]
        assert states.tolist() == [[10 * episode + t] for t in range(length)]
        # the last action's reward goes to the last frame that there is
        assert raw.read(episode, "rewards").tolist() == [0.0] * (length - 1) + [1.0]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "meta" / "info.json").write_text("{"), "info.json cannot be read"),
        (
            lambda f: (f / "meta" / "info.json").write_text(
                (f / "meta" / "info.json").read_text().replace("data/chunk", "../data/chunk")
            ),
            "names .*, outside of its folder",
        ),
        (lambda f: next(f.rglob("*.mp4")).unlink(), "the frames of episode 0 of .* is not there"),
        (
            lambda f: next((f / "data").rglob("*.parquet")).unlink(),
            r"parquet is not there; get the",
        ),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, spoil: Any, message: str):
    folder = write(tmp_path / "set", "v3.0", "video")
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        read_raw(folder, ReadOptions())


def test_without_pyarrow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write(tmp_path / "set", "v2.1", "video")
    real = builtins.__import__

    def blocked(name: str, *rest: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(ValueError, match="pyarrow is not installed: pip install pyarrow"):
        read_raw(folder)
