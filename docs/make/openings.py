"""The rule that a page opens with a command and a picture.

The opening is what stands before the first `## ` heading.  Pages that list other pages, words or
dated results, and files that lie elsewhere in the repository for other readers, are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

LEFT_OUT = ("index.md", "glossary.md", "results.md", "what-did-not-work.md", "log/", "project/",
            "reference/index.md")  # fmt: skip
COMMAND = re.compile(
    r"^(?:    )?(?:[A-Z_]+=\S+ )*(?:python|torchrun|make|pip|curl|npm)\b.*$", re.MULTILINE
)
IMAGE = re.compile(r"^!\[[^\]]+\]\([^)\s]+\)", re.MULTILINE)


def opening(command: str, picture: str, alt: str) -> list[str]:
    """Lines that open a page of docs/reference; picture: its path as seen from there."""
    return ["", f"    {command}", "", f"![{alt}]({picture})", ""]


def head(text: str) -> str:
    """A page up to its first section."""
    return re.split(r"^## ", text, maxsplit=1, flags=re.MULTILINE)[0]


def _code(text: str) -> str:
    """Fenced and indented blocks."""
    fenced = re.findall(r"^```.*?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return "\n".join([*fenced, *re.findall(r"^    \S.*$", text, re.MULTILINE)])


def without_opening(pages: Mapping[str, str]) -> list[str]:
    """What each page lacks: path below docs/ to Markdown."""
    found = []
    for page, text in sorted(pages.items()):
        if page.startswith(LEFT_OUT):
            continue
        first = head(text)
        missing = [
            *([] if COMMAND.search(_code(first)) else ["command"]),
            *([] if IMAGE.search(first) else ["picture"]),
        ]
        if missing:
            found.append(f"{page} opens without a {' and a '.join(missing)}")
    return found
