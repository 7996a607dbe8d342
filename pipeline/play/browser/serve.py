"""Serve the page until it is interrupted."""

from __future__ import annotations

import socket
import tempfile
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from pipeline.play.browser.server_config import ServerConfig

PACKAGES = ("fastapi", "uvicorn", "websockets")


def check_installed() -> None:
    """Raise ValueError where a package of requirements-serve.txt is missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"--browser needs {', '.join(missing)}; python -m pip install -r requirements-serve.txt"
        )


def open_socket(config: ServerConfig, prefix: str = "--server.") -> socket.socket:
    """Listen, before anything is loaded; ValueError where that is not possible.

    prefix: of the flags that it names.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    # named TCP, or asyncio leaves Nagle's algorithm on, and a frame behind its status waits 40 ms
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((config.host, config.port))
        listening.listen(128)
    except OSError as problem:
        listening.close()
        raise ValueError(
            f"{prefix}host {config.host} {prefix}port {config.port} cannot be served at "
            f"({problem.strerror or problem}); choose another {prefix}port, or 0 for a free one"
        ) from None
    return listening


def address(config: ServerConfig, listening: socket.socket) -> str:
    """What to open; the key comes behind #, which a browser tells no server."""
    host = f"[{config.host}]" if ":" in config.host else config.host
    key = f"#key={quote(config.key)}" if config.key else ""
    return f"http://{host}:{listening.getsockname()[1]}/{key}"


def serve(make_game: object, config: ServerConfig, fps: float, listening: socket.socket) -> None:
    """make_game: of pipeline/play/browser/room.py."""
    import uvicorn

    from pipeline.play.browser.app import make_app
    from pipeline.play.browser.messages import MAX_BYTES
    from pipeline.play.browser.room import Room

    with tempfile.TemporaryDirectory(prefix="dreamstage-play-") as folder:
        room = Room(make_game, config, fps, Path(folder))  # type: ignore[arg-type]

        def stop() -> None:
            server.should_exit = True

        settings = uvicorn.Config(
            make_app(room, when_failed=stop),
            log_level="warning",
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
