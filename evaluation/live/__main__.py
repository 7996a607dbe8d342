"""Follow a stage on a page: progress, losses, validations, images, speed, checkpoints.

Reads   RUN: log.jsonl, images, and the times of shards and of checkpoints.
Writes  nothing.
Try     python -m evaluation.live runs/pusht --port 8766, or --live 8766 at a stage
"""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):  # a script, or a worker process of one
    from pipeline.startup import start

    start(__name__)

import io
import json
import os
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import socket
from typing import Annotated, Any
from urllib.parse import parse_qs, urlsplit

from data.ranges import CheckedConfig, Range
from evaluation.compare.line_chart import Line, draw
from evaluation.live.run_log import RunLog
from evaluation.live.stage_log import StageLog, as_json
from pipeline.listen import HEADERS, host_is_ours, knows, open_socket
from pipeline.play.browser.serve import address
from pipeline.play.browser.server_config import ServerConfig

PAGE = Path(__file__).parent / "page"
TYPES = {"index.html": "text/html", "live.js": "text/javascript", "live.css": "text/css"}
NICENESS = 10  # the training goes first
WATCHED = 0.5  # seconds between two looks at the parent
PATIENCE = 10.0  # seconds for the whole of a visitor's next request, and for an answer to be taken
MOST_CONNECTIONS = 64  # a browser opens six


@dataclass(frozen=True)
class Config(CheckedConfig):
    run: Path
    """Folder of the run."""
    port: Annotated[int, Range(0, 65535)] = 8766
    """Port; 0 is a free one."""
    host: str = "127.0.0.1"
    """Address to serve at; another one than this machine's own needs --key."""
    key: str = ""
    """What visitors have to know, 16 characters or more; it is part of the printed address."""
    steps: tuple[str, ...] = ()
    """Steps in all of each stage, for the time that is left: dynamics=40000."""
    report: Path | None = None
    """Folder of a report that is not in the run."""
    parent: int = 0
    """Process with which the page ends."""

    def check(self) -> None:
        super().check()
        self.server.check()

    @property
    def server(self) -> ServerConfig:
        return ServerConfig(self.host, self.port, self.key)


def main(config: Config) -> None:
    if not config.run.is_dir():
        raise ValueError(f"{config.run} is not there; name the folder of a run")
    totals = dict(map(_total, config.steps))
    listening = open_socket(config.server, prefix="--")
    server = Server(
        listening, partial(Handler, RunLog(config.run, totals, config.report), config.server)
    )
    os.nice(NICENESS)
    print(f"live: {address(config.server, listening)}", flush=True)
    if config.parent:
        with open(os.devnull, "w") as nothing:  # the stage has read its line, and reads no more
            os.dup2(nothing.fileno(), 2)
        threading.Thread(target=_end_with, args=(config.parent, server), daemon=True).start()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("live: the page is closed")


def _total(text: str) -> tuple[str, int]:
    stage, _, steps = text.partition("=")
    if not steps.isdigit():
        raise ValueError(f"--steps {text} is not STAGE=NUMBER, such as dynamics=40000")
    return stage, int(steps)


def _end_with(parent: int, server: ThreadingHTTPServer) -> None:
    while os.getppid() == parent:
        threading.Event().wait(WATCHED)
    server.shutdown()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, listening: socket, handler: Any) -> None:
        super().__init__(listening.getsockname()[:2], handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.free = threading.BoundedSemaphore(MOST_CONNECTIONS)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread; close at once what is one connection too many."""
        if not self.free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self.free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what went wrong, unless it is a visitor who has left."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class TimedReader(io.RawIOBase):
    """What a visitor sends until `end`, a time of the monotonic clock; TimeoutError after it, also
    where a byte came now and then."""

    def __init__(self, connection: socket) -> None:
        self.connection, self.end = connection, 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request did not come")
        self.connection.settimeout(left)
        return self.connection.recv_into(buffer)


class Handler(BaseHTTPRequestHandler):
    """Files of the page, and what it asks for, which is all that a key protects."""

    protocol_version = "HTTP/1.1"
    timeout = PATIENCE  # of an answer
    lock = threading.Lock()  # logs are read by one request at a time

    def __init__(self, log: RunLog, config: ServerConfig, *connection: Any) -> None:
        self.log, self.config = log, config
        super().__init__(*connection)

    def setup(self) -> None:
        super().setup()
        self.reader = TimedReader(self.connection)
        self.rfile = io.BufferedReader(self.reader)

    def handle_one_request(self) -> None:
        self.reader.end = time.monotonic() + PATIENCE
        super().handle_one_request()

    def do_GET(self) -> None:
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        if not host_is_ours(self.config, self.headers.get("host", "")):
            return self._answer(421, b"this server has another name", "text/plain")
        name = path.lstrip("/") or "index.html"
        if name in TYPES:
            return self._answer(200, (PAGE / name).read_bytes(), TYPES[name])
        if name not in ("now", "image"):
            return self._answer(404, b"there is no such file", "text/plain")
        if not knows(self.config, self.headers.get("x-key", "")):
            return self._answer(403, b"the key is another one", "text/plain")
        given = {key: values[-1] for key, values in query.items()}
        wanted = given.get("stage", "")
        with self.lock:  # not held while a slow visitor takes the answer
            stages = self.log.stages()
            if name == "image":
                kind, content = read_image(stages.get(wanted), given)
            else:
                shown = wanted if wanted in stages else next(iter(stages), "")
                kind, content = "application/json", json.dumps(now(stages, shown)).encode()
        if content is None:
            return self._answer(404, b"there is no such image", "text/plain")
        self._answer(200, content, kind)

    def _answer(self, status: int, content: bytes, kind: str) -> None:
        self.connection.settimeout(self.timeout)
        self.send_response(status)
        for header, value in HEADERS.items():
            self.send_header(header, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *words: Any) -> None:
        """The training's own lines are what its terminal is for."""


def read_image(stage: StageLog | None, given: dict[str, str]) -> tuple[str, bytes | None]:
    """The image of a stage that a request names, and its kind; None where there is none."""
    step = given.get("step", "")
    number = int(step) if step.isdigit() and len(step) < 12 else -1
    path = stage.image(given.get("name", ""), number) if stage is not None else None
    if path is None:
        return "", None
    return f"image/{path.suffix[1:]}", path.read_bytes()


def now(stages: dict[str, StageLog], name: str) -> dict[str, Any]:
    """All that the page shows of a stage."""
    if not name:
        return {"stage": "", "stages": []}
    stage = stages[name]
    stage.update()
    validations = {k for k in stage.curves if k.startswith("validation/")}
    losses = {k for k in stage.curves if k.startswith("train/")}
    ordered = [
        *(k for k in stage.curves if k in validations),
        *(k for k in stage.curves if k in losses),
    ]
    charts = [draw(key, [Line(name, stage.curves[key])], "steps") for key in ordered]
    return as_json(stage, name, list(stages)) | {"charts": "".join(charts)}


if __name__ == "__main__":
    from pipeline.cli import run_cli

    run_cli(main, Config)
