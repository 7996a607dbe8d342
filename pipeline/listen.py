"""An address to listen at, and who may ask there: this machine alone, or those with a key."""

from __future__ import annotations

import hmac
import socket
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from data.ranges import CheckedConfig, Range

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MIN_KEY = 16  # characters
# of every page that is served
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class ListenConfig(CheckedConfig):
    host: str = "127.0.0.1"
    """Address to serve at; another one than this machine's own needs a key."""
    port: Annotated[int, Range(0, 65535)] = 8765
    """Port; 0 is a free one."""
    key: str = ""
    """What those who ask have to know, 16 characters or more."""

    @property
    def is_local(self) -> bool:
        return self.host in LOOPBACK

    def check(self) -> None:
        super().check()
        if self.key and len(self.key) < MIN_KEY:
            raise ValueError(
                f"--key has {len(self.key)} characters, and {MIN_KEY} is the least; give a longer "
                f"one"
            )
        if not self.is_local and not self.key:
            raise ValueError(
                f"--host {self.host} can be reached from other machines, so --key is needed: a "
                f"secret of {MIN_KEY} characters or more; or leave --host out"
            )


def open_socket(config: ListenConfig, prefix: str = "--server.") -> socket.socket:
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


def address(config: ListenConfig, listening: socket.socket) -> str:
    """The URL of what listens."""
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"http://{host}:{listening.getsockname()[1]}/"


def host_is_ours(config: ListenConfig, host: str) -> bool:
    """Whether the Host of a request names this machine: a foreign name that leads here (DNS
    rebinding) does not.  Elsewhere the key protects."""
    if not config.is_local:
        return True
    try:
        return urlsplit(f"//{host}").hostname in LOOPBACK
    except ValueError:  # half of an IPv6 address
        return False


def knows(config: ListenConfig, key: str) -> bool:
    """Compare a key in a time that does not depend on how much of it is right."""
    return hmac.compare_digest(key.encode("utf-8", "replace"), config.key.encode())
