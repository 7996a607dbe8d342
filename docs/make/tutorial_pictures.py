"""Go through docs/tutorial/your-own-game.md at its full size, and keep a picture of what it gives.

Reads   the blocks of the page.
Writes  docs/images/catch.png: true futures of the game, each above the imagined one; FOLDER, where
        the run is made, unless it is there.
Try     python docs/make/tutorial_pictures.py runs/tutorial
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
PAGE = ROOT / "docs/tutorial/your-own-game.md"
PICTURE = ROOT / "docs/images/catch.png"
SCALE = 2


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    blocks = re.findall(r'^```(bash|python)(?: title="(\S+)")?\n(.*?)^```', PAGE.read_text(),
                        re.M | re.S)  # fmt: skip
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    for _, title, block in blocks:
        if title:
            (folder / title).write_text(block)
            continue
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line)
            words = [sys.executable, str(ROOT / words[1]), *words[2:]]
            print("$", line, flush=True)
            subprocess.run(words, cwd=folder, env=environment, check=True)
    drawn = sorted((folder / "runs/catch/dynamics/images").glob("rollout-*.png"))[-1]
    image = Image.open(drawn)
    size = (image.width * SCALE, image.height * SCALE)
    image.resize(size, Image.Resampling.NEAREST).save(PICTURE, optimize=True)
    print(f"tutorial: {PICTURE}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
