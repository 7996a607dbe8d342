"""What a page needs besides the world: its own files, and ONNX Runtime for browsers."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from data.io.files import parse_json

PAGE = Path(__file__).parent / "page"
PLAYED = Path(__file__).parents[1] / "play" / "browser" / "page"  # of play.py --browser
PAGE_FILES = {
    **{n: PAGE / n for n in ("index.html", "page.css", "page.js", "worker.js", "planner.js")},
    "play.css": PLAYED / "play.css",
}
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
RUNTIME = "onnxruntime-web"
VERSION = "1.30.0"
SCRIPT = "ort.bundle.min.mjs"
"""Its name on the page, whichever of the two it is."""
PLAIN = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
WITH_WEBGPU = ("ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm")


def check_installed() -> None:
    """Raise ValueError where a package of requirements-web.txt is missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"the page needs {', '.join(missing)}; python -m pip install -r requirements-web.txt"
        )


def read_runtime(folder: Path, webgpu: bool = False) -> tuple[bytes, bytes]:
    """Read the script and the WebAssembly of ONNX Runtime; ValueError says how to install them."""
    names = WITH_WEBGPU if webgpu else PLAIN
    try:
        version = parse_json((folder / "package.json").read_bytes())["version"]
        script, binary = ((folder / "dist" / name).read_bytes() for name in names)
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"{folder} is not {RUNTIME}; npm install --no-save {RUNTIME}@{VERSION}, or give its "
            f"folder as --runtime"
        ) from None
    if version != VERSION:
        raise ValueError(
            f"{folder} is version {version} of {RUNTIME}, and the page is made for {VERSION}; npm "
            f"install --no-save {RUNTIME}@{VERSION}"
        )
    return script, binary
