"""Build the site strictly: no broken link, no orphan page, no undocumented public name, and no page
that opens without a command and a picture.

Reads   docs/, the pages elsewhere that docs/make/markdown_pages.py names, the configs, docstrings
        and the OpenAPI description.
Writes  build/site, and build/pages, the Markdown that it is made of.
Try     make docs, then python -m http.server --directory build/site
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

from flags_pages import flags_pages  # noqa: E402
from http_page import http_page  # noqa: E402
from markdown_pages import stage_pages  # noqa: E402
from openings import without_opening  # noqa: E402
from python_pages import python_pages  # noqa: E402

CONFIG = ROOT / "zensical.toml"
BUILD = ROOT / "build"
PLAY = BUILD / "play"
"""The exported page of the committed world, where `make docs-play` made one."""


def main() -> None:
    began = time.monotonic()
    shutil.rmtree(BUILD / "pages", ignore_errors=True)
    shutil.rmtree(BUILD / "site", ignore_errors=True)
    pages = stage_pages(ROOT, BUILD / "pages")
    for page, text in {**flags_pages(), **http_page(), **python_pages(ROOT)}.items():
        (BUILD / "pages" / page).parent.mkdir(parents=True, exist_ok=True)
        (BUILD / "pages" / page).write_text(text)
        pages.append(page)
    texts = {page: (BUILD / "pages" / page).read_text() for page in pages}
    refuse("pages open without a command or a picture", without_opening(texts))
    refuse("pages and the nav of zensical.toml differ", differences(pages, nav_pages(CONFIG)))
    if PLAY.exists():
        with (BUILD / "pages/index.md").open("a") as home:
            home.write('\n<a href="play/index.html">Play the committed world in this browser</a>\n')
    words = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    built = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if built.returncode:
        said = re.sub(r"\x1b\[[\d;]*m", "", built.stdout)  # colors, also where nobody sees them
        sys.exit(f"{said}error: the site has faults; mend the pages above")
    if PLAY.exists():
        shutil.copytree(PLAY, BUILD / "site/play")
    refuse("links lead nowhere", broken_links(BUILD / "site"))
    refuse("the site loads from elsewhere", loaded_from_elsewhere(BUILD / "site"))
    print(f"docs: {len(pages)} pages in {BUILD / 'site'}, {time.monotonic() - began:.0f} s")


def refuse(what: str, found: list[str]) -> None:
    """End with a line for each fault."""
    if found:
        sys.exit("\n".join([f"error: {what}:", *(f"  {line}" for line in found)]))


# -- the nav ------------------------------------------------------------------------------------


def nav_pages(config: Path) -> list[str]:
    """Paths of the pages in the nav, in its order."""
    return [*_leaves(tomllib.loads(config.read_text())["project"]["nav"])]


def _leaves(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from _leaves(entry)


def differences(pages: list[str], nav: list[str]) -> list[str]:
    """Orphan pages, and entries of the nav without a page, or twice."""
    return [
        *(f"{page} is in no nav" for page in sorted({*pages} - {*nav})),
        *(f"{page} is no page" for page in sorted({*nav} - {*pages})),
        *(f"{page} is there twice" for page in sorted({p for p in nav if nav.count(p) > 1})),
    ]


# -- what was built -------------------------------------------------------------------------------


class Links(HTMLParser):
    """Ids of a page, what it links to, and what a browser loads with it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.without_alt: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        self.ids |= {named[name] for name in ("id", "name") if name in named}
        if tag == "a" and "href" in named:
            self.links.append(named["href"])
        if tag == "link" and named.get("rel") not in ("canonical", "prev", "next", "alternate"):
            self.loaded.append(named.get("href", ""))
        if tag in ("script", "img", "source", "iframe", "video") and "src" in named:
            self.loaded.append(named["src"])
        if tag == "img" and not named.get("alt"):
            self.without_alt.append(named.get("src", ""))


def broken_links(site: Path) -> list[str]:
    """Links of built pages to what is not there, anchors included, and images without alt."""
    pages = {path: Links(path.read_text()) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        if path.name == "404.html":
            continue
        name = path.relative_to(site)
        found += [f"{name}: {image} has no alt text" for image in page.without_alt]
        for link in [*page.links, *page.loaded]:
            if re.match(r"[a-z]+:|//", link) or not link:
                continue
            address, _, anchor = link.partition("#")
            target = Path(os.path.normpath(path.parent / address)) if address else path
            if target.is_dir():
                target /= "index.html"
            if not target.exists():
                found.append(f"{name}: {link}")
            elif anchor and target in pages and anchor not in pages[target].ids:
                found.append(f"{name}: {link} (no such heading)")
    return found


def loaded_from_elsewhere(site: Path) -> list[str]:
    """What pages and styles would fetch from another host."""
    found = []
    for path in sorted(site.rglob("*.html")):
        for address in Links(path.read_text()).loaded:
            if re.match(r"(https?:)?//", address):
                found.append(f"{path.relative_to(site)}: {address}")
    for path in sorted(site.rglob("*.css")):
        for address in re.findall(r"url\(\"?'?((?:https?:)?//[^)\"']+)", path.read_text()):
            found.append(f"{path.relative_to(site)}: {address}")
    return found


if __name__ == "__main__":
    main()
