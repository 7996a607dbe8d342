"""Each method of the registry has its equation, picture, file, figures, and when to choose it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from models import registry

CONCEPTS = Path(__file__).parents[1] / "docs/concepts"
PAGES = {
    "tokenizers": registry.TOKENIZERS,
    "dynamics": registry.DYNAMICS,
    "controllers": registry.CONTROLLERS,
}
METHODS = [(page, name) for page, methods in PAGES.items() for name in methods]


@pytest.mark.parametrize(("page", "name"), METHODS, ids=lambda value: value)
def test_a_method_is_told_whole(page: str, name: str):
    text = (CONCEPTS / f"{page}.md").read_text()
    file = PAGES[page][name].module.rpartition(".")[2]
    rows = [
        line.strip("| ").split(" | ") for line in text.splitlines() if f"| `{file}.py` |" in line
    ]
    assert len(rows) == 1, f"{page}.md needs one row with `{file}.py` in its table of methods"
    assert len(rows[0]) == 5 and all(cell.strip() for cell in rows[0]), rows[0]
    assert rows[0][4] == "-" or re.search(r"\]\([^)]+\)", rows[0][4]), "figures, by a link"
    before, found, _ = text.partition(f"](../images/method-{name}.svg)")
    assert found, f"{page}.md lacks the picture of {name}; docs/make/shape_figures.py draws it"
    since = before.rpartition("](../images/method-")[2]
    assert "```math" in since, f"{page}.md lacks an equation before the picture of {name}"


SEARCHES = ("Shooting", "CEM", "MPPI", "Gradient", "Policy prior", "Best of n", "Beam")


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_is_told_whole(name: str):
    text = (CONCEPTS / "planning.md").read_text()
    anchor = name.lower().replace(" ", "-")
    rows = [row for row in text.splitlines() if row.startswith("| [") and f"](#{anchor})" in row]
    assert len(rows) == 1 and all(cell.strip() for cell in rows[0].strip("|").split("|")), name
    section = text.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    assert "```math" in section, f"{name} has no equation"
