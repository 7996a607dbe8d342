"""uvicorn's HTTP protocol, that closes a connection whose request does not come.

uvicorn itself waits for ever for the head of a request; connections that are opened and say
nothing, or one byte a minute, would fill all places.
"""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def timed_protocol(seconds: float) -> type[H11Protocol]:
    """A head has to come within `seconds` of the connection, or of its own first byte."""

    class TimedProtocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._begin()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:
                self._end()
            elif self._timer is None:
                self._begin()

        def connection_lost(self, exc: Exception | None) -> None:
            self._end()
            super().connection_lost(exc)

        def _begin(self) -> None:
            self._timer = self.loop.call_later(seconds, self._close)

        def _end(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _close(self) -> None:
            self._timer = None
            if self.conn.their_state is h11.IDLE:  # else an answer is on its way
                self.transport.close()

    return TimedProtocol
