"""Where the page is served, to whom, and how much of the machine they may take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from data.ranges import Range
from pipeline.listen import ListenConfig


@dataclass(frozen=True)
class ServerConfig(ListenConfig):
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
