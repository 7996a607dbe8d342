"""The client without asyncio: each call waits.

with LatentClient("http://127.0.0.1:8001") as client:
    now = client.encode(Path("photo.jpg"), patches=True)
    gray = client.predict(now, [0, 0, 0, 0, 0, 1])
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Self, TypeVar

import httpx2
import numpy as np

from pipeline.client import calls
from pipeline.client.answers import Encoded, Health, Planned, Predicted, RolledOut, Spec
from pipeline.client.calls import Call, Picture, Retries, Start
from pipeline.client.errors import ServiceError, TimedOut, Unreachable

T = TypeVar("T")


class LatentClient:
    """Every call raises a ServiceError (pipeline/client/errors.py) where it has no answer."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8001",
        key: str = "",
        timeout: float = 10.0,
        retries: Retries | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        """timeout: seconds of one attempt.  transport: of tests, in the place of a network."""
        self._key, self._retries = key, retries or Retries()
        self._http = httpx2.Client(
            base_url=url, timeout=httpx2.Timeout(timeout), transport=transport, trust_env=False
        )

    def health(self) -> Health:
        """Whether the service lives; always cheap, without a key."""
        return self._ask(calls.health())

    def spec(self) -> Spec:
        """What the run has, and what was measured of it."""
        return self._ask(calls.spec())

    def encode(self, image: Picture, patches: bool = False) -> Encoded:
        """Encode an image; with `patches` what follows predicts from all of it."""
        return self._ask(calls.encode(image, patches))

    def predict(self, start: Start, action: Sequence[float] | np.ndarray) -> Predicted:
        """Predict what one action, (A,), leads to."""
        return self._ask(calls.predict(start, action))

    def rollout(self, start: Start, actions: Sequence[Sequence[float]] | np.ndarray) -> RolledOut:
        """Predict what each of a sequence of actions, (k, A), leads to."""
        return self._ask(calls.rollout(start, actions))

    def decode(self, start: Start) -> np.ndarray:
        """Draw latents: (H, W, 3) uint8."""
        return self._ask(calls.decode(start))

    def plan(
        self,
        image: Picture,
        goal: Picture,
        steps: int = 25,
        budget: int = 3000,
        seed: int = 0,
        timeout: float = 120.0,
    ) -> Planned:
        """Search for the actions that lead from one image to another; asked once, as it is long."""
        return self._ask(calls.plan(image, goal, steps, budget, seed), timeout)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _ask(self, call: Call[T], timeout: float | None = None) -> T:
        attempt = 1
        while True:
            try:
                return self._ask_once(call, timeout)
            except ServiceError as problem:
                seconds = self._retries.wait(problem, attempt, call.again)
                if seconds is None:
                    raise
            time.sleep(seconds)
            attempt += 1

    def _ask_once(self, call: Call[T], timeout: float | None) -> T:
        method = "GET" if call.body is None else "POST"
        own: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
        try:
            answer = self._http.request(
                method, call.path, content=call.content, headers=call.headers(self._key), **own
            )
        except httpx2.ConnectTimeout as problem:
            raise Unreachable(f"{self._http.base_url} does not answer") from problem
        except httpx2.TimeoutException as problem:
            raise TimedOut(f"no answer of {call.path} in time") from problem
        except httpx2.HTTPError as problem:
            raise Unreachable(f"{self._http.base_url}: {problem or 'no connection'}") from problem
        return call.result(answer.status_code, answer.headers, answer.content)
