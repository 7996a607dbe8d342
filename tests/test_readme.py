"""What README.md says can be done is done."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from untrained_run import write_run

from data.shards import EpisodeDataset
from data.toy import write_toy_shards

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def commands() -> list[list[str]]:
    """The lines of the bash block, as words."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def test_the_commands_of_the_debug_run_work_in_their_order(tmp_path: Path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("DISPLAY", None)
    assert len(commands()) == 6
    for words in commands():
        assert words[0] == "python"
        words = [sys.executable, *(w.replace("runs/", f"{tmp_path}/") for w in words[1:])]
        ended = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, f"{shlex.join(words)}\n{ended.stdout}\n{ended.stderr}"
    run = tmp_path / "debug"
    for made in (
        "shards/shard-00000.h5",
        "tokenizer/best.pt",
        "dynamics/best.pt",
        "controller/best.pt",
        "play/film.gif",
        "play/film.mp4",
        "play/frames/00000.png",
        "report/metrics.json",
        "report/index.html",
    ):
        assert (run / made).exists(), made


PAGES = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("checkpoints/*/README.md")]


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page; a heading that comes again gets a number."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#{1,6} +(.*)$", text, re.MULTILINE):
        heading = re.sub(r"\]\([^)]*\)", "", heading)  # of a link its words
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" not in link:
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), f"{page} links to {link}"
            if anchor:
                assert anchor in anchors(target), f"{page} links to {link}"


def test_every_script_and_folder_that_is_named_is_there():
    for name in re.findall(r"`(\w+\.py|\w+/)`", README):
        if not name.startswith("runs"):
            made = name in ("shards/", "tokenizer/", "latents/", "dynamics/", "controller/")
            assert made or name in ("play/", "report/") or (ROOT / name).exists(), name


def test_both_commands_are_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_python_of_the_play_page_works(tmp_path: Path):
    write_toy_shards(tmp_path / "shards", episodes=6)
    write_run(tmp_path, EpisodeDataset(tmp_path / "shards"))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/play.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    exec("".join(blocks).replace("runs/demo", str(tmp_path)), names)
    assert len(names["many"]) == 100 and names["picture"].shape == (1, 3, 32, 32)
    seen, _ = names["envs"].reset(seed=0)
    assert seen.shape == (64, 32, 32, 3)
