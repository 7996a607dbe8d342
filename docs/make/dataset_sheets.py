"""Draw a good dataset and bad ones for docs/how-to/check-a-dataset.md, and print what check says.

Reads   docs/how-to/your-recordings.md, whose block writes recordings of a square.
Writes  docs/images/sheet.png (Push-T), sheet-square.png (good), sheet-faint.png and
        sheet-glued.png (bad); RUNS, a folder where the small runs are made.
Try     python docs/make/dataset_sheets.py runs/sheets
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

IMAGES = ROOT / "docs/images"
EPISODES = 12
ROWS = 4  # rows of a sheet that are shown


def stage_one(*words: str) -> None:
    said = subprocess.run([sys.executable, "preprocess.py", *words], cwd=ROOT, text=True,
                          capture_output=True)  # fmt: skip
    print("$ python preprocess.py", *words, "\n", said.stdout, said.stderr[-300:], sep=" ")


def squares(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Frames and actions of the recordings that the block of the page writes."""
    page = (ROOT / "docs/how-to/your-recordings.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(code.replace("recordings/square", str(folder / "square")), {})
    episodes = [np.load(path) for path in sorted((folder / "square").glob("*.npz"))]
    return [(episode["frames"], episode["actions"]) for episode in episodes]


def write(folder: Path, episodes: list[tuple[np.ndarray, np.ndarray]]) -> Path:
    folder.mkdir()
    for number, (frames, actions) in enumerate(episodes):
        np.savez(folder / f"{number:03}.npz", frames=frames, actions=actions)
    return folder


def joined(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Two episodes as one, as a recorder does that forgets the reset."""
    return np.concatenate([first[0], second[0]]), np.concatenate(
        [first[1], np.zeros(1, first[1].dtype), second[1]]
    )


def shown(sheet: Path, name: str) -> None:
    image = Image.open(sheet)
    rows = round(image.height * ROWS / EPISODES) if image.height > image.width / 2 else image.height
    image.crop((0, 0, image.width, rows)).save(IMAGES / name, optimize=True)


def main(runs: Path) -> None:
    shutil.rmtree(runs, ignore_errors=True)
    pusht = ("pusht", "--episodes", str(EPISODES), "--num-workers", "1")
    stage_one(*pusht, "--run", str(runs / "pusht"))
    stage_one("check", str(runs / "pusht"))
    shown(runs / "pusht/shards/sheet.png", "sheet.png")
    good = squares(runs)
    faulty = {
        "late": [(f, np.roll(a, 1)) for f, a in good],
        "faint": [(f // 64, a) for f, a in good],
        "glued": [joined(*pair) for pair in pairwise(good)],
    }
    sets = {"square": runs / "square"} | {n: write(runs / n, e) for n, e in faulty.items()}
    for name, recordings in sets.items():
        run = str(runs / f"run-{name}")
        stage_one("arrays", str(recordings), "--run", run, "--num-workers", "1")
        stage_one("check", run)
        if name != "late":  # it looks as the good one does
            shown(Path(run) / "shards/sheet.png", f"sheet-{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
