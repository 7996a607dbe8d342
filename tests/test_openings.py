"""Pages open with a command and a picture, and pictures are read on a phone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from markdown_pages import OUTSIDE
from openings import without_opening

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
IMAGES = sorted(path for path in (DOCS / "images").iterdir())
NARROWEST = 328  # pixels that a page has for a picture on a phone of 360
LEAST = 9  # pixels of its smallest letters there
MOST = 250_000  # bytes of one picture
OF_ALL = 1_500_000


def pages() -> dict[str, str]:
    """Pages on disk, by their path on the site; the build holds the rest to the same rule."""
    texts = {str(path.relative_to(DOCS)): path.read_text() for path in DOCS.rglob("*.md")}
    return texts | {page: (ROOT / source).read_text() for source, page in OUTSIDE.items()}


def test_every_page_opens_with_a_command_and_a_picture():
    assert without_opening(pages()) == []


@pytest.mark.parametrize(
    ("text", "lacks"),
    [
        ("# A\n\n    python play.py\n\n![seen](a.svg)\n\n## B\n", ""),
        ("# A\n\n```\npython play.py\n```\n\n![seen](a.svg)\n", ""),
        ("# A\n\n![seen](a.svg)\n\n## B\n\n    python play.py\n", "command"),
        ("# A\n\n    python play.py\n\n## B\n\n![seen](a.svg)\n", "picture"),
        ("# A\n\n    python play.py\n\n![](a.svg)\n", "picture"),
        ("# A\n\nSay python play.py.\n\n    errors: 3\n", "command and a picture"),
    ],
)
def test_what_a_page_lacks_is_said(text: str, lacks: str):
    said = without_opening({"how-to/a.md": text})
    assert said == ([f"how-to/a.md opens without a {lacks}"] if lacks else [])
    assert without_opening({"log/2026-01-01.md": text}) == []


def test_every_picture_is_on_a_page():
    linked = re.compile(r"(?:\(|src=\")([^)\s\"]+/images/[^)\s\"]+)")
    shown = {Path(link).name for text in pages().values() for link in linked.findall(text)}
    assert [path.name for path in IMAGES if path.name not in shown] == []


@pytest.mark.parametrize("path", [p for p in IMAGES if p.suffix == ".svg"], ids=lambda p: p.name)
def test_a_drawing_is_read_on_a_phone_and_says_its_commit(path: Path):
    text = path.read_text()
    width = float(re.findall(r'viewBox="0 0 (\d+)', text)[0])
    smallest = min(float(size) for size in re.findall(r'font-size="([\d.]+)"', text))
    assert smallest * min(1, NARROWEST / width) >= LEAST
    assert re.search(r"commit [0-9a-f]{7}", text) and "<title>" in text
    assert re.search(r'<rect width="400" height="\d+" rx="6" fill="#fff"/>', text), "a card"


def test_pictures_are_small():
    assert {path.name: size for path in IMAGES if (size := path.stat().st_size) > MOST} == {}
    assert sum(path.stat().st_size for path in IMAGES) < OF_ALL
