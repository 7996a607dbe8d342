"""Connections that ask one request over and over, for a client that shares a core with the service:
a tenth of what an HTTP library takes."""

from __future__ import annotations

import asyncio
import re
import time
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
IDLE_SECONDS = 2.0  # unused for longer, a connection may be closed by the service at any moment


class HttpConnections:
    """Connections to one address, kept open and used again."""

    def __init__(self, url: str, path: str, body: bytes) -> None:
        """path, body: of the request, a POST of JSON."""
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None
        self._address = parts.hostname, parts.port
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._request = head.encode() + body
        self._idle: list[tuple[Streams, float]] = []

    async def ask(self) -> int:
        """Return the status of the answer; OSError or EOFError where none comes."""
        reader, writer = await self._take()
        try:
            writer.write(self._request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
            await reader.readexactly(int(length[1]) if length else 0)
        except BaseException:
            writer.close()
            raise
        if re.search(rb"connection: *close", head, re.IGNORECASE):
            writer.close()
        else:
            self._idle.append(((reader, writer), time.monotonic()))
        return int(head[9:12])

    async def _take(self) -> Streams:
        while self._idle:
            (reader, writer), since = self._idle.pop()
            fresh = time.monotonic() - since < IDLE_SECONDS
            if fresh and not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(*self._address)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for (_, writer), _ in self._idle:
            writer.close()
