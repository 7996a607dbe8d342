"""The client for asyncio.

async with AsyncLatentClient("http://127.0.0.1:8001") as client:
    now = await client.encode(Path("photo.jpg"), patches=True)
    gray = await client.predict(now, [0, 0, 0, 0, 0, 1])
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Self, TypeVar

import httpx2
import numpy as np

from pipeline.client import calls
from pipeline.client.answers import Encoded, Health, Planned, Predicted, RolledOut, Spec
from pipeline.client.calls import Call, Picture, Retries, Start
from pipeline.client.errors import ServiceError, TimedOut, Unreachable

T = TypeVar("T")


class AsyncLatentClient:
    """Every call raises a ServiceError (pipeline/client/errors.py) where it has no answer."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8001",
        key: str = "",
        timeout: float = 10.0,
        retries: Retries | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """timeout: seconds of one attempt.  transport: of tests, in the place of a network."""
        self._key, self._retries = key, retries or Retries()
        self._http = httpx2.AsyncClient(
            base_url=url, timeout=httpx2.Timeout(timeout), transport=transport, trust_env=False
        )

    async def health(self) -> Health:
        """Whether the service lives; always cheap, without a key."""
        return await self._ask(calls.health())

    async def spec(self) -> Spec:
        """What the run has, and what was measured of it."""
        return await self._ask(calls.spec())

    async def encode(self, image: Picture, patches: bool = False) -> Encoded:
        """Encode an image; with `patches` what follows predicts from all of it."""
        return await self._ask(calls.encode(image, patches))

    async def predict(self, start: Start, action: Sequence[float] | np.ndarray) -> Predicted:
        """Predict what one action, (A,), leads to."""
        return await self._ask(calls.predict(start, action))

    async def rollout(
        self, start: Start, actions: Sequence[Sequence[float]] | np.ndarray
    ) -> RolledOut:
        """Predict what each of a sequence of actions, (k, A), leads to."""
        return await self._ask(calls.rollout(start, actions))

    async def decode(self, start: Start) -> np.ndarray:
        """Draw latents: (H, W, 3) uint8."""
        return await self._ask(calls.decode(start))

    async def plan(
        self,
        image: Picture,
        goal: Picture,
        steps: int = 25,
        budget: int = 3000,
        seed: int = 0,
        timeout: float = 120.0,
    ) -> Planned:
        """Search for the actions that lead from one image to another; asked once, as it is long."""
        return await self._ask(calls.plan(image, goal, steps, budget, seed), timeout)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.close()

    async def _ask(self, call: Call[T], timeout: float | None = None) -> T:
        attempt = 1
        while True:
            try:
                return await self._ask_once(call, timeout)
            except ServiceError as problem:
                seconds = self._retries.wait(problem, attempt, call.again)
                if seconds is None:
                    raise
            await asyncio.sleep(seconds)
            attempt += 1

    async def _ask_once(self, call: Call[T], timeout: float | None) -> T:
        method = "GET" if call.body is None else "POST"
        own: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
        try:
            answer = await self._http.request(
                method, call.path, content=call.content, headers=call.headers(self._key), **own
            )
        except httpx2.ConnectTimeout as problem:
            raise Unreachable(f"{self._http.base_url} does not answer") from problem
        except httpx2.TimeoutException as problem:
            raise TimedOut(f"no answer of {call.path} in time") from problem
        except httpx2.HTTPError as problem:
            raise Unreachable(f"{self._http.base_url}: {problem or 'no connection'}") from problem
        return call.result(answer.status_code, answer.headers, answer.content)
