"""The light client of bench.serve_load: statuses, and connections that are used again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

pytest.importorskip("prometheus_client", reason="requirements-serve.txt is not installed")
from served import listening_service, picture, tiny_service

from bench import http_connections
from bench.http_connections import HttpConnections
from pipeline.client.calls import encode


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with listening_service(tiny_service()) as url:
        yield url


def test_statuses_are_those_of_the_service_and_connections_are_used_again(url, monkeypatch):
    opened, open_connection = [], asyncio.open_connection

    async def counted(*address):
        opened.append(address)
        return await open_connection(*address)

    monkeypatch.setattr(asyncio, "open_connection", counted)
    content = encode(picture(), patches=False).content
    assert content is not None

    async def ask() -> list[int]:
        async with HttpConnections(url, "/encode", content) as connections:
            together = await asyncio.gather(*[connections.ask() for _ in range(3)])
            return [*together, await connections.ask()]

    assert asyncio.run(ask()) == [200] * 4 and len(opened) == 3

    monkeypatch.setattr(http_connections, "IDLE_SECONDS", 0.0)  # all have been idle for too long
    assert asyncio.run(ask()) == [200] * 4 and len(opened) == 3 + 4

    async def ask_wrongly() -> int:
        async with HttpConnections(url, "/encode", b"{}") as connections:
            return await connections.ask()

    assert asyncio.run(ask_wrongly()) == 422


def test_an_answer_that_does_not_come_is_an_error():
    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async def ask() -> None:
        server = await asyncio.start_server(close, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, HttpConnections(f"http://127.0.0.1:{port}", "/", b"{}") as connections:
            await connections.ask()

    with pytest.raises((OSError, EOFError)):
        asyncio.run(ask())
