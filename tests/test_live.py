"""The page of --live: what it reads of a run, whom it answers, and when it ends."""

from __future__ import annotations

import http.client
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from chromium import CHROMIUM, launched, until, visits
from PIL import Image

import train_controller
import train_dynamics
from data.shards.build_info import NoShards
from evaluation.live import __main__ as live
from evaluation.live.__main__ import Config, Handler, Server, main
from evaluation.live.run_log import RunLog
from evaluation.live.stage_log import StageLog, duration
from pipeline.live_page import ROOT, followed, steps_of
from pipeline.play.browser.serve import open_socket
from pipeline.play.browser.server_config import ServerConfig

KEY = "a long secret of ours"
HURRIED = "{ const wait = setTimeout; window.setTimeout = (act, ms) => wait(act, ms / 20); }"


def write_log(folder: Path, steps: range, more: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.jsonl", "a") as file:
        for step in steps:
            record = {"step": step, "time": 1000.0 + step / 2, "train/loss": 1 / (step + 1)}
            record["train/device_idle"] = 0.25
            if step % 10 == 0:
                record["validation/psnr"] = 20.0 + step / 10
            file.write(json.dumps(record) + "\n")
        file.write(more)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_log(tmp_path / "dynamics", range(0, 41, 5))
    (tmp_path / "dynamics" / "best.pt").write_bytes(b"x")
    (tmp_path / "dynamics" / "images").mkdir()
    (tmp_path / "dynamics" / "images" / "rollout-000020.png").write_bytes(b"an image")
    return tmp_path


def test_only_what_was_appended_is_read_and_half_a_line_waits(run: Path):
    stage = StageLog(run / "dynamics", total=100)
    stage.update()
    assert stage.step == 40 and stage.curves["validation/psnr"][-1] == (40, 24.0)
    assert stage.steps_per_second() == 2.0 and stage.seconds_left() == 30.0
    with open(run / "dynamics" / "log.jsonl", "a") as file:
        file.write('nonsense\n[1]\n{"step": 45, "time": 10')
        file.flush()
        stage.update()
        assert stage.step == 40
        file.write('22.5, "train/loss": 0.5}\n')
    stage.update()
    assert stage.step == 45 and stage.latest("train/")["loss"] == 0.5
    assert len(stage.curves["train/loss"]) == 10  # no line twice


def test_a_training_that_starts_over_is_read_from_its_beginning(run: Path):
    stage = StageLog(run / "dynamics")
    stage.update()
    (run / "dynamics" / "log.jsonl").unlink()
    write_log(run / "dynamics", range(3))
    stage.update()
    assert stage.step == 2 and len(stage.curves["train/loss"]) == 3
    assert stage.seconds_left() is None  # of a training whose end is not known


def test_the_stage_that_is_written_comes_first(run: Path):
    write_log(run / "controller" / "bc", range(3))
    os.utime(run / "dynamics" / "log.jsonl", (1.0, 1.0))
    assert list(RunLog(run, {}).stages()) == ["controller/bc", "dynamics"]


def test_time_is_told_in_two_units():
    assert [duration(s) for s in (59, 61, 3661)] == ["59 s", "1 min 1 s", "1 h 1 min"]


# -- the server -------------------------------------------------------------------------------


@contextmanager
def serving(run: Path, config: ServerConfig) -> Iterator[int]:
    listening = open_socket(config)
    server = Server(listening, partial(Handler, RunLog(run, {"dynamics": 100}), config))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(port: int, path: str, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        return answer.status, answer.read()
    finally:
        connection.close()


def test_the_page_tells_what_the_log_holds(run: Path):
    with serving(run, ServerConfig(port=0)) as port:
        status, content = ask(port, "/now?stage=dynamics")
        now = json.loads(content)
        assert status == 200 and now["step"] == 40 and now["total"] == 100
        assert now["left"] == "30 s" and now["idle"] == 0.25 and not now["running"]
        assert now["validation"] == {"psnr": 24.0} and now["images"] == {"rollout": [20]}
        assert list(now["checkpoints"]) == ["best.pt"]
        assert now["charts"].index("validation/psnr") < now["charts"].index("train/loss")
        assert ask(port, "/image?stage=dynamics&name=rollout&step=20") == (200, b"an image")
        for name in ("/", "/live.js", "/live.css"):
            status, content = ask(port, name)
            assert status == 200 and b"http://" not in content and b"https://" not in content


@pytest.mark.parametrize(
    "path",
    ["/image?stage=dynamics&name=../best&step=20", "/image?stage=..&name=rollout&step=20",
     "/image?stage=dynamics&name=rollout&step=21", "/image", "/../run_log.py", "/best.pt"],
)  # fmt: skip
def test_nothing_else_of_the_disk_is_served(run: Path, path: str):
    with serving(run, ServerConfig(port=0)) as port:
        assert ask(port, path)[0] == 404


def test_one_slow_visitor_holds_no_lock(run: Path, monkeypatch: pytest.MonkeyPatch):
    answered = []
    answer = Handler._answer

    def noted(self: Handler, *words: Any) -> None:
        answered.append(Handler.lock.locked())
        answer(self, *words)

    monkeypatch.setattr(Handler, "_answer", noted)
    with serving(run, ServerConfig(port=0)) as port:
        ask(port, "/image?stage=dynamics&name=rollout&step=20")
        ask(port, "/image?stage=dynamics&name=none&step=20")
        ask(port, "/now")
    assert answered == [False] * 3


def test_silent_visitors_are_closed_and_no_more_than_some_are_let_in(
    run: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(live, "MOST_CONNECTIONS", 2)
    with serving(run, ServerConfig(port=0)) as port, ExitStack() as held:
        for _ in range(2):
            held.enter_context(socket.create_connection(("127.0.0.1", port)))
        with pytest.raises((OSError, http.client.HTTPException)):
            ask(port, "/now")
    assert Handler.timeout == live.PATIENCE == 10
    monkeypatch.setattr(live, "PATIENCE", 0.2)
    with (
        serving(run, ServerConfig(port=0)) as port,
        socket.create_connection(("127.0.0.1", port), timeout=20) as silent,
    ):
        assert silent.recv(1) == b""
        assert ask(port, "/now")[0] == 200  # its place is free again


def test_a_visitor_who_sends_a_byte_now_and_then_is_closed_too(
    run: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(live, "PATIENCE", 0.4)
    with (
        serving(run, ServerConfig(port=0)) as port,
        socket.create_connection(("127.0.0.1", port), timeout=20) as dripping,
    ):
        begun = time.monotonic()
        with pytest.raises(OSError):  # once it is closed
            for byte in b"GET /now HTTP/1.1\r\nHost: 127.0.0.1\r\nX-More: " + b"x" * 10**4:
                dripping.sendall(bytes([byte]))
                time.sleep(0.05)
        assert 0.2 < time.monotonic() - begun < 200  # all of it takes 500


def test_a_visitor_who_leaves_is_not_reported_and_a_fault_of_ours_is(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
):
    def left(*_: Any) -> None:
        raise ConnectionResetError("it has left")

    def broken(*_: Any) -> None:
        raise RuntimeError("ours")

    for problem, said in ((left, ""), (broken, "RuntimeError: ours")):
        monkeypatch.setattr(Handler, "do_GET", problem)
        with serving(run, ServerConfig(port=0)) as port, pytest.raises(http.client.HTTPException):
            ask(port, "/now")
        error = capfd.readouterr().err
        assert said in error if said else not error


def test_another_name_of_this_machine_is_refused_and_a_key_is_asked_for(run: Path):
    with serving(run, ServerConfig(port=0)) as port:
        assert ask(port, "/now", Host="elsewhere.example")[0] == 421
    with serving(run, ServerConfig("0.0.0.0", 0, KEY)) as port:
        assert ask(port, "/")[0] == 200
        assert ask(port, "/now")[0] == ask(port, "/now", **{"x-key": "guess"})[0] == 403
        assert ask(port, "/now", **{"x-key": KEY})[0] == 200


def test_mistakes_are_told(run: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="--host 0.0.0.0 can be reached.*--key is needed"):
        Config(run, host="0.0.0.0").check()
    with pytest.raises(ValueError, match="is not there; name the folder of a run"):
        main(Config(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="--steps much is not STAGE=NUMBER"):
        main(Config(run, port=0, steps=("much",)))


def test_the_page_shows_it_and_asks_with_its_key(run: Path):
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    shown = Image.new("RGB", (8, 4), (10, 200, 10))
    for step in (20, 40):
        shown.save(run / "dynamics" / "images" / f"rollout-{step:06d}.png")
    config = ServerConfig("0.0.0.0", 0, KEY)
    with serving(run, config) as port, launched() as browser, visits(browser) as visit:
        page = visit("about:blank")
        page.add_init_script(HURRIED)
        page.goto(f"http://127.0.0.1:{port}/#key={quote(KEY)}")
        until(page, lambda: "40 of 100" in page.inner_text("#facts"))
        assert "25%" in page.inner_text("#facts") and "It does not run" in page.inner_text("#state")
        assert "validation psnr" in page.inner_text("#figures")
        assert page.locator("#charts svg").count() == 3
        image = "document.querySelector('#images img')"
        until(page, lambda: page.evaluate(f"{image} && {image}.naturalWidth === 8"))
        assert "step 40" in page.inner_text("#images figcaption")
        page.locator("#images input").focus()
        page.keyboard.press("ArrowLeft")
        until(page, lambda: "step 20" in page.inner_text("#images figcaption"))
        write_log(run / "dynamics", range(45, 51, 5))
        until(page, lambda: "50 of 100" in page.inner_text("#facts"))
        until(page, lambda: "A validation" in page.inner_text("#said"))
        assert "step 20" in page.inner_text("#images figcaption")  # who looks back is left there
        page.set_viewport_size({"width": 320, "height": 640})
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        write_log(run / "controller" / "bc", range(3))
        (run / "controller" / "bc" / "images").mkdir()
        shown.save(run / "controller" / "bc" / "images" / "actions-000002.png")
        os.utime(run / "dynamics" / "log.jsonl", (1.0, 1.0))
        until(page, lambda: "controller/bc" in page.inner_text("#title"))
        until(page, lambda: "actions" in page.inner_text("#images"))
        assert "rollout" not in page.inner_text("#images")  # which is of the stage before
        page = visit(f"http://127.0.0.1:{port}/")
        until(page, lambda: "the key is another one" in page.inner_text("#state"))


# -- at a stage -------------------------------------------------------------------------------


@dataclass
class Stage:
    run: Path
    live: int


def test_no_line_of_a_page_waits_for_a_stage_that_reads_none(run: Path):
    words = ["-m", "evaluation.live", str(run), "--port", "0", "--parent", str(os.getpid())]
    with subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as page:
        assert page.stdout is not None and page.stderr is not None
        try:
            assert page.stdout.readline().startswith(b"live: http://")
            assert select.select([page.stderr], [], [], 20)[0]  # at its end, as nobody writes there
            assert page.stderr.read() == b"" and page.poll() is None
        finally:
            page.terminate()


def test_a_run_that_is_not_there_is_told_as_by_the_stage(tmp_path: Path):
    told = (
        r"nowhere.shards holds no shards; make them with: python preprocess.py .* --run .*nowhere"
    )
    with pytest.raises(NoShards, match=told), followed(Stage(tmp_path / "nowhere", 1), "dynamics"):
        pytest.fail("it trained")


def test_a_stage_is_followed_until_it_ends(run: Path, capfd: Any):
    with open_socket(ServerConfig(port=0)) as free:
        port = free.getsockname()[1]
    with followed(Stage(run, port), "dynamics"):
        assert f"live: http://127.0.0.1:{port}/" in capfd.readouterr().out
        assert ask(port, "/now")[0] == 200
    with pytest.raises(OSError):
        ask(port, "/now")


def test_a_port_in_use_is_told_before_anything_is_trained(run: Path):
    with open_socket(ServerConfig(port=0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(ValueError, match=rf"--live {port} cannot be served"),
            followed(Stage(run, port), "dynamics"),
        ):
            pytest.fail("it trained")


def test_a_killed_training_takes_its_page_along(run: Path):
    with open_socket(ServerConfig(port=0)) as free:
        port = free.getsockname()[1]
    program = (
        f"import os, types\nfrom pathlib import Path\nfrom pipeline.live_page import followed\n"
        f"stage = types.SimpleNamespace(run=Path({str(run)!r}), live={port})\n"
        f"with followed(stage, 'shards'): os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 9
    end = time.monotonic() + 30
    while True:
        try:
            ask(port, "/now")
        except OSError:
            break
        assert time.monotonic() < end, "the page is still there"
        time.sleep(0.05)


def test_a_page_loads_nothing_of_the_training_and_a_training_nothing_of_the_page():
    for loaded, kept_out in (
        ("evaluation.live.__main__", ("torch", "numpy")),
        ("train_dynamics", ("evaluation.live", "pipeline.live_page", "http.server")),
    ):
        program = f"import sys, {loaded}; print([n for n in {kept_out!r} if n in sys.modules])"
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "[]", loaded


def test_every_training_of_a_stage_has_its_steps():
    assert set(steps_of(train_dynamics.Config(), "dynamics")) == {"dynamics"}
    found = steps_of(train_controller.Config(), "controller")
    assert {"controller", "controller/bc", "controller/goal_policy"} <= set(found)
