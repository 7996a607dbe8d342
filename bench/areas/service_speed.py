"""What the service gains by answering requests that come together in one batch: its model against
the same model asked one by one, in one process, without HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from bench.areas.play_speed import DEFAULT_RUN
from bench.races.pairs import Incorrect, Options, Row, compare, race
from pipeline.serve.jobs import Done, Work
from pipeline.serve.latent_model import load_latent_model
from pipeline.serve.model_worker import ModelWorker

AREA = "service"
PEER = "one by one"
TARGET, STRETCH = 3.0, 6.0
REQUESTS, STEPS = 16, 5
TOLERANCE = 0.02  # of latents, which span 2: bf16 rounds otherwise in another batch


def rows(options: Options) -> Iterator[Row]:
    """Race 16 requests of each kind in --run or the run in checkpoints/."""
    run = options.run or DEFAULT_RUN
    worker = ModelWorker(load_latent_model(run, options.device), None)
    for kind, batch in requests(worker).items():
        runners: dict[str, Callable[[], list[Done]]] = {
            "ours": partial(worker.answer, batch),
            PEER: partial(one_by_one, worker, batch),
        }
        check(runners["ours"](), runners[PEER]())
        seconds = race(runners, options.rounds, device=options.device, repeats=3)
        yield from compare(
            AREA, f"{REQUESTS} requests, {kind}, {run.name}", seconds, {PEER: (TARGET, STRETCH)},
            unit="requests/s", amount=REQUESTS,
        )  # fmt: skip


def requests(worker: ModelWorker) -> dict[str, list[Work]]:
    """Requests of each kind that the run can answer."""
    spec, generator = worker.spec, np.random.default_rng(0)
    frames = generator.integers(0, 256, (REQUESTS, 3, *spec.image_size), dtype=np.uint8)
    found = {"encode": [Work("encode", frame, patches=True) for frame in frames]}
    if "predict" in spec.cannot:
        return found
    starts = [done.patches for done in worker.answer(found["encode"])]
    actions = np.zeros((REQUESTS, STEPS, spec.actions.size), np.float32)
    if spec.actions.kind == "continuous":
        share = generator.random(actions.shape, np.float32)
        actions = spec.actions.low + share * np.subtract(spec.actions.high, spec.actions.low)
    for steps in (1, STEPS):
        found[f"predict {steps}"] = [
            Work("predict", start, taken[:steps].astype(np.float32))
            for start, taken in zip(starts, actions, strict=True)
            if start is not None
        ]
    return found


def one_by_one(worker: ModelWorker, batch: list[Work]) -> list[Done]:
    return [worker.answer([work])[0] for work in batch]


def check(ours: list[Done], theirs: list[Done]) -> None:
    """Raise Incorrect unless every request has the same answer in a batch as alone, and no two the
    same."""
    for number, (done, alone) in enumerate(zip(ours, theirs, strict=True)):
        error = float(np.abs(done.pooled - alone.pooled).max())
        if not error <= TOLERANCE:
            raise Incorrect(f"answer {number} of a batch is {error:g} off the one alone")
    if np.array_equal(ours[0].pooled, ours[1].pooled):
        raise Incorrect("two requests have the same answer: nothing would be compared")
