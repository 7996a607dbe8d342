"""Go through a tutorial at its full size, in a folder where its runs are made unless they are there.

Reads   the blocks of PAGE, a name of docs/tutorial: your-own-game or videos-become-a-game.
Writes  FOLDER; of your-own-game also docs/images/catch.png: true futures of the game, each above
        the imagined one.
Try     python docs/make/tutorial_pictures.py runs/tutorial your-own-game
        python docs/make/tutorial_pictures.py runs/tutorial videos-become-a-game
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "docs/images/catch.png"
SCALE = 2


def main(folder: Path, page: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = (ROOT / f"docs/tutorial/{page}.md").read_text()
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    for language, title, block in re.findall(
        r'^```(bash|python)(?: title="(\S+)")?\n(.*?)^```', text, re.M | re.S
    ):
        if title:
            (folder / title).write_text(block)
        elif language == "python":
            subprocess.run([sys.executable, "-c", block], cwd=folder, env=environment, check=True)
        else:
            for line in block.replace("\\\n", " ").splitlines():
                run(line, folder, environment)
    if page == "your-own-game":
        drawn = sorted((folder / "runs/catch/dynamics/images").glob("rollout-*.png"))[-1]
        image = Image.open(drawn)
        size = (image.width * SCALE, image.height * SCALE)
        image.resize(size, Image.Resampling.NEAREST).save(PICTURE, optimize=True)
        print(f"tutorial: {PICTURE}")


def run(line: str, folder: Path, environment: dict[str, str]) -> None:
    """Run a command of the page."""
    words = shlex.split(line)
    words = [sys.executable, str(ROOT / words[1]), *words[2:]]
    print("$", line, flush=True)
    subprocess.run(words, cwd=folder, env=environment, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2])
