"""Requests that come at about the same time are answered in one batch.

A queue of bounded length, one batch at a time.  A batch takes what waits of the first request's
group, and waits a few milliseconds, or a third of what it will take, for as many as the batch
before it had: one client alone never waits.  Rollouts of several lengths share one, and each is
answered once its last step is.  Who has gone, or is too late, is dropped before the model is asked;
who would be too late is told so at once (pipeline/serve/waiting_time.py).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from pipeline.serve.jobs import Done, Group, ModelProblem, Work
from pipeline.serve.refused import Refused, busy
from pipeline.serve.service_config import ServiceConfig
from pipeline.serve.waiting_time import SHARE, WaitingTime
from pipeline.serve.worker_process import ModelFault, Worker, WorkerEnded

WAIT_SHARE = 1 / 3
"""Of the seconds that the batch is expected to take: to wait as long costs less than to compute
those apart who come a little later.  They come one by one, as their answers are written."""
LONGEST_WAIT = 0.1  # seconds, however long the batch takes
GONE = "the model's process has ended and is started again; ask again"


@dataclass(eq=False)
class QueuedWork:
    work: Work
    deadline: float
    """Of time.monotonic()."""
    submitted: float
    answer: asyncio.Future[Done] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class MicroBatches:
    def __init__(
        self,
        worker: Worker,
        config: ServiceConfig,
        when_ended: Callable[[], None] = lambda: None,
        when_batched: Callable[[int], None] = lambda size: None,
    ) -> None:
        """when_ended: the worker has; when_batched: is told the size of each batch."""
        self.worker, self.config = worker, config
        self._when_ended, self._when_batched = when_ended, when_batched
        self.start = 0
        """Number of the worker's start; what belongs to an earlier one is not asked of this."""
        self._queue: deque[QueuedWork] = deque()
        self._arrived = asyncio.Event()
        self._before: dict[Group, int] = {}  # size of a group's last batch
        self._waiting_time = WaitingTime(config.max_batch)
        self._asked: list[Work] = []  # of the batch that the model has, and since when
        self._asked_since = 0.0
        self._free_since = 0.0  # when the last batch was answered

    @property
    def depth(self) -> int:
        return len(self._queue)

    def check_place(self) -> None:
        """Refused (503) where the queue is full; cheap, so that it can be asked before a request is
        read."""
        self._drop()  # who has left takes no place
        if self.depth >= self.config.max_queue:
            raise self._too_busy(self._wait_before(self._queue[-1].work))

    def submit(self, work: Work, seconds: float) -> QueuedWork:
        """Put a request into the queue, to be answered within `seconds`; Refused (503) where it is
        full, or too slow for that."""
        self.check_place()
        wait = self._wait_before(work)
        plans = sum(job.work.kind == "plan" for job in self._queue)
        full = work.kind == "plan" and plans >= self.config.max_plans
        if full or wait > SHARE * seconds:
            raise self._too_busy(wait)
        now = time.monotonic()
        job = QueuedWork(work, now + seconds, now)
        self._queue.append(job)
        self._arrived.set()
        return job

    def _wait_before(self, work: Work) -> float:
        """Seconds until a request that comes now could be begun."""
        wait = self._waiting_time.before([job.work for job in self._queue], work.group)
        gone = time.monotonic() - self._asked_since
        return wait + max(0.0, self._waiting_time.of(self._asked) - gone)

    def _too_busy(self, seconds: float) -> Refused:
        return busy(f"{self.depth} requests wait already; ask again later", math.ceil(seconds))

    def refuse_all(self, problem: Refused) -> None:
        """Tell all that wait."""
        while self._queue:
            _tell(self._queue.popleft(), problem)

    async def run(self) -> None:
        """Answer batches until it is cancelled."""
        while True:
            batch = await self._next()
            if batch:
                await self._answer(batch, self.start)

    async def _next(self) -> list[QueuedWork]:
        while not self._drop():
            self._arrived.clear()
            await self._arrived.wait()
        group = self._queue[0].work.group
        wanted = min(self.config.max_batch, self._before.get(group, 1))
        if group[0] == "plan":
            return [self._queue.popleft()]
        window = self.config.batch_window_ms / 1000
        if window:
            expected = self._waiting_time.of([self._queue[0].work] * wanted)
            window = max(window, min(LONGEST_WAIT, WAIT_SHARE * expected))
        end = time.monotonic() + window
        while self._count(group) < wanted and (left := end - time.monotonic()) > 0:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                break
        self._drop()
        batch, rest = [], deque[QueuedWork]()
        for job in self._queue:
            mine = job.work.group == group and len(batch) < self.config.max_batch
            (batch if mine else rest).append(job)
        self._queue = rest
        self._before[group] = len(batch)
        return batch

    async def _answer(self, batch: list[QueuedWork], start: int) -> None:
        if start != self.start:
            for job in batch:
                _tell(job, busy(GONE, 2))
            return None
        self._when_batched(len(batch))
        # those who wait also wait while answers are written: from one batch's end to the next
        began = max(self._free_since, min(job.submitted for job in batch))
        self._asked, self._asked_since = [job.work for job in batch], time.monotonic()
        try:
            await self.worker.answer(self._asked, partial(_tell_all, batch))
        except WorkerEnded:
            problem = busy(GONE, 2)
            for job in batch:
                _tell(job, problem)
            if start != self.start:  # it is known, and another has been started since
                return None
            self.refuse_all(problem)
            return self._when_ended()
        except (ModelProblem, ModelFault) as problem:
            if len(batch) > 1:  # one of them: the others are not to pay for it
                for job in batch:
                    if not job.answer.done():
                        await self._answer([job], start)
                return None
            if isinstance(problem, ModelFault):
                return _tell(batch[0], Refused(500, "the model failed at this request"))
            return _tell(batch[0], Refused(422, str(problem)))
        finally:
            self._asked = []
        self._free_since = time.monotonic()
        self._waiting_time.took([job.work for job in batch], self._free_since - began)
        return None

    def _count(self, group: Group) -> int:
        return sum(job.work.group == group for job in self._queue)

    def _drop(self) -> bool:
        """Leave out who has gone or is too late; return whether any are left."""
        now = time.monotonic()
        kept = deque[QueuedWork]()
        for job in self._queue:
            if job.answer.done():
                continue
            if now > job.deadline:
                _tell(job, Refused(504, "the deadline has passed before the model was free"))
                continue
            kept.append(job)
        self._queue = kept
        return bool(kept)


def _tell_all(batch: list[QueuedWork], answers: dict[int, Done]) -> None:
    for number, answer in answers.items():
        if not batch[number].answer.done():
            batch[number].answer.set_result(answer)


def _tell(job: QueuedWork, problem: Refused) -> None:
    if not job.answer.done():
        job.answer.set_exception(problem)
