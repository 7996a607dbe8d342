"""Without OpenCV, which needs libraries that servers lack, all but Minecraft's recordings works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from untrained_run import write_run

from data import opencv
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def without_opencv(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which `import cv2` fails as it does without libGL."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "cv2").mkdir()
    (folder / "cv2" / "__init__.py").write_text("raise ImportError('libGL.so.1: not found')")
    return os.environ | {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize("side", [16, 64, 96, 100, 128, 256, 300, 512])
def test_numpy_scales_by_areas_to_the_same_pixels(side: int):
    image = np.random.default_rng(side).integers(0, 256, (512, 512, 4), np.uint8)
    wanted = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    assert np.array_equal(opencv.resize_area(image, side), wanted)
    assert np.array_equal(opencv._resize_area(image, side), wanted)


def test_what_needs_opencv_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(opencv, "_load", lambda: (None, "libGL.so.1: not found"))
    with pytest.raises(
        ValueError, match=r"^the cursor needs OpenCV.*libGL.so.1.*libgl1"
    ) as problem:
        opencv.require_opencv("the cursor")
    assert "\n" not in str(problem.value)


def test_a_video_is_written_and_evaluated_without_opencv(
    tmp_path: Path, without_opencv: dict[str, str]
):
    run = tmp_path / "run"
    write_toy_shards(run / "shards", episodes=6)
    write_run(run, EpisodeDataset(run / "shards"), controllers=False, method="keypoints")
    flags = ["--headless", "--steps", "2", "--size", "32", "--compare-simulator"]
    commands = [
        ["play.py", "--run", str(run), *flags],
        ["evaluate.py", "--run", str(run), "--parts", "tokenizer", "--num-clips", "4"],
        ["preprocess.py", "check", str(run)],
    ]
    code = (
        f"import sys; sys.path.append('tests'); from in_process import call_script\n"
        f"for words in {commands}:\n"
        f"    done = call_script(*words)\n"
        f"    assert done.returncode == 0, done.stderr\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=without_opencv, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (run / "play" / "rollout.mp4").exists() and (run / "report" / "metrics.json").exists()


def test_pusht_is_simulated_without_opencv_to_the_same_pixels(without_opencv: dict[str, str]):
    from data.pusht.simulator import PushT

    code = (
        "import sys, numpy; from data.pusht.simulator import PushT; image = PushT().render(64);"
        "assert 'cv2' not in sys.modules; sys.stdout.buffer.write(image.tobytes())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=without_opencv, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == PushT().render(64).tobytes()
