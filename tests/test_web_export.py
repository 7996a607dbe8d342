"""A world as a page without a server: what is exported, and the page in a real Chromium, with
WebAssembly and with WebGPU.

One file because all of it needs the same export.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chromium import ARGUMENTS, CHROMIUM, PATIENCE, SOFTWARE_GPU, launched, said, until, visits
from PIL import Image
from static_host import Host
from untrained_run import write_run

from data.actions import as_tensor
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from pipeline.export import web
from pipeline.export.page_starts import page_starts
from pipeline.export.parity import Differences
from pipeline.export.runtime_files import PLAIN, VERSION, WITH_WEBGPU
from pipeline.inference.load_controllers import load_goal_policy
from pipeline.inference.load_world import load_world

ROOT = Path(__file__).parents[1]
RUNTIME = ROOT / "node_modules" / "onnxruntime-web"
STARTS, OFFSET, STEPS = 2, 10, 8
GOAL, WORLD = (f"document.getElementById('{name}').toDataURL()" for name in ("goal", "world"))

ROLLOUT = """async ([number, actions]) => {
  const seen = await call("rollout", number, actions);
  return seen.map(({ frame, latents }) => [[...frame], [...latents]]);
}"""
ADAPTER = "Object.defineProperty(navigator, 'gpu', { value: { requestAdapter: async () => %s } });"
NO_ADAPTER, BROKEN = ADAPTER % "null", ADAPTER % "({})"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    write_toy_shards(run / "shards", episodes=12)
    with pytest.MonkeyPatch.context() as patch:  # an untrained world would predict no change
        patch.setattr(torch.nn.init, "zeros_", lambda x: torch.nn.init.normal_(x, std=0.02))
        return write_run(run, EpisodeDataset(run / "shards"), method="keypoints")


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, or files of its names where no page runs."""
    if RUNTIME.exists():
        return RUNTIME
    folder = tmp_path_factory.mktemp("runtime")
    (folder / "dist").mkdir()
    (folder / "package.json").write_text(json.dumps({"version": VERSION}))
    for name in (*PLAIN, *WITH_WEBGPU):
        (folder / "dist" / name).write_bytes(b"not the real one")
    return folder


@pytest.fixture(scope="module")
def config(run: Path, runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> web.Config:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="requirements-web.txt is not installed")
    # the untrained weights have all 32 bits, which 16 do not hold to 1e-3 over a rollout
    out = tmp_path_factory.mktemp("host") / "docs" / "world"  # below the root of its host
    out.parent.mkdir()
    config = web.Config(
        run, out, num_starts=STARTS, goal_offset=OFFSET, dtype="fp32", runtime=runtime
    )
    web.main(config)
    return config


# -- the export -------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_graphs_compute_what_pytorch_does(config: web.Config):
    about = json.loads((config.out / "world.json").read_text())
    differences = Differences(**about["parity"])
    differences.check()
    assert 0 < differences.latents < 1e-4 and about["policy"]
    assert [field["name"] for field in about["state"]] == [
        "context_frame", "keys", "values", "pending", "count",
    ]  # fmt: skip


def test_16_bits_are_half_as_large(config: web.Config):
    from pipeline.export.graphs import to_onnx, world_graphs

    world = load_world(config.run, "cpu", precision="fp32")
    start = page_starts(world, EpisodeDataset(config.run / "shards"), 1, OFFSET, 0)[0]
    decode = next(g for g in world_graphs(world, None, start.packed) if g.name == "decode")
    whole = gzip.decompress((config.out / "decode.bin").read_bytes())
    assert len(to_onnx(decode, half=True)) < 0.8 * len(whole)


def test_an_earlier_page_is_replaced_and_nothing_else(config: web.Config, tmp_path: Path):
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="is no exported page; choose another --out"):
        web.main(replace(config, out=other))
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]
    web.check_out(config.out)
    assert web.own_files(config.out) == {path.name for path in config.out.iterdir()} <= web.NAMES


# -- the page ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(config: web.Config) -> Iterator[str]:
    host = Host(config.out.parents[1])
    yield f"{host.url}docs/world/"
    host.stop()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    if not RUNTIME.exists():
        pytest.skip(f"npm install --no-save onnxruntime-web@{VERSION} was not run here")
    with launched() as browser:
        yield browser


@pytest.fixture
def visit(chromium: Any, address: str) -> Iterator[Callable[..., Any]]:
    with visits(chromium) as make:

        def opened(**options: Any) -> Any:
            page = make(address, **options)
            until(page, lambda: page.evaluate("measured.frames") > 0)
            return page

        yield opened


def plays_by(page: Any, backend: str) -> None:
    until(page, lambda: page.evaluate("measured.frames") > 3)
    assert page.inner_text("#connection").endswith(f"by {backend}")


def plays(page: Any) -> None:
    before = page.evaluate("measured.frames")
    until(page, lambda: page.evaluate("measured.frames") > before + 3)


