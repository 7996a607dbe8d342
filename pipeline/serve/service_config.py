"""Where a run is served, to whom, and how much may be asked at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from data.ranges import Range
from pipeline.listen import ListenConfig

BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Sizes of the batches that a model sees; others are filled up."""


def bucket_of(count: int) -> int:
    """The size of a batch of `count` requests."""
    return next(bucket for bucket in BUCKETS if bucket >= count)


@dataclass(frozen=True)
class ServiceConfig(ListenConfig):
    port: Annotated[int, Range(0, 65535)] = 8001
    """Port; 0 is a free one."""
    key: str = ""
    """What clients have to send (Authorization: Bearer KEY), 16 characters or more."""
    batch_window_ms: Annotated[float, Range(0, 1000)] = 3.0
    """Milliseconds that a batch waits for as many requests as the one before it had, or a third of
    the time that it is expected to take, up to 100, where that is longer; with 0 it never waits."""
    max_batch: Annotated[int, Range(1, BUCKETS[-1])] = 32
    """Requests of a batch."""
    max_queue: Annotated[int, Range(1, 10**5)] = 128
    """Requests that wait for the model; who comes then is told to come back (503)."""
    max_plans: Annotated[int, Range(1, 1000)] = 4
    """Plans among them, which take longest."""
    deadline_seconds: Annotated[float, Range(above=0, high=3600)] = 10.0
    """Seconds until a request is given up (504)."""
    plan_seconds: Annotated[float, Range(above=0, high=3600)] = 120.0
    """The same for a plan."""
    body_seconds: Annotated[float, Range(above=0, high=3600)] = 10.0
    """Seconds that a client may take to send a request's head, and again its body (408)."""
    max_connections: Annotated[int, Range(1, 10**5)] = 512
    """Connections at a time; who comes then is told to come back (503)."""
    max_body_mb: Annotated[float, Range(above=0, high=1024)] = 8.0
    """Size of a request, in MB (413)."""
    max_image_mb: Annotated[float, Range(above=0, high=512)] = 4.0
    """Size of an image file, in MB (413)."""
    max_megapixels: Annotated[float, Range(above=0, high=64)] = 4.0
    """Pixels of an image, in millions (413)."""
    max_steps: Annotated[int, Range(1, 10**4)] = 64
    """Steps of a rollout."""
    max_rollouts: Annotated[int, Range(1, 10**7)] = 20_000
    """Candidate sequences that a plan may try."""
    max_plan_steps: Annotated[int, Range(1, 10**10)] = 500_000
    """Steps that a plan may predict, its steps times its budget."""
    max_answer_numbers: Annotated[int, Range(1, 10**9)] = 2_000_000
    """Numbers of a rollout's answer, of all its steps, patches included."""
