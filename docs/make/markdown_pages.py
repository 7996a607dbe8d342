"""Stage the Markdown pages of the site: as on disk, but for what a site writes differently.

Pages keep to the Markdown that code hosts show.  On the way to the site

- equations in math fences, or between $` and `$, become MathML, which browsers draw by themselves;
- what a list item holds is indented by 4, as Python-Markdown wants it, not by 2;
- links to files outside of docs/ lead to their page in OUTSIDE, or become words.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

OUTSIDE = {
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "recipes/README.md": "reference/recipes.md",
    "checkpoints/pusht-goals/README.md": "reference/pusht-goals.md",
    "README.md": "project/readme.md",
}
"""Pages that lie elsewhere in the repository, and where the site has them."""
LEFT_OUT = ("make",)  # folders of docs/ that hold no pages
UNSEARCHED = ("log/", "project/changelog")  # results link to them; a search would drown in them
FENCE = re.compile(r"^(```+|~~~+).*?^\1\s*$", re.MULTILINE | re.DOTALL)


def stage_pages(root: Path, out: Path) -> list[str]:
    """Write all pages of the repository at `root` below `out`; return their paths in there."""
    pages = {}
    for path in sorted((root / "docs").rglob("*")):
        name = path.relative_to(root / "docs")
        if path.is_dir() or name.parts[0] in LEFT_OUT:
            continue
        if path.suffix == ".md":
            pages[f"docs/{name.as_posix()}"] = name.as_posix()
        else:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, out / name)
    pages |= OUTSIDE
    for source, page in pages.items():
        text = site_markdown((root / source).read_text(), source, pages)
        if page.startswith(UNSEARCHED):
            text = f"---\nsearch:\n  exclude: true\n---\n\n{text}"
        (out / page).parent.mkdir(parents=True, exist_ok=True)
        (out / page).write_text(text)
    return list(pages.values())


def site_markdown(text: str, source: str, pages: dict[str, str]) -> str:
    """Turn the Markdown of a repository's file into that of the site.

    source: path of the file in the repository.  pages: such a path to that of the page.
    """
    text = re.sub(r"^```math\n(.*?)^```", _block_equation, text, flags=re.MULTILINE | re.DOTALL)
    parts = []
    end = 0
    for fence in FENCE.finditer(text):
        parts += [_prose(text[end : fence.start()], source, pages), fence[0]]
        end = fence.end()
    return "".join([*parts, _prose(text[end:], source, pages)])


def _prose(text: str, source: str, pages: dict[str, str]) -> str:
    text = re.sub(r"\$`([^`]+)`\$", lambda found: mathml(found[1]), text)
    text = re.sub(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)",
                  lambda found: _link(found, source, pages), text)  # fmt: skip
    return "\n".join(_indented(text.split("\n")))


def _link(found: re.Match[str], source: str, pages: dict[str, str]) -> str:
    bang, words, link = found.groups()
    if "://" in link or link.startswith(("#", "mailto:")):
        return found[0]
    name, _, anchor = link.partition("#")
    target = os.path.normpath(os.path.join(os.path.dirname(source), name))
    page = pages.get(target)
    if page is None and target.startswith("docs/"):
        page = target.removeprefix("docs/")  # an image, or a page that is missing
    if page is None:
        return words
    here = os.path.dirname(pages[source]) or "."
    return f"{bang}[{words}]({os.path.relpath(page, here)}{f'#{anchor}' if anchor else ''})"


def _indented(lines: Iterable[str]) -> Iterable[str]:
    """Indent what lies in list items by 2 more: `  text` below `- item` becomes `    text`."""
    in_list = False
    for line in lines:
        if re.match(r"([-*]|\d+\.) ", line):
            in_list = True
        elif line and not line.startswith("  "):
            in_list = False
        yield f"  {line}" if in_list and line.startswith("  ") else line


def _block_equation(found: re.Match[str]) -> str:
    return f'<div class="equation">{mathml(found[1].strip(), display="block")}</div>'


def mathml(latex: str, display: str = "inline") -> str:
    """One line of MathML, by latex2mathml; ValueError for a command that it does not know."""
    from latex2mathml.converter import convert

    found = " ".join(convert(latex, display=display).split())
    if "\\" in found:
        raise ValueError(f"no MathML is known for a command of {latex}")
    return found