@torch.no_grad()
def test_the_first_frames_are_pytorchs(config: web.Config, visit: Any):
    world = load_world(config.run, "cpu", precision="fp32")
    dataset = EpisodeDataset(config.run / "shards")
    starts = page_starts(world, dataset, STARTS, OFFSET, config.seed)
    page = visit()
    for number, start in enumerate(starts):
        actions = as_tensor(dataset.actions.sample(STEPS, np.random.default_rng(number)))
        given = world.actions.normalize(actions).tolist()
        seen = page.evaluate(ROLLOUT, [number, given])
        state = start.state
        for action, (frame, latents) in zip(actions, seen, strict=True):
            state = world.step(state, action[None])
            assert np.abs(np.array(latents) - state.latents.flatten().numpy()).max() < 1e-3
            drawn = world.decode(state).flatten().numpy().astype(int)
            assert np.abs(np.array(frame) - drawn).max() <= 1


@torch.no_grad()
def test_the_planner_is_the_goal_policy(config: web.Config, visit: Any):
    world = load_world(config.run, "cpu", precision="fp32")
    policy = load_goal_policy(config.run, world)
    assert policy is not None
    start = page_starts(world, EpisodeDataset(config.run / "shards"), 1, OFFSET, config.seed)[0]
    last = torch.from_numpy(start.last_action)
    knot = policy(start.state.latents, torch.from_numpy(start.goal), last)
    first = last + (knot - last) / policy.action_block
    page = visit()
    page.click("#pause")  # nobody else steps it
    action = page.evaluate("async () => { await call('begin', 0, 1);"
                           " return (await call('tick', [null]))[0].action; }")  # fmt: skip
    assert np.abs(np.array(action) - first.numpy()).max() < 1e-3


def test_a_search_is_no_farther_from_the_goal_than_standing_still(visit: Any):
    page = visit()
    page.click("#pause")
    distances = page.evaluate("""async () => {
      const end = async (search) => {
        const { last } = await call("begin", 0, 1);
        await call("setSearch", search);
        let seen;
        for (let step = 0; step < 10; step++) {
          [seen] = await call("tick", [search ? null : [...last]]);
        }
        return seen.distance;
      };
      return [await end(true), await end(false)];
    }""")
    assert distances[0] <= distances[1] + 1e-6


def test_it_plays_without_a_network_once_it_was_loaded(config: web.Config, chromium: Any):
    host = Host(config.out)
    with visits(chromium) as make:
        page = make(host.url)
        until(page, lambda: page.evaluate("measured.frames") > 0)
        until(page, lambda: page.evaluate("navigator.serviceWorker.controller !== null"))
        host.stop()
        page.reload()
        until(page, lambda: page.evaluate("measured.frames") > 0)
        plays(page)


def test_nothing_is_asked_of_another_host_or_another_page_of_this_one(address: str, chromium: Any):
    with visits(chromium) as make:
        page = make("about:blank")
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        plays_by(page, "WebAssembly")
        assert asked and all(url.startswith((address, "blob:", "data:")) for url in asked)
        scope = "navigator.serviceWorker.ready.then((one) => one.scope)"
        assert page.evaluate(scope) == address  # and not the whole host


def test_the_mouse_a_finger_and_arrows_move_the_target(visit: Any):
    page = visit(has_touch=True)
    box = page.locator("#world").bounding_box()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.3 * box["height"])
    until(page, lambda: np.allclose(page.evaluate("game.target"), (0.8, 0.3), atol=0.02))
    page.touchscreen.tap(box["x"] + 0.2 * box["width"], box["y"] + 0.6 * box["height"])
    until(page, lambda: np.allclose(page.evaluate("game.target"), (0.2, 0.6), atol=0.02))
    page.locator("#world").focus()
    page.keyboard.press("ArrowRight")
    until(page, lambda: page.evaluate("game.target[0]") > 0.22)
    plays(page)


def test_an_image_that_is_dropped_is_the_goal(visit: Any, tmp_path: Path):
    page = visit()
    before = page.evaluate(GOAL)
    Image.new("RGB", (300, 200), (20, 60, 200)).save(tmp_path / "blue.png")
    with page.expect_file_chooser() as chooser:
        page.click("[data-key='o']")
    chooser.value.set_files(tmp_path / "blue.png")
    said(page, "Your image is the goal")
    after = page.evaluate(GOAL)
    assert after != before
    page.evaluate("""async () => {
      const data = new DataTransfer();
      data.items.add(new File(["no image"], "notes.txt", { type: "text/plain" }));
      document.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
    }""")
    said(page, "notes.txt is not an image")
    page.keyboard.press("r")
    said(page, "Start 2")
    assert page.evaluate(GOAL) == after
    page.keyboard.press("u")
    said(page, "one of the start")
    until(page, lambda: page.evaluate(GOAL) != after)


def test_a_race_ends_with_a_word_about_who_is_nearer(visit: Any):
    page = visit()
    page.select_option("#speed", "60")
    page.click("#race")
    until(page, lambda: page.is_visible("#rival"))
    until(page, lambda: "steps: you" in page.inner_text("#said"))
    assert page.evaluate("game.steps") <= 100


