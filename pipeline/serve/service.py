"""The served run: its process, its queue, and what became of each request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from starlette.types import Receive

from pipeline.serve.jobs import Done, Work
from pipeline.serve.latent_report import Measured, percentile
from pipeline.serve.micro_batches import MicroBatches
from pipeline.serve.refused import Refused, busy
from pipeline.serve.run_spec import Ability, RunSpec
from pipeline.serve.service_config import ServiceConfig
from pipeline.serve.service_metrics import ServiceMetrics
from pipeline.serve.worker_process import Worker, WorkerEnded, WorkerFailed

log = logging.getLogger("dreamstage.serve")
RESTART_SECONDS = (0.0, 1.0, 5.0, 30.0)
"""Before each start that follows a failed one; the last holds for all that come then."""


class Service:
    def __init__(
        self,
        worker: Worker,
        config: ServiceConfig,
        when_failed: Callable[[str], None] = lambda line: None,
    ) -> None:
        """when_failed: is told why the model cannot be loaded, where it never was."""
        self.worker, self.config = worker, config
        self.metrics = ServiceMetrics()
        self.spec: RunSpec | None = None
        """Of the run, once it was loaded."""
        self.measured: Measured | None = None
        self.is_ready = False
        self.answered: Counter[str] = Counter()
        self._when_failed = when_failed
        self._began = time.monotonic()
        self._ended = asyncio.Event()
        self.batches = MicroBatches(worker, config, self._lost, self.metrics.batch.observe)

    @property
    def uptime_seconds(self) -> float:
        return time.monotonic() - self._began

    async def run(self) -> None:
        """Keep the model loaded, and answer, until it is cancelled."""
        tasks = [asyncio.create_task(self.batches.run()), asyncio.create_task(self._keep_loaded())]
        try:
            await asyncio.gather(*tasks)
        finally:
            self.is_ready = False
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            self.batches.refuse_all(busy("the service is shut down"))
            await self.worker.stop()

    def require(self, ability: Ability) -> RunSpec:
        """Return the spec; Refused where the model is not loaded, or cannot do this."""
        if not self.is_ready or self.spec is None:
            raise busy("the model is being loaded", 2)
        if ability in self.spec.cannot:
            raise Refused(404, self.spec.cannot[ability])
        return self.spec

    async def ask(self, work: Work, receive: Receive) -> Done:
        """Wait for the model's answer, as long as the client waits, and no longer than the
        deadline; Refused."""
        is_plan = work.kind == "plan"
        seconds = self.config.plan_seconds if is_plan else self.config.deadline_seconds
        self.require(work.kind)  # it may have ended while an image was decoded
        job = self.batches.submit(work, seconds)
        self.metrics.queue.set(self.batches.depth)
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait(
                (job.answer, gone), timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if job.answer.done():
                return job.answer.result()
            if gone.done():
                self.metrics.left.inc()
                raise Refused(499, "the client has left")
            raise Refused(504, f"no answer within {seconds:g} s")
        finally:
            gone.cancel()
            job.answer.cancel()
            self.metrics.queue.set(self.batches.depth)

    def uncertainty(self, done: Done) -> list[float | None]:
        """Percentiles of a prediction's steps."""
        if self.measured is None or done.moved is None:
            return [None] * len(done.pooled)
        quantiles = self.measured.uncertainty
        return [percentile(d, quantiles, k) for k, d in enumerate(done.moved.tolist(), 1)]

    def mrr(self, from_patches: bool) -> float | None:
        """As it was measured, of predictions from patches, or from z_cls alone."""
        if self.measured is None:
            return None
        has_all = from_patches or (self.spec is not None and self.spec.pooling == "flat")
        return self.measured.mrr if has_all else self.measured.mrr_pooled

    def _lost(self) -> None:
        if not self.is_ready:  # it is known
            return
        log.error("the model's process has ended; it is started again")
        self.is_ready = False
        self.metrics.ready.set(0)
        self._ended.set()

    async def _keep_loaded(self) -> None:
        failed = 0
        while True:
            self.batches.start += 1
            self._ended.clear()
            await asyncio.sleep(RESTART_SECONDS[min(failed, len(RESTART_SECONDS) - 1)])
            self.metrics.starts.inc()
            try:
                spec, self.measured, line = await self.worker.start()
            except (WorkerFailed, WorkerEnded) as problem:
                failed += 1
                why = str(problem) or "the model's process ended while it was loading"
                log.error("the model cannot be loaded: %s", why)
                if self.spec is None:
                    return self._when_failed(why)
                continue
            failed = 0
            self.spec, self.is_ready = spec, True
            self.metrics.set_model(spec)
            self.metrics.ready.set(1)
            log.info("ready: %s (%s) on %s", spec.run, spec.model_variant, spec.device)
            log.info("%s", line)
            watch = asyncio.create_task(self._watch())
            await self._ended.wait()
            watch.cancel()

    async def _watch(self) -> None:
        """Notice a process that ends while nobody asks it anything."""
        await self.worker.ended()
        if self.is_ready:
            self.batches.refuse_all(busy("the model's process has ended; ask again", 2))
            self._lost()


async def _disconnected(receive: Receive) -> None:
    """Return when the client has left; a request's body has been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass
