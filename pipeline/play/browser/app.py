"""The page and its socket: who may connect, how much they may say, and what they get."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from anyio import create_task_group, fail_after
from fastapi import FastAPI, HTTPException, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse, JSONResponse

from pipeline.listen import HEADERS, host_is_ours, knows
from pipeline.play.browser.guest import Guest
from pipeline.play.browser.messages import Ack, Hello, parse
from pipeline.play.browser.room import FILES, Room

PAGE = Path(__file__).parent / "page"
TYPES = {"index.html": "text/html", "play.js": "text/javascript", "play.css": "text/css"}
MESSAGES_PER_SECOND = 240  # of a page: motion comes once a frame, and each frame is acknowledged
HELLO_SECONDS = 10.0
POLICY, FULL, ELSEWHERE = 1008, 1013, 4002


class Connection:
    """What is to be sent on a socket: the newest frame, and all words."""

    def __init__(self, socket: WebSocket) -> None:
        self.socket = socket
        self._frame: bytes | None = None
        self._words: list[dict[str, Any]] = []
        self._closing: tuple[int, str] | None = None
        self._wake = asyncio.Event()

    def show(self, frame: bytes | None, status: dict[str, Any] | None) -> None:
        self._frame = frame or self._frame
        if status is not None:
            self._words = [w for w in self._words if w["type"] != "status"] + [status]
        self._wake.set()

    def tell(self, words: dict[str, Any]) -> None:
        self._words.append(words)
        self._wake.set()

    def end(self, code: int, reason: str) -> None:
        self._closing = (code, reason)
        self._wake.set()

    async def send(self) -> None:
        """Send until the connection ends."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            words, self._words = self._words, []
            for each in words:
                await self.socket.send_json(each)
            frame, self._frame = self._frame, None
            if frame is not None:
                await self.socket.send_bytes(frame)
            if self._closing is not None:
                return await self.socket.close(*self._closing)


def make_app(room: Room, when_failed: Callable[[], None] = lambda: None) -> FastAPI:
    """when_failed: ends the server where the loop of all games has ended by a fault of ours."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.create_task(room.run())
        loop.add_done_callback(lambda task: None if task.cancelled() else when_failed())
        yield
        loop.cancel()
        with suppress(asyncio.CancelledError):
            await loop
        room.close()

    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Response:
        if not host_is_ours(room.config, request.headers.get("host", "")):
            return JSONResponse({"detail": "this server has another name"}, 421)
        response = await call_next(request)
        response.headers.update(HEADERS)
        return response

    @app.get("/")
    @app.get("/{name}")
    def page(name: str = "index.html") -> FileResponse:
        if name not in TYPES:
            raise HTTPException(404, "there is no such file")
        return FileResponse(PAGE / name, media_type=TYPES[name])

    @app.get("/recordings/{token}/{number}/{name}")
    def recording(token: str, number: int, name: str) -> FileResponse:
        guest = room.guests.get(token)
        folder = guest.recordings.get(number) if guest else None
        if folder is None or name not in FILES:
            raise HTTPException(404, "there is no such recording, or no longer")
        return FileResponse(folder / name, filename=f"recording-{number + 1}-{name}")

    @app.websocket("/play")
    async def play(socket: WebSocket) -> None:
        ours = host_is_ours(room.config, socket.headers.get("host", ""))
        if not ours or not _is_own_page(socket.headers):
            return await socket.close(POLICY, "this is not the page of this server")
        await socket.accept()
        guest = await _greet(room, socket)
        if guest is not None:
            await _serve(room, guest, socket)

    return app


async def _greet(room: Room, socket: WebSocket) -> Guest | None:
    """Read the first message; close the connection where there is no place for it."""
    try:
        with fail_after(HELLO_SECONDS):
            hello = parse(await socket.receive_text())
        if not isinstance(hello, Hello):
            raise ValueError("the first message must be hello")
    except (TimeoutError, WebSocketDisconnect):
        with suppress(RuntimeError):
            await socket.close(POLICY, "no hello")
        return None
    except (ValueError, KeyError) as problem:  # KeyError: bytes in the place of text
        await socket.close(POLICY, str(problem)[:100])
        return None
    if not knows(room.config, hello.key):
        await socket.close(POLICY, "the key is another one")
        return None
    guest = room.enter(hello.session)
    if guest is None:
        await socket.close(FULL, "all places are taken, and the line is full")
    return guest


async def _serve(room: Room, guest: Guest, socket: WebSocket) -> None:
    """Read and write until one of both ends."""
    if guest.connection is not None:
        guest.connection.end(ELSEWHERE, "the game goes on in another window")
    connection = Connection(socket)
    guest.connect(connection)
    if guest.game is not None:
        connection.tell(room.welcome(guest))
    problems: list[Exception] = []
    try:
        async with create_task_group() as both:

            async def until_it_ends(job: Callable[[], Awaitable[None]]) -> None:
                try:
                    await job()
                except (WebSocketDisconnect, RuntimeError):  # it is closed, by whichever side
                    pass
                except (ValueError, KeyError) as problem:  # KeyError: bytes in the place of text
                    problems.append(problem)
                both.cancel_scope.cancel()

            both.start_soon(until_it_ends, partial(_read, guest, socket))
            both.start_soon(until_it_ends, connection.send)
        for problem in problems:
            await socket.close(POLICY, str(problem)[:100])
    finally:
        room.leave_connection(guest, connection)


async def _read(guest: Guest, socket: WebSocket) -> None:
    """Take in messages; ValueError for one that the page would not send, or too many of them."""
    allowance, before = float(MESSAGES_PER_SECOND), time.monotonic()
    while True:
        message = parse(await socket.receive_text())
        now = time.monotonic()
        allowance += (now - before) * MESSAGES_PER_SECOND
        allowance, before = min(allowance, MESSAGES_PER_SECOND) - 1, now
        if allowance < 0:
            raise ValueError(f"more than {MESSAGES_PER_SECOND} messages a second")
        if isinstance(message, Ack):
            guest.acked = max(guest.acked, min(message.n, guest.sent))
        elif isinstance(message, Hello):
            raise ValueError("hello is said once")
        else:
            guest.receive(message)


def _is_own_page(headers: Mapping[str, str]) -> bool:
    """Whether a socket is opened by a page of this server: browsers name it, and do not refuse
    others by themselves."""
    try:
        return urlsplit(headers.get("origin", "")).netloc == headers.get("host", "-")
    except ValueError:
        return False
