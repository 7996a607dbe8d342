"""What an exported page computes with, WebGPU or wasm, and that it plays at a path of a host."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from chromium import ARGUMENTS, CHROMIUM, launched, until, visits
from static_host import Host
from test_web_export import RUNTIME, run, runtime  # noqa: F401

from pipeline.export import web
from pipeline.export.runtime_files import VERSION

SOFTWARE_GPU = [
    "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan",
    "--use-vulkan=swiftshader", "--use-angle=swiftshader", "--ignore-gpu-blocklist",
]  # fmt: skip
NO_ADAPTER = (
    "Object.defineProperty(navigator, 'gpu', { value: { requestAdapter: async () => null } });"
)
BROKEN = "Object.defineProperty(navigator, 'gpu', { value: { requestAdapter: async () => ({}) } });"


@pytest.fixture(scope="module")
def config(run: Path, runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> web.Config:  # noqa: F811
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="requirements-web.txt is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    if not RUNTIME.exists():
        pytest.skip(f"npm install --no-save onnxruntime-web@{VERSION} was not run here")
    out = tmp_path_factory.mktemp("host") / "docs" / "world"  # below the root of its host
    out.parent.mkdir()
    config = web.Config(
        run, out, num_starts=2, goal_offset=10, dtype="fp32", runtime=runtime, webgpu=True
    )
    web.main(config)
    return config


@pytest.fixture(scope="module")
def address(config: web.Config) -> Iterator[str]:
    host = Host(config.out.parents[1])
    yield f"{host.url}docs/world/"
    host.stop()


@pytest.fixture(scope="module")
def chromium(config: web.Config) -> Iterator[Any]:
    with launched() as browser:
        yield browser


def plays_by(page: Any, backend: str) -> None:
    until(page, lambda: page.evaluate("measured.frames") > 3)
    assert page.inner_text("#connection").endswith(f"by {backend}")


def test_a_page_plays_below_the_root_of_its_host_and_keeps_its_files_there(
    address: str, chromium: Any
):
    with visits(chromium) as visit:
        page = visit(address)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        plays_by(page, "WebAssembly")
        assert all(url.startswith((address, "blob:", "data:")) for url in asked)
        scope = "navigator.serviceWorker.ready.then((one) => one.scope)"
        assert page.evaluate(scope) == address  # and not the whole host


def test_a_device_without_an_adapter_computes_with_wasm(address: str, chromium: Any):
    with visits(chromium) as visit:
        page = visit("about:blank")
        page.add_init_script(NO_ADAPTER)
        page.goto(address)
        plays_by(page, "WebAssembly")
        assert page.evaluate("hasGpu()") is False


def test_where_webgpu_fails_wasm_plays_on(address: str, chromium: Any):
    with visits(chromium) as visit:
        page = visit("about:blank")
        told: list[str] = []
        page.on("console", lambda message: told.append(message.text))
        page.add_init_script(BROKEN)
        page.goto(address)
        plays_by(page, "WebAssembly")
        assert page.evaluate("hasGpu()") is True
        until(page, lambda: any("WebGPU is not used" in line for line in told))


def test_a_gpu_that_never_answers_is_given_up(config: web.Config, address: str, chromium: Any):
    changes = {
        "worker.js": ("await onGpu(files)", "await new Promise(() => {})"),
        "page.js": ("GPU_MS = 10000", "GPU_MS = 200"),
    }
    with visits(chromium) as visit:
        page = visit("about:blank")
        for name, (before, after) in changes.items():
            text = (config.out / name).read_text()
            assert before in text
            page.context.route(
                f"**/{name}",
                partial(fulfil, body=text.replace(before, after)),
            )
        told: list[str] = []
        page.on("console", lambda message: told.append(message.text))
        page.add_init_script(BROKEN)
        page.goto(address)
        plays_by(page, "WebAssembly")
        assert "WebGPU is not used: it did not answer" in told


def fulfil(route: Any, body: str) -> None:
    route.fulfill(body=body, content_type="text/javascript")


def test_a_real_adapter_is_tried_and_the_page_plays(address: str, chromium: Any):
    """By Chromium's own software adapter, where it has one."""
    browser = chromium.browser_type.launch(
        executable_path=CHROMIUM,
        args=[word for word in ARGUMENTS if word != "--disable-gpu"] + SOFTWARE_GPU,
    )
    with visits(browser) as visit:
        page = visit(address)
        until(page, lambda: page.evaluate("measured.frames") > 3)
        if not page.evaluate("hasGpu()"):
            pytest.skip("this Chromium has no software adapter for WebGPU")
        tried = page.evaluate("call('gpu')")
        if tried is None:
            pytest.skip("the software adapter for WebGPU did not answer in time")
        assert tried["apart"] <= 1e-2, tried
    browser.close()


def test_webgpu_is_carried_only_where_it_is_asked_for(config: web.Config, tmp_path: Path):
    about = json.loads((config.out / "world.json").read_text())
    size = sum(about["files"].values())
    web.main(replace(config, out=tmp_path / "plain", webgpu=False))
    plain = json.loads((tmp_path / "plain" / "world.json").read_text())
    assert about["webgpu"] and not plain["webgpu"]
    assert 2e6 < size - sum(plain["files"].values()) < 4e6
