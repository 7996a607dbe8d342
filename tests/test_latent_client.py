"""The clients: what they ask and get, what they ask again, and each failure by its name."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import pytest

pytest.importorskip("prometheus_client", reason="requirements-serve.txt is not installed")
from served import base64_of, file_of, listening_service, picture, tiny_service

from pipeline.client import errors
from pipeline.client.answers import Encoded
from pipeline.client.async_client import AsyncLatentClient
from pipeline.client.calls import Retries
from pipeline.client.sync_client import LatentClient

FAST = Retries(first_seconds=0.001, longest_seconds=0.01)
GOOD = {"z_cls": [1.0, 2.0], "z_patches": None, "timestamp": 1.0, "latent_dim": 2,
        "model_variant": "core"}  # fmt: skip


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with listening_service(tiny_service(measured=True)) as url:
        yield url


def test_both_clients_ask_all_and_get_the_same(url, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(file_of(picture()))

    async def asked() -> list[Any]:
        async with AsyncLatentClient(url) as client:
            now = await client.encode(picture(), patches=True)
            return [
                now.z_cls,
                (await client.predict(now, [0.2])).z_cls,
                (await client.rollout(now, [[0.2], [0.0, 0.1]])).z_patches,
                await client.decode(now),
                (await client.health()).status,
                (await client.spec()).latent_spec,
            ]

    with LatentClient(url) as client:
        now = client.encode(path, patches=True)
        same = [
            now.z_cls,
            client.predict(now, [0.2]).z_cls,
            client.rollout(now, np.array([[0.2, 0.0], [0.0, 0.1]])).z_patches,
            client.decode(now),
            client.health().status,
            client.spec().latent_spec,
        ]
        with pytest.raises(errors.NotAvailable, match="no actions"):
            client.plan(picture(), picture())
    for one, other in zip(asyncio.run(asked()), same, strict=True):
        assert np.array_equal(one, other)
    assert same[2].shape == (2, 16, 24) and same[3].shape == (32, 32, 3)


def answers(*given: Any) -> tuple[httpx2.MockTransport, list[httpx2.Request]]:
    """Answer with each in turn: a status, a body, or an exception."""
    asked: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        now = given[min(len(asked), len(given) - 1)]
        asked.append(request)
        if isinstance(now, Exception):
            raise now
        if isinstance(now, dict):
            return httpx2.Response(200, json=now)
        if now == b"503":  # of uvicorn, or a proxy, without JSON
            return httpx2.Response(503, content=b"Service Unavailable")
        if isinstance(now, bytes):
            return httpx2.Response(200, content=now)
        return httpx2.Response(now, json={"detail": f"status {now}"})

    return httpx2.MockTransport(answer), asked


def client_of(*given: Any, retries: Retries = FAST) -> tuple[LatentClient, list[httpx2.Request]]:
    transport, asked = answers(*given)
    return LatentClient("http://service", "a key", retries=retries, transport=transport), asked


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (400, errors.BadRequest),
        (401, errors.Unauthorized),
        (404, errors.NotAvailable),
        (409, errors.SpecMismatch),
        (413, errors.BadRequest),
        (422, errors.BadRequest),
        (500, errors.BadAnswer),
        (504, errors.TimedOut),
        (b"<html>", errors.BadAnswer),
        ({}, errors.BadAnswer),
        (GOOD | {"z_cls": None}, errors.BadAnswer),
        (GOOD | {"z_cls": []}, errors.BadAnswer),
        (GOOD | {"z_cls": ["a"]}, errors.BadAnswer),
        (GOOD | {"z_cls": [[1.0]]}, errors.BadAnswer),
        (httpx2.ReadTimeout("slow"), errors.TimedOut),
    ],
)
def test_each_failure_has_its_name_and_is_not_asked_again(given, kind):
    client, asked = client_of(given)
    with pytest.raises(kind):
        client.encode(picture())
    assert len(asked) == 1


@pytest.mark.parametrize(
    "given", [503, b"503", httpx2.ConnectError("no"), httpx2.ReadError("lost")]
)
def test_what_may_pass_is_asked_again(given):
    client, asked = client_of(given, given, GOOD)
    assert client.encode(picture()).z_cls.tolist() == [1, 2]
    assert len(asked) == 3
    assert asked[0].headers["authorization"] == "Bearer a key"
    client, asked = client_of(given)
    with pytest.raises((errors.Busy, errors.Unreachable)):
        client.encode(picture())
    assert len(asked) == 4
    client, asked = client_of(given)
    with pytest.raises((errors.Busy, errors.Unreachable)):
        client.plan(picture(), picture())
    assert len(asked) == 1  # a plan is long


def test_waits_grow_with_jitter_and_are_no_shorter_than_the_service_says():
    random.seed(0)
    retries = Retries(attempts=10, first_seconds=0.1, longest_seconds=5.0)
    busy = errors.Busy("full", 503, retry_after=2.0)
    waits = [retries.wait(busy, attempt, True) for attempt in (1, 5) for _ in range(50)]
    assert all(wait is not None and wait >= 2 for wait in waits)
    first, fifth = np.array(waits[:50], float), np.array(waits[50:], float)
    assert first.max() <= 2.1 and 2.5 < fifth.max() <= 3.6 and fifth.std() > 0.2
    assert retries.wait(busy, 10, True) is None
    assert retries.wait(errors.Busy("full", 503, retry_after=60.0), 1, True) is None


def test_latents_are_sent_with_the_spec_that_made_them(url):
    with LatentClient(url) as client:
        now = client.encode(picture())
        other = type(now)(now.z_cls, None, 0.0, "core", "0" * 16)
        with pytest.raises(errors.SpecMismatch):
            client.predict(other, [])


def test_the_async_client_asks_again_too():
    transport, asked = answers(503, GOOD)

    class Transport(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            await request.aread()
            return transport.handle_request(request)

    async def main() -> list[float]:
        async with AsyncLatentClient("http://s", retries=FAST, transport=Transport()) as client:
            return (await client.encode(picture())).z_cls.tolist()

    assert asyncio.run(main()) == [1, 2] and len(asked) == 2


@pytest.mark.parametrize(
    "text", ["iVBORw0KGgo=", "no base64", 3, base64_of(file_of(picture())[:90])]
)
def test_an_image_that_cannot_be_drawn_is_no_answer(text):
    start = Encoded(np.zeros(2, np.float32), None, 0.0, "core", "")
    client, _ = client_of({"image_b64": text})
    with pytest.raises(errors.BadAnswer, match="no PNG"):
        client.decode(start)
