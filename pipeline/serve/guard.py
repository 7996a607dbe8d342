"""What is checked of every request before any of it is read: who asks, for how much, how slowly.

One ASGI middleware, outside of all others: a request that it lets through has its whole body in
memory, within the limits.  Nothing of a body is ever written to a log.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Callable, Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.listen import host_is_ours, knows
from pipeline.serve.refused import Refused
from pipeline.serve.service_config import ServiceConfig
from pipeline.serve.service_metrics import ServiceMetrics

log = logging.getLogger("dreamstage.serve")
OPEN = ("/health", "/ready")  # without a key: whoever starts the service asks these
ROUTES = (
    "/encode", "/predict", "/rollout", "/decode", "/plan", "/health", "/ready", "/spec",
    "/metrics", "/openapi.json",
)  # fmt: skip
CLIENT_LEFT = 499  # as nginx writes it; nobody reads this answer
HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Guard:
    def __init__(
        self,
        app: ASGIApp,
        config: ServiceConfig,
        metrics: ServiceMetrics,
        check_place: Callable[[], None],
    ) -> None:
        """check_place: raises Refused where too many wait; asked before a body is parsed, as to
        refuse all but costs as much as to answer once images are decoded."""
        self.app, self.config, self.metrics = app, config, metrics
        self._check_place = check_place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # there are no sockets here
            return await send({"type": "websocket.close", "code": 1008})
        began, request, status = time.monotonic(), secrets.token_hex(8), 500
        route = scope["path"] if scope["path"] in ROUTES else "other"

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers["x-request-id"] = request
            await send(message)

        try:
            body = await self._admit(scope, receive)
            if scope["method"] == "POST":
                self._check_place()
            await self.app(scope, _replay(body, receive), send_marked)
        except Refused as refused:
            status = refused.status
            await _refuse(refused, send_marked)
        finally:
            seconds = time.monotonic() - began
            self.metrics.requests.labels(route, status).inc()
            self.metrics.seconds.labels(route).observe(seconds)
            method = scope["method"] if scope["method"] in ("GET", "POST") else "other"
            log.debug("%s %s %s %d %.1f ms", request, method, route, status, 1000 * seconds)

    async def _admit(self, scope: Scope, receive: Receive) -> bytes:
        """Return the body; Refused where the request is not let in."""
        headers = Headers(scope=scope)
        if not host_is_ours(self.config, headers.get("host", "")):
            raise Refused(421, "the Host header names no address of this machine")
        if self.config.key and scope["path"] not in OPEN and not self._has_key(headers):
            raise Refused(401, "a key is needed (Authorization: Bearer KEY)")
        if scope["method"] == "POST":
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise Refused(415, "the body has to be JSON (Content-Type: application/json)")
        limit = int(self.config.max_body_mb * 10**6)
        too_large = Refused(413, f"a request has at most {self.config.max_body_mb:g} MB")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > limit:
            raise too_large
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.config.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(CLIENT_LEFT, "the client has left")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        raise too_large
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise Refused(
                408, f"the body did not come within {self.config.body_seconds:g} s"
            ) from None

    def _has_key(self, headers: Mapping[str, str]) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        return knows(self.config, given.strip()) and scheme.lower() == "bearer"


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give the body once, then what comes after it: that the client has left."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _refuse(refused: Refused, send: Send) -> None:
    content = json.dumps({"detail": refused.detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
    if refused.status in (408, 413):  # the rest of the body is not read
        headers.append((b"connection", b"close"))
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if refused.retry_after:
        headers.append((b"retry-after", b"%d" % refused.retry_after))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