def test_slow_motion_keypoints_pause_and_one_step(visit: Any):
    page = visit()
    page.keyboard.press("p")
    said(page, "Paused")
    page.wait_for_timeout(300)
    plain, steps = page.evaluate(WORLD), page.evaluate("game.steps")
    page.keyboard.press("k")
    until(page, lambda: page.evaluate(WORLD) != plain)
    page.keyboard.press("n")
    until(page, lambda: page.evaluate("game.steps") == steps + 1)
    page.keyboard.press("s")
    said(page, "A quarter of the speed")
    assert page.get_attribute("#slow", "aria-pressed") == "true"


def test_a_phone_shows_all_of_it_and_less_motion_begins_paused(visit: Any):
    page = visit(viewport={"width": 320, "height": 640}, reduced_motion="reduce")
    said(page, "less motion")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    steps = page.evaluate("game.steps")
    page.keyboard.press("p")
    until(page, lambda: page.evaluate("game.steps") > steps)


def test_a_host_that_unpacks_files_is_no_trouble(config: web.Config, chromium: Any, tmp_path: Path):
    for path in config.out.iterdir():
        content = path.read_bytes()
        unpacked = gzip.decompress(content) if path.suffix == ".bin" else content
        (tmp_path / path.name).write_bytes(unpacked)
    host = Host(tmp_path)
    with visits(chromium) as make:
        page = make(host.url)
        until(page, lambda: page.evaluate("measured.frames") > 0)
    host.stop()


# -- with WebGPU ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_webgpu(config: web.Config) -> web.Config:
    """The same graphs, which are not traced again."""
    traced = {p.stem: gzip.decompress(p.read_bytes()) for p in config.out.glob("*.bin")}
    config = replace(config, out=config.out.with_name("webgpu"), webgpu=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(web, "to_onnx", lambda graph, half: traced[graph.name])
        web.main(config)
    return config


@pytest.fixture
def gpu_address(with_webgpu: web.Config, address: str) -> str:
    return address.replace("world", "webgpu")


def test_webgpu_is_carried_only_where_it_is_asked_for(config: web.Config, with_webgpu: web.Config):
    plain, about = (
        json.loads((one.out / "world.json").read_text()) for one in (config, with_webgpu)
    )
    assert about["webgpu"] and not plain["webgpu"]
    assert 2e6 < sum(about["files"].values()) - sum(plain["files"].values()) < 4e6


@pytest.mark.parametrize("gpu", [NO_ADAPTER, BROKEN], ids=["no adapter", "broken"])
def test_without_a_gpu_that_works_wasm_plays(gpu_address: str, chromium: Any, gpu: str):
    with visits(chromium) as visit:
        page = visit("about:blank")
        told: list[str] = []
        page.on("console", lambda message: told.append(message.text))
        page.add_init_script(gpu)
        page.goto(gpu_address)
        plays_by(page, "WebAssembly")
        assert page.evaluate("hasGpu()") is (gpu == BROKEN)
        if gpu == BROKEN:
            until(page, lambda: any("WebGPU is not used" in line for line in told))


def fulfil(answer: dict[str, str], route: Any) -> None:
    route.fulfill(**answer)


def test_a_gpu_that_never_answers_is_given_up(
    with_webgpu: web.Config, gpu_address: str, chromium: Any
):
    changes = {
        "worker.js": ("await onGpu(files)", "await new Promise(() => {})"),
        "page.js": ("GPU_MS = 10000", "GPU_MS = 200"),
    }
    with visits(chromium) as visit:
        page = visit("about:blank")
        for name, (before, after) in changes.items():
            text = (with_webgpu.out / name).read_text()
            assert before in text
            answer = {"body": text.replace(before, after), "content_type": "text/javascript"}
            page.context.route(f"**/{name}", partial(fulfil, answer))
        told: list[str] = []
        page.on("console", lambda message: told.append(message.text))
        page.add_init_script(BROKEN)
        page.goto(gpu_address)
        plays_by(page, "WebAssembly")
        assert "WebGPU is not used: it did not answer" in told


def test_a_real_adapter_is_tried_and_the_page_plays(gpu_address: str, chromium: Any):
    """By Chromium's own software adapter, where it has one."""
    browser = chromium.browser_type.launch(
        executable_path=CHROMIUM,
        args=[word for word in ARGUMENTS if word != "--disable-gpu"] + SOFTWARE_GPU,
    )
    with visits(browser) as visit:
        page = visit(gpu_address)
        # an adapter in software takes the cores that the page needs
        until(page, lambda: page.evaluate("measured.frames") > 3, 4 * PATIENCE)
        if not page.evaluate("hasGpu()"):
            pytest.skip("this Chromium has no software adapter for WebGPU")
        tried = page.evaluate("call('gpu')")
        if tried is None:
            pytest.skip("the software adapter for WebGPU did not answer in time")
        assert tried["apart"] <= 1e-2, tried
    browser.close()
