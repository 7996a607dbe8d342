"""The site: it is built strictly, and each kind of fault is found."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from chromium import launched

import build_site
import markdown_pages
import python_pages
from attribute_docs import read_module
from bench.page_load import hosted

ROOT = Path(__file__).parents[1]
# the element that keys go to, also within a shadow root
FOCUSED = """() => {
    let focused = document.activeElement;
    while (focused.shadowRoot) focused = focused.shadowRoot.activeElement;
    return focused.tagName === "INPUT";
}"""
PAGES = {
    "docs/how-to/a.md": "how-to/a.md",
    "docs/b.md": "b.md",
    "recipes/README.md": "r/recipes.md",
}


PHONE_PAGES = (
    "index.html",
    "concepts/controllers.html",
    "concepts/dynamics.html",
    "how-to/layers.html",
    "reference/flags.html",
    "results.html",
)


def staged(text: str) -> str:
    return markdown_pages.site_markdown(text, "docs/how-to/a.md", PAGES)


@pytest.fixture(scope="module")
def site() -> Path:
    """The site, built strictly."""
    for package in ("zensical", "latex2mathml"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} of requirements-docs.txt is not installed")
    build_site.main()  # SystemExit with a line for each fault
    return ROOT / "build/site"


def test_the_site_builds_strictly(site: Path):
    assert (site / "search.json").exists() and (site / "how-to/add-a-method.html").exists()


def test_pages_fit_a_phone_have_a_dark_side_and_are_searched_by_keys(site: Path):
    with launched() as browser, hosted(site) as url:
        page = browser.new_page(viewport={"width": 360, "height": 740})
        page.set_default_timeout(60_000)
        for name in PHONE_PAGES:
            page.goto(f"{url}{name}")
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= 360, f"{name} is {width} pixels wide"
        for scheme in ("light", "dark"):
            page = browser.new_page(color_scheme=scheme)
            page.set_default_timeout(60_000)
            page.goto(url)
            found = page.evaluate("document.body.dataset.mdColorScheme")
            assert found == {"light": "default", "dark": "slate"}[scheme]
        press_until(page, "Control+k", FOCUSED)
        page.keyboard.type("delta-PSNR")
        # the first page that was found, once it is found
        press_until(page, "Enter", "() => location.href.includes('h=delta-PSNR')")


def press_until(page: Any, key: str, condition: str) -> None:
    """Press a key until a page that is still loading takes it."""
    for _ in range(10):
        page.keyboard.press(key)
        try:
            return page.wait_for_function(condition, timeout=3000)
        except Exception as problem:
            if "Timeout" not in str(problem):
                raise
    raise AssertionError(f"{key} was pressed ten times, and it is not true that {condition}")


def test_links_out_of_docs_lead_to_their_page_or_become_words():
    assert staged("[b](../b.md#x) and [r](../../recipes/README.md)") == (
        "[b](../b.md#x) and [r](../r/recipes.md)"
    )
    assert staged("[code](../../models/world.py), [web](https://a.b), [here](#x)") == (
        "code, [web](https://a.b), [here](#x)"
    )
    assert staged("![seen](../images/goal.gif)") == "![seen](../images/goal.gif)"


def test_code_stays_as_it_is_and_lists_are_indented():
    fence = "```bash\n- [a](../../x.md)\n  b\n```\n"
    assert staged(fence) == fence
    assert staged("- a\n  b\n\n  - c\nd\n  e") == "- a\n    b\n\n    - c\nd\n  e"


def test_equations_become_mathml():
    pytest.importorskip("latex2mathml", reason="requirements-docs.txt is not installed")
    assert "<math" in staged("so $`x_1`$") and "$" not in staged("so $`x_1`$")
    block = staged("```math\n\\frac{a}{b}\n```\n")
    assert '<div class="equation"><math' in block and "\n" not in block.strip()


def test_orphans_missing_pages_and_doubles_are_found(tmp_path: Path):
    config = tmp_path / "site.toml"
    config.write_text('[project]\nnav = [{"A" = "a.md"}, {"B" = [{"C" = "c.md"}, "a.md"]}]\n')
    assert build_site.nav_pages(config) == ["a.md", "c.md", "a.md"]
    assert build_site.differences(["a.md", "b.md"], build_site.nav_pages(config)) == [
        "b.md is in no nav", "c.md is no page", "a.md is there twice",
    ]  # fmt: skip


def test_dead_links_missing_alt_texts_and_foreign_scripts_are_found(tmp_path: Path):
    (tmp_path / "a.html").write_text(
        '<a href="b.html#yes"></a><a href="b.html#no"></a><a href="c.html"></a><img src="b.html">'
        '<a href="https://elsewhere.org"></a><script src="//cdn.org/x.js"></script>'
    )
    (tmp_path / "b.html").write_text('<h1 id="yes"></h1>')
    assert build_site.broken_links(tmp_path) == [
        "a.html: b.html has no alt text", "a.html: b.html#no (no such heading)", "a.html: c.html",
    ]  # fmt: skip
    assert build_site.loaded_from_elsewhere(tmp_path) == ["a.html: //cdn.org/x.js"]


def test_an_undocumented_public_name_is_found(tmp_path: Path):
    path = tmp_path / "named.py"
    path.write_text(
        "class A:\n    '''Said.'''\n    x: int = 1  # (T,)\n    def f(self): ...\n"
        "    def _g(self): ...\n    def close(self): ...\ndef h(): ...\n"
        "def k():  # said here\n    return 1\n"
    )
    _, members = read_module(path)
    assert python_pages.undocumented(members, {"close": "Close."}) == ["A.f", "h"]
    assert members[0].members[0].doc == "(T,)"
    assert members[0].members[1].signature == "f()"
