"""Serve the page until it is interrupted."""

from __future__ import annotations

import socket
import tempfile
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from pipeline import listen
from pipeline.listen import open_socket as open_socket
from pipeline.play.browser.server_config import ServerConfig

PACKAGES = ("fastapi", "uvicorn", "websockets")


def check_installed() -> None:
    """Raise ValueError where a package of requirements-serve.txt is missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"--browser needs {', '.join(missing)}; python -m pip install -r requirements-serve.txt"
        )


def address(config: ServerConfig, listening: socket.socket) -> str:
    """What to open; the key comes behind #, which a browser tells no server."""
    key = f"#key={quote(config.key)}" if config.key else ""
    return f"{listen.address(config, listening)}{key}"


def serve(make_game: object, config: ServerConfig, fps: float, listening: socket.socket) -> None:
    """make_game: of pipeline/play/browser/room.py."""
    import uvicorn

    from pipeline.play.browser.app import HELLO_SECONDS, make_app
    from pipeline.play.browser.messages import MAX_BYTES
    from pipeline.play.browser.room import Room
    from pipeline.serve.timed_protocol import timed_protocol

    with tempfile.TemporaryDirectory(prefix="dreamstage-play-") as folder:
        room = Room(make_game, config, fps, Path(folder))  # type: ignore[arg-type]

        def stop() -> None:
            server.should_exit = True

        settings = uvicorn.Config(
            make_app(room, when_failed=stop),
            log_level="warning",
            http=timed_protocol(HELLO_SECONDS),
            ws="websockets-sansio",
            ws_max_size=MAX_BYTES,
            ws_max_queue=16,
            ws_per_message_deflate=False,  # a JPEG does not shrink
            timeout_graceful_shutdown=2,
            server_header=False,
        )
        server = uvicorn.Server(settings)
        print(f"play: {address(config, listening)} (Ctrl-C ends it)", flush=True)
        try:
            server.run(sockets=[listening])
        except KeyboardInterrupt:
            print("play: the page is closed")
