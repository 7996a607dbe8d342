"""Batches: who shares one, who is dropped before the model is asked, who is told to come back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("prometheus_client", reason="requirements-serve.txt is not installed")
from served import OwnWorker, picture, tiny_image_model, tiny_measured

from models.tokenizers.iwm import Iwm
from pipeline.serve import micro_batches
from pipeline.serve.jobs import Work
from pipeline.serve.micro_batches import MicroBatches
from pipeline.serve.model_worker import ModelWorker
from pipeline.serve.refused import Refused
from pipeline.serve.service_config import ServiceConfig

FRAME = Work("encode", np.ascontiguousarray(picture(height=32).transpose(2, 0, 1)))


def step(steps: int = 1) -> Work:
    return Work("predict", np.zeros(24, np.float32), np.zeros((steps, 16), np.float32))


class Queue:
    """Batches, and a worker that answers when it is let."""

    def __init__(self, **settings: Any) -> None:
        self.worker = OwnWorker(tiny_image_model())
        self.ended = 0
        self.batches = MicroBatches(
            self.worker,
            ServiceConfig(**settings),
            when_ended=self._count,  # type: ignore[arg-type]
        )

    def _count(self) -> None:
        self.ended += 1

    def submit(self, work: Work, seconds: float = 10.0) -> asyncio.Future[Any]:
        return self.batches.submit(work, seconds).answer

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.worker.batches]


def run(job: Callable[[Queue], Awaitable[None]], **settings: Any) -> Queue:
    async def main() -> Queue:
        queue = Queue(**settings)
        await queue.worker.start()
        running = asyncio.create_task(queue.batches.run())
        await job(queue)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        return queue

    return asyncio.run(main())


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0.003)


async def one_and_then(queue: Queue, *works: Work) -> list[Any]:
    """Ask for a frame, and for these while the model has it; the answers to these."""
    queue.worker.gate.clear()
    first = queue.submit(FRAME)
    await settle()
    rest = [queue.submit(work) for work in works]
    queue.worker.gate.set()
    _, *done = await asyncio.gather(first, *rest)
    return done


def test_what_waits_together_is_answered_together_and_in_groups():
    async def job(queue: Queue) -> None:
        done = await one_and_then(queue, FRAME, step(), FRAME, step(2), step(), FRAME)
        assert done[3].pooled.shape == (2, 24)

    assert run(job).sizes == [1, 3, 3]


def test_a_batch_is_no_larger_than_allowed_and_keeps_the_order():
    async def job(queue: Queue) -> None:
        queue.worker.gate.clear()
        answers = [queue.submit(FRAME) for _ in range(7)]
        done: list[int] = []
        for number, answer in enumerate(answers):
            answer.add_done_callback(lambda _, number=number: done.append(number))
        queue.worker.gate.set()
        await asyncio.gather(*answers)
        await settle()
        assert done == sorted(done)

    assert run(job, max_batch=3, batch_window_ms=0).sizes == [3, 3, 1]


def test_an_answer_does_not_depend_on_what_shares_its_batch():
    model = tiny_image_model()
    worker = ModelWorker(model, tiny_measured(model))
    frames = [
        Work("encode", np.ascontiguousarray(picture(i, 32).transpose(2, 0, 1)), patches=i % 2 == 0)
        for i in range(5)
    ]
    together = worker.answer(frames)
    for work, done in zip(frames, together, strict=True):
        (alone,) = worker.answer([work])
        assert np.allclose(done.pooled, alone.pooled, atol=1e-5)
        assert (done.patches is None) == (not work.patches)


@pytest.mark.parametrize("measured", [False, True])
def test_rollouts_of_several_lengths_in_one_batch_are_those_alone(measured):
    model, draw = tiny_image_model(), np.random.default_rng(0)
    worker = ModelWorker(model, tiny_measured(model) if measured else None)
    batch = [
        Work(
            "predict",
            draw.standard_normal((16, 24), np.float32),
            draw.uniform(-0.4, 0.4, (steps, 16)).astype(np.float32),
            patches=steps != 2,
        )
        for steps in (2, 5, 1, 4, 2, 1, 5, 3, 1)
    ]
    together = worker.answer(batch)
    for work, done in zip(batch, together, strict=True):
        (alone,) = worker.answer([work])
        assert len(done.pooled) == work.units
        assert np.allclose(done.pooled, alone.pooled, atol=1e-5)
        assert (done.patches is None) == (alone.patches is None) == (not work.patches)
        if done.patches is not None and alone.patches is not None:
            assert np.allclose(done.patches, alone.patches, atol=1e-5)
        assert (done.moved is not None) == (alone.moved is not None) == measured
        if done.moved is not None and alone.moved is not None:
            assert np.allclose(done.moved, alone.moved, atol=1e-5)
    assert not np.allclose(together[0].pooled[0], together[2].pooled[0], atol=1e-3)


def test_the_model_steps_those_alone_who_have_steps_left(monkeypatch):
    model, rows = tiny_image_model(), []
    assert isinstance(model.tokenizer, Iwm)
    predict = model.tokenizer.predict

    def counted(latents: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        rows.append(len(latents))
        return predict(latents, action)

    monkeypatch.setattr(model.tokenizer, "predict", counted)
    batch = [step(steps) for steps in (1, 6, 1, 3, 1)]
    parts = list(ModelWorker(model, None).answers(batch))
    assert [sorted(part) for part in parts] == [[0, 2, 4], [3], [1]]  # each once it is ready
    assert rows == [6, 2, 2, 1, 1, 1]


def test_a_short_rollout_does_not_wait_for_a_long_one():
    async def job(queue: Queue) -> None:
        queue.worker.gate.clear()
        first = queue.submit(FRAME)
        await settle()
        ended: list[int] = []
        answers = []
        for steps in (60, 1):
            answers.append(queue.submit(step(steps)))
            answers[-1].add_done_callback(lambda _, steps=steps: ended.append(steps))
        queue.worker.gate.set()
        await asyncio.gather(first, *answers)
        assert ended == [1, 60]

    assert run(job).sizes == [1, 2]


def test_who_has_gone_or_is_late_is_dropped_before_the_model_is_asked():
    async def job(queue: Queue) -> None:
        queue.worker.gate.clear()
        first = queue.submit(FRAME)
        await settle()
        gone, late, waits = queue.submit(FRAME), queue.submit(FRAME, 0.0), queue.submit(FRAME)
        gone.cancel()
        queue.worker.gate.set()
        await asyncio.gather(first, waits)
        with pytest.raises(Refused) as refused:
            await late
        assert refused.value.status == 504

    assert run(job).sizes == [1, 1]


def test_a_full_queue_says_when_to_come_back():
    async def job(queue: Queue) -> None:
        queue.worker.gate.clear()
        queue.submit(FRAME)
        await settle()
        waiting = [queue.submit(FRAME) for _ in range(2)]
        with pytest.raises(Refused) as refused:
            queue.submit(FRAME)
        assert refused.value.status == 503 and refused.value.retry_after >= 1
        queue.worker.gate.set()
        await asyncio.gather(*waiting)

    run(job, max_queue=2)


def test_who_would_be_answered_too_late_is_told_so_at_once():
    async def job(queue: Queue) -> None:
        queue.worker.gate.clear()
        first = queue.submit(FRAME)
        await asyncio.sleep(0.1)
        queue.worker.gate.set()
        await first  # now it is known that one takes a tenth of a second, and another group is not
        queue.worker.gate.clear()
        waiting = [queue.submit(FRAME)]
        await settle()
        waiting += [queue.submit(FRAME, 10.0) for _ in range(4)]
        with pytest.raises(Refused) as refused:
            queue.submit(FRAME, 0.3)  # of at least 0.3 seconds that they take
        assert refused.value.status == 503 and refused.value.retry_after >= 1
        waiting.append(queue.submit(FRAME, 10.0))  # who has time may wait
        queue.worker.gate.set()
        await asyncio.gather(*waiting)
        await queue.submit(FRAME, 1.0)  # nobody waits any more

    run(job, max_batch=2)


def test_plans_have_fewer_places():
    plan = Work("plan", np.stack([FRAME.input] * 2), steps=1, rollouts=16)

    async def job(queue: Queue) -> None:
        queue.worker.gate.clear()
        queue.submit(FRAME)
        await settle()
        queue.submit(plan)
        with pytest.raises(Refused):
            queue.submit(plan)
        queue.submit(FRAME)

    run(job, max_plans=1)


def test_all_that_wait_are_told_when_the_worker_ends():
    async def job(queue: Queue) -> None:
        queue.worker.gate.clear()
        asked = queue.submit(FRAME)
        await settle()
        waits = queue.submit(step())
        queue.worker.end()
        for answer in (asked, waits):
            with pytest.raises(Refused) as refused:
                await answer
            assert refused.value.status == 503 and refused.value.retry_after
        assert queue.ended == 1

    run(job)


def test_numbers_without_a_finite_answer_are_refused_alone():
    bad = Work("predict", np.full((16, 24), np.float32(3e38)), np.zeros((1, 16), np.float32))
    good = Work("predict", np.zeros((16, 24), np.float32), np.zeros((1, 16), np.float32))

    async def job(queue: Queue) -> None:
        queue.worker.gate.clear()
        first = queue.submit(FRAME)
        await settle()
        answers = [queue.submit(work) for work in (good, bad, good)]
        queue.worker.gate.set()
        await asyncio.gather(first, answers[0], answers[2])
        with pytest.raises(Refused) as refused:
            await answers[1]
        assert refused.value.status == 422 and "no finite answer" in refused.value.detail

    run(job)


def test_a_batch_waits_for_as_many_as_before_and_one_client_does_not_wait():
    async def job(queue: Queue) -> None:
        await one_and_then(queue, FRAME, FRAME)
        answers = [queue.submit(FRAME)]  # two came before, so a second one is waited for
        await asyncio.sleep(0.02)
        assert not answers[0].done()
        answers.append(queue.submit(FRAME))
        await asyncio.gather(*answers)
        await asyncio.wait_for(queue.submit(step()), 5)  # of another group, and not waited for

    assert run(job, batch_window_ms=1000).sizes == [1, 2, 2, 1]


@pytest.mark.parametrize("window", [0, 1])
def test_a_batch_is_waited_for_by_how_long_it_will_take(
    window: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(micro_batches, "WAIT_SHARE", 1000.0)
    monkeypatch.setattr(micro_batches, "LONGEST_WAIT", 10.0)

    async def job(queue: Queue) -> None:
        await one_and_then(queue, FRAME, FRAME)
        answers = [queue.submit(FRAME)]
        await asyncio.sleep(0.05)  # longer than the window, and shorter than 1000 batches
        answers.append(queue.submit(FRAME))
        await asyncio.gather(*answers)

    assert run(job, batch_window_ms=window).sizes == ([1, 2, 2] if window else [1, 2, 1, 1])


def test_no_batch_is_waited_for_as_long_as_a_slow_one_takes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(micro_batches, "WAIT_SHARE", 1e6)

    async def job(queue: Queue) -> None:
        await one_and_then(queue, FRAME, FRAME)
        await asyncio.wait_for(queue.submit(FRAME), 5)  # a second one never comes

    assert run(job).sizes == [1, 2, 1]


def test_who_has_left_takes_no_place_in_the_queue():
    async def job(queue: Queue) -> None:
        queue.worker.gate.clear()
        queue.submit(FRAME)
        await settle()
        for answer in [queue.submit(FRAME) for _ in range(2)]:
            answer.cancel()
        waits = queue.submit(FRAME)
        queue.worker.gate.set()
        await waits

    run(job, max_queue=2)


def test_an_end_of_an_earlier_start_is_not_told_again():
    async def job(queue: Queue) -> None:
        queue.worker.gate.clear()
        asked = queue.submit(FRAME)
        await settle()
        queue.batches.start += 1  # it was noticed elsewhere, and the worker is started again
        waits = queue.submit(step())
        queue.worker.end()
        with pytest.raises(Refused):
            await asked
        await queue.worker.start()
        queue.worker.gate.set()
        await waits
        assert queue.ended == 0

    run(job)


def test_a_prediction_from_a_mean_has_no_percentile():
    model = tiny_image_model()
    worker = ModelWorker(model, tiny_measured(model))
    actions = np.zeros((1, 16), np.float32)
    (mean,) = worker.answer([Work("predict", np.zeros(24, np.float32), actions)])
    (patches,) = worker.answer([Work("predict", np.zeros((16, 24), np.float32), actions)])
    assert mean.moved is None and patches.moved is not None
