"""Perception by a served run: the latent of each frame, and how surprising it is.

    perception = Perception(AsyncLatentClient(url, timeout=1, retries=Retries(attempts=1)))
    state = VisionState()
    await perception.process_frame(frame, state, action_taken="move_forward")
    state.vision_prediction_surprise

A frame that comes while another is under way is dropped, so that what is known is never older than
one answer.  Where the service does not answer, `stale` is set, nothing else changes, and the next
frame tries again.

Letters: H W pixels, E numbers of z_cls, A action numbers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pipeline.client.answers import Encoded, Spec
from pipeline.client.async_client import AsyncLatentClient
from pipeline.client.errors import ServiceError, SpecMismatch
from pipeline.serve.latent_report import percentile

Action = str | Sequence[float] | np.ndarray | None
LONGEST_GAP = 16  # dropped frames that a rollout leads over
TRANSFORMATIONS: dict[str, tuple[float, ...]] = {
    "move_forward": (1, 0, 0, 0),
    "move_backward": (-1, 0, 0, 0),
    "turn_left": (0, -1, 0, 0),
    "turn_right": (0, 1, 0, 0),
    "attack": (0, 0, 1, 0),
    "wait": (0, 0, 0, 0),
}
"""Actions by name, in the first four numbers of a transformation."""


class Vision(Protocol):
    """What `process_frame` fills in; any object with these attributes will do."""

    vision_core_latent: np.ndarray | None
    vision_core_latent_prev: np.ndarray | None
    vision_prediction_surprise: float | None
    vision_mrr: float | None
    vision_core_timestamp: float | None


@dataclass
class VisionState:
    """What was seen last; the attributes of `Vision`, to begin with."""

    vision_core_latent: np.ndarray | None = None  # (E,) float32, of the last frame
    vision_core_latent_prev: np.ndarray | None = None  # (E,) float32, of the one before it
    vision_prediction_surprise: float | None = None
    """L2 between the predicted latent and the true one; None where nothing was predicted."""
    vision_mrr: float | None = None
    """Of the run, as it was measured; None where it was not."""
    vision_core_timestamp: float | None = None
    """Seconds since 1970, of the service's clock."""


class Perception:
    def __init__(self, client: AsyncLatentClient, threshold: float = 2.0) -> None:
        """threshold: distance above which a frame counts as surprising."""
        self.client, self.threshold = client, threshold
        self.total_frames = self.dropped_frames = 0
        self.total_errors = self.high_surprise_count = 0
        self.num_surprises = 0
        """Frames whose surprise is known."""
        self.stale = True
        """Whether the last frame that was tried has no answer."""
        self.last_error = ""
        self.surprise_percentile: float | None = None
        """Share of held-out transitions, in percent, that surprise less than the last one."""
        self._lock = asyncio.Lock()
        self._spec: Spec | None = None
        self._before: Encoded | None = None
        self._actions: list[Action] = []

    @property
    def error_rate(self) -> float:
        """Share of the frames that were tried."""
        return self.total_errors / max(1, self.total_frames - self.dropped_frames)

    @property
    def high_surprise_rate(self) -> float:
        """Share of the frames whose surprise is known."""
        return self.high_surprise_count / max(1, self.num_surprises)

    @property
    def dropped_rate(self) -> float:
        """Share of frames that came while another was under way."""
        return self.dropped_frames / max(1, self.total_frames)

    async def process_frame(
        self, frame: np.ndarray, state: Vision, action_taken: Action = None
    ) -> bool:
        """Look at a frame, (H, W, 3) uint8, that `action_taken` led to from the one before it.

        action_taken: a name of TRANSFORMATIONS, or the numbers of an action of the run, (A,).  None
        is no transformation; in a world, whose actions have no neutral one, the surprise is not
        known then.  Return whether `state` is of this frame now.

        ValueError for a name that is none: then, as after a cancelled call, nothing is predicted
        from the frame before.
        """
        self.total_frames += 1
        self._actions.append(action_taken)
        if self._lock.locked():
            self.dropped_frames += 1
            return False
        async with self._lock:
            actions, self._actions = self._actions, []
            try:
                await self._look(frame, state, actions)
            except BaseException as problem:  # an unknown action, or a cancelled call, too
                self._forget(problem)
                if isinstance(problem, ServiceError):
                    return False
                raise
        self.stale = False
        return True

    async def _look(self, frame: np.ndarray, state: Vision, actions: list[Action]) -> None:
        spec = self._spec = self._spec or await self.client.spec()
        steps = _steps_of(spec, actions)
        before = self._before
        encoding = self.client.encode(frame, patches=True)
        if before is None or steps is None:
            now, predicted = await encoding, None
        else:
            now, rolled = await asyncio.gather(encoding, self.client.rollout(before, steps))
            predicted = rolled.z_cls[-1]
        if now.latent_spec != spec.latent_spec:
            raise SpecMismatch("the service has another run now", 409)
        self._before = now
        surprise = None if predicted is None else float(np.linalg.norm(predicted - now.z_cls))
        self.surprise_percentile = None
        if surprise is not None:
            assert steps is not None
            quantiles = (spec.measured or {}).get("surprise", {})
            self.surprise_percentile = percentile(surprise, quantiles, len(steps))
            self.num_surprises += 1
            self.high_surprise_count += surprise > self.threshold
        state.vision_core_latent_prev = None if before is None else before.z_cls
        state.vision_core_latent = now.z_cls
        state.vision_prediction_surprise = surprise
        state.vision_mrr = (spec.measured or {}).get("mrr")
        state.vision_core_timestamp = now.timestamp

    def _forget(self, problem: BaseException) -> None:
        """What comes next does not follow from the frame before; it may be another run's, too."""
        self.total_errors += 1
        why = str(problem) or type(problem).__name__
        self.stale, self.last_error = True, f"{time.strftime('%H:%M:%S')} {why}"
        self._before = self._spec = None
        self._actions = []


def _steps_of(spec: Spec, actions: list[Action]) -> list[list[float]] | None:
    """The actions since the last frame that was looked at, as numbers; None where one of them is
    not known, or they are too many."""
    found: list[list[float]] = []
    known: dict[str, Any] = dict(TRANSFORMATIONS)
    kind = spec.spec["actions"]["kind"]
    if len(actions) > LONGEST_GAP or "predict" in spec.spec["cannot"]:
        return None
    for action in actions:
        if isinstance(action, str):
            if kind != "transformation" or action not in known:
                raise ValueError(
                    f"action_taken {action!r} is no action of this run; give its numbers, or one "
                    f"of {', '.join(known)} where it predicts transformations"
                )
            action = known[action]
        if action is None:
            if kind != "transformation":
                return None
            action = known["wait"]
        found.append(np.asarray(action, float).reshape(-1).tolist())
    return found
