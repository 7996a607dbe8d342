"""How each page looks, against small references, and whether all can use it (axe-core).

`python tests/test_page_looks.py` writes the references anew, where a page was meant to change.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import CHROMIUM, launched, playwright_or_skip, until, visits
from PIL import Image, ImageFilter
from static_host import Host

TESTS, ROOT = Path(__file__).parent, Path(__file__).parents[1]
LOOKS, AXE = TESTS / "looks", ROOT / "node_modules" / "axe-core" / "axe.min.js"

pytestmark = pytest.mark.slow
PAGES = ("play", "exported", "live", "compare", "report")
BLOCK = 6  # pixels of a page that one of a reference stands for
ALIKE = 0.85  # share of ink in the same places, at least
WIDTH_OF_TEXT = """() => {
  const context = document.createElement("canvas").getContext("2d");
  context.font = "16px system-ui, sans-serif";
  return context.measureText("The quick brown fox jumps over 0123456789").width;
}"""
NO_STYLES = (
    "document.querySelectorAll('link[rel=stylesheet], style').forEach((one) => one.remove())"
)
SHIFTED, BACK = (
    f"document.querySelector('main').style.marginLeft = '{margin}'" for margin in ("9rem", "")
)

SOCKET = """
window.WebSocket = class {
  static OPEN = 1;
  readyState = 1;
  constructor() { setTimeout(() => this.begin()); }
  send() {}
  close() {}
  begin() {
    this.onopen();
    for (const words of WORDS) this.onmessage({ data: JSON.stringify(words) });
    measured.frames = 1;
  }
};
"""
WELCOME = {
    "type": "welcome", "session": "x", "size": [64, 64], "pointer": True, "lock": False,
    "keys": ["mouse or arrows: target"], "actions": [], "simulator": True, "controller": True,
    "fps": 10,
}  # fmt: skip
STATUS = {
    "type": "status", "step": 3, "reward": 0.5, "simulator": "", "action": "", "dropped": 0,
    "pointer": [0.5, 0.5], "panels": ["world model"], "paused": True, "recording": 0, "message": "",
    "rewinding": False, "acts": "you", "planner": "", "players": 1, "waiting": 0,
}  # fmt: skip
WORKER = """
const frame = new Uint8Array(3 * 32 * 32).fill(190), latents = new Float32Array(8);
const seen = { frame, latents, reward: 0, distance: 10, action: [0, 0], stepMs: 4, planMs: 0 };
const load = {
  run: "a run", size: [32, 32], fps: 10, codes: false, vectors: [4, 2], keypoints: true,
  rewards: true,
  actions: { kind: "continuous", names: [], size: 2 }, policy: true, num_starts: 8,
  backend: "WebAssembly",
};
const begin = { frame, goalFrame: frame, latents, distance: 10, last: new Float32Array(2) };
const results = { load, begin, tick: [seen], setSearch: null };
onmessage = ({ data }) => postMessage({ id: data.id, result: results[data.name] });
"""


def serve_play(stack: ExitStack, folder: Path) -> str:
    host = Host(ROOT / "pipeline" / "play" / "browser" / "page")
    stack.callback(host.stop)
    return host.url


def serve_exported(stack: ExitStack, folder: Path) -> str:
    """The page, and a worker that says what a world would."""
    from pipeline.export.runtime_files import PAGE_FILES

    for name, path in PAGE_FILES.items():
        shutil.copy(path, folder / name)
    (folder / "worker.js").write_text(WORKER)
    host = Host(folder)
    stack.callback(host.stop)
    return host.url


def serve_live(stack: ExitStack, folder: Path) -> str:
    from test_live import serving, write_log

    from pipeline.play.browser.server_config import ServerConfig

    write_log(folder / "dynamics", range(0, 41, 5))
    (folder / "dynamics" / "images").mkdir()
    strip = Image.new("RGB", (240, 64), (40, 90, 160))
    strip.save(folder / "dynamics" / "images" / "rollout-000040.png")
    port = stack.enter_context(serving(folder, ServerConfig(port=0)))
    return f"http://127.0.0.1:{port}/"


def write_compared(stack: ExitStack, folder: Path) -> str:
    from test_compare import report, write

    from evaluation.compare.__main__ import Config, main

    runs = (write(folder / "a", report()), write(folder / "b", report(0.9)))
    main(Config(runs, page=folder / "page.html"))
    return (folder / "page.html").as_uri()


def write_reported(stack: ExitStack, folder: Path) -> str:
    from test_report_page import measured, write

    return write(folder, measured()).as_uri()


MAKE: dict[str, Callable[[ExitStack, Path], str]] = {
    "play": serve_play,
    "exported": serve_exported,
    "live": serve_live,
    "compare": write_compared,
    "report": write_reported,
}
READY = {
    "play": "measured.frames > 0",
    "exported": "measured.frames > 0",
    "live": "document.querySelectorAll('#charts svg').length > 0 && "
    "document.querySelector('#images img')?.naturalWidth > 0",
    "compare": "document.readyState === 'complete'",
    "report": "document.readyState === 'complete'",
}
VOLATILE = ("#hud", "#facts dd")  # times, which differ from visit to visit


@contextmanager
def opened(browser: Any, folder: Path) -> Iterator[Callable[..., Any]]:
    """Give a function that opens a page by its name."""
    with ExitStack() as stack, visits(browser) as visit:
        addresses: dict[str, str] = {}

        def show(name: str, **options: Any) -> Any:
            if name not in addresses:
                (folder / name).mkdir()
                addresses[name] = MAKE[name](stack, folder / name)
            page = visit(
                "about:blank", reduced_motion="reduce", **{"color_scheme": "light"} | options
            )
            if name == "play":
                page.add_init_script(SOCKET.replace("WORDS", json.dumps([WELCOME, STATUS])))
            page.goto(addresses[name])
            until(page, partial(page.evaluate, READY[name]))
            return page

        yield show


def look(page: Any) -> Image.Image:
    """The page in gray, a pixel for each block; what changes from visit to visit is blank."""
    for selector in VOLATILE:
        page.evaluate(
            f"document.querySelectorAll('{selector}').forEach((one) => one.style.opacity = 0)"
        )
    page.evaluate("document.activeElement.blur()")
    shot = Image.open(io.BytesIO(page.screenshot())).convert("L")
    return shot.filter(ImageFilter.GaussianBlur(BLOCK)).reduce(BLOCK)


def likeness(one: Image.Image, other: Image.Image) -> float:
    """The share of ink that is in the same places of both: 1 for the same."""
    if one.size != other.size:
        return 0.0
    inks = [255 - np.asarray(image, np.float64) for image in (one, other)]
    inks = [ink - ink.min() for ink in inks]
    return float(np.minimum(*inks).sum() / max(np.maximum(*inks).sum(), 1.0))


@pytest.fixture(scope="module")
def show(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    playwright_or_skip()
    with launched() as browser, opened(browser, tmp_path_factory.mktemp("pages")) as show:
        yield show


@pytest.mark.parametrize("name", PAGES)
def test_a_page_looks_as_it_did_and_a_broken_one_does_not(show: Any, name: str):
    page = show(name)
    known = json.loads((LOOKS / "fonts.json").read_text())["width"]
    width = page.evaluate(WIDTH_OF_TEXT)
    if abs(width / known - 1) > 0.01:
        pytest.skip(f"fonts here are others: {width:.1f} pixels of text, the references' {known}")
    reference = Image.open(LOOKS / f"{name}.png")
    assert likeness(look(page), reference) > ALIKE
    page.evaluate(SHIFTED)
    assert likeness(look(page), reference) < ALIKE
    page.evaluate(BACK)
    assert likeness(look(page), reference) > ALIKE
    page.evaluate(NO_STYLES)
    assert likeness(look(page), reference) < ALIKE


def serious_violations(page: Any) -> list[str]:
    if not AXE.exists():
        pytest.skip("npm install --no-save axe-core was not run here")
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")["violations"]
    return [
        f"{one['id']}: {one['help']}: {[node['html'][:120] for node in one['nodes'][:3]]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_serious(show: Any, name: str):
    page = show(name)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        assert not serious_violations(page), scheme


def test_axe_finds_what_is_planted(show: Any):
    page = show("play")
    page.evaluate("document.querySelector('main').append(document.createElement('button'))")
    page.evaluate("document.getElementById('said').style.color = '#ddd'")  # on white
    found = {line.split(":")[0] for line in serious_violations(page)}
    assert found == {"button-name", "color-contrast"}


def write_references() -> None:
    import tempfile

    LOOKS.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        launched() as browser,
        opened(browser, Path(folder)) as show,
    ):
        for name in PAGES:
            page = show(name)
            look(page).save(LOOKS / f"{name}.png", optimize=True)
        width = round(page.evaluate(WIDTH_OF_TEXT), 2)
        (LOOKS / "fonts.json").write_text(json.dumps({"width": width}) + "\n")
    print(f"looks: {LOOKS}")


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(TESTS)]
    assert CHROMIUM is not None
    write_references()
