"""Where the page is served, to whom, and how much of the machine they may take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from data.ranges import CheckedConfig, Range

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MIN_KEY = 16  # characters


@dataclass(frozen=True)
class ServerConfig(CheckedConfig):
    host: str = "127.0.0.1"
    """Address to serve at; another one than this machine's own needs --server.key."""
    port: Annotated[int, Range(0, 65535)] = 8765
    """Port; 0 is a free one."""
    key: str = ""
    """What visitors have to know, 16 characters or more; it is part of the printed address."""
    max_players: Annotated[int, Range(1, 1024)] = 8
    """People who play at a time; others wait in line."""
    max_waiting: Annotated[int, Range(0, 10**4)] = 32
    """People in line; others are told to come back later."""
    idle_minutes: Annotated[float, Range(0.01, 10**4)] = 5.0
    """Minutes without a key or a pointer until a place is given up."""
    reconnect_seconds: Annotated[float, Range(0, 10**5)] = 60.0
    """Seconds that a place is kept for whose connection is lost."""

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
