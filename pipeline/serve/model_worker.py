"""The process that holds the model: it reads batches from its parent, and answers them.

It ends with its parent.  Nothing but arrays and plain values passes between the two.

    python -m pipeline.serve.model_worker FD RUN DEVICE
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.device import pick_device, set_device
from pipeline.serve.jobs import Done, ModelProblem, Work
from pipeline.serve.latent_model import ImageModel, LatentModel, load_latent_model
from pipeline.serve.latent_report import Measured, read_measured
from pipeline.serve.row_threads import share_cores
from pipeline.serve.service_config import BUCKETS, bucket_of

WARM_STEPS = (1, 5)


class ModelWorker:
    """Answers batches of one group; rows that fill up a bucket are dropped from the answer."""

    def __init__(self, model: LatentModel, measured: Measured | None) -> None:
        self.model, self.spec, self.measured = model, model.spec, measured
        self.device = torch.device(self.spec.device)
        self._noise = model.noise(measured.noise_std if measured is not None else 0.0)

    def answer(self, batch: list[Work]) -> list[Done]:
        """All answers at once; ModelProblem."""
        found = {number: done for part in self.answers(batch) for number, done in part.items()}
        return [found[number] for number in range(len(batch))]

    @torch.inference_mode()
    def answers(self, batch: list[Work]) -> Iterator[dict[int, Done]]:
        """Answers by their numbers in the batch, the shortest rollouts first; ModelProblem where
        the model has no finite answer."""
        kind, rows = batch[0].kind, len(batch)
        if kind == "plan":
            yield {number: self._plan(work) for number, work in enumerate(batch)}
            return
        # the longest first: who still has steps left is at the beginning
        order = sorted(range(rows), key=lambda number: -batch[number].units)
        asked = [batch[number] for number in order]
        filled = [*asked, *[asked[-1]] * (bucket_of(rows) - rows)]
        given = torch.from_numpy(np.stack([work.input for work in filled])).to(self.device)
        from_mean = given.ndim == 2 and self.spec.pooling == "mean"
        if kind != "encode" and given.ndim == 2:
            given = self.model.unpool(given)
        if kind == "predict":
            # percentiles were measured from all patches, and say nothing of those from a mean
            with_spread = self.measured is not None and self.measured.uncertainty and not from_mean
            for done in self._predict(asked, given, bool(with_spread)):
                yield {order[row]: answer for row, answer in done.items()}
            return
        if kind == "encode":
            done = self._encoded(asked, self.model.encode(given)[:rows])
        else:
            done = [Done(frame) for frame in self.model.decode(given)[:rows].cpu().numpy()]
        yield dict(zip(order, done, strict=True))

    def warm_up(self) -> None:
        """Ask once for each size of a batch, so that no client waits for a first time."""
        spec = self.spec
        frame = np.zeros((3, *spec.image_size), np.uint8)
        for size in BUCKETS:
            done = self.answer([Work("encode", frame, patches=True)] * size)
            start = done[0].patches
            assert start is not None
            if "predict" in spec.cannot:
                continue
            action = np.zeros(spec.actions.size, np.float32)
            if spec.actions.kind == "continuous":
                action = np.array(spec.actions.low, np.float32)
            for steps in WARM_STEPS if size in (1, BUCKETS[-1]) else WARM_STEPS[:1]:
                actions = np.tile(action, (steps, 1))
                self.answer([Work("predict", start, actions)] * size)
            if size == 1 and "decode" not in spec.cannot:
                self.answer([Work("decode", start)])

    def _predict(
        self, asked: list[Work], latents: Tensor, with_spread: bool
    ) -> Iterator[dict[int, Done]]:
        """Who has no step left leaves the batch, as far as a smaller bucket holds the others."""
        lengths = [work.units for work in asked]
        actions = np.zeros((len(latents), lengths[0], self.spec.actions.size), np.float32)
        for row, work in zip(actions, asked, strict=False):
            row[: work.units] = work.actions
        times = 1
        if with_spread:  # both in one batch, which is cheaper than two
            times, latents = 2, torch.stack([latents, latents + self._noise], 1).flatten(0, 1)
        left = [sum(length > t for length in lengths) for t in range(lengths[0])]
        steps = torch.from_numpy(actions).to(self.device).repeat_interleave(times, 0)
        taken = [steps[: times * bucket_of(count), t] for t, count in enumerate(left)]
        found = _Steps(self.model, asked)
        for t, after in enumerate(self.model.steps(latents, taken), 1):
            found.add(after[: times * left[t - 1]].unflatten(0, (-1, times)))
            ended = {row: found.done(row) for row, length in enumerate(lengths) if length == t}
            if ended:
                yield ended

    def _encoded(self, asked: list[Work], latents: Tensor) -> list[Done]:
        pooled = _finite(self.model.pool(latents))
        patches = latents.cpu().numpy() if any(work.patches for work in asked) else None
        return [
            Done(row, patches[i] if patches is not None and work.patches else None)
            for i, (row, work) in enumerate(zip(pooled, asked, strict=True))
        ]

    def _plan(self, work: Work) -> Done:
        frame, goal = torch.from_numpy(work.input).to(self.device)
        plan = self.model.plan(frame, goal, work.steps, work.rollouts, work.seed)
        return Done(plan.actions.numpy(), cost=plan.cost, start_cost=plan.start_cost)


class _Steps:
    """What was predicted so far, of rows that become fewer."""

    def __init__(self, model: LatentModel, asked: list[Work]) -> None:
        self._model, self._asked = model, asked
        self._pooled: list[np.ndarray] = []
        self._patches: list[np.ndarray] = []
        self._moved: list[np.ndarray] = []

    def add(self, latents: Tensor) -> None:
        """(b, times, P, D): predictions, and where `times` is 2 those from a moved start."""
        pooled = self._model.pool(latents)
        if latents.shape[1] == 2:
            self._moved.append((pooled[:, 0] - pooled[:, 1]).norm(dim=-1).cpu().numpy())
        self._pooled.append(_finite(pooled[:, 0]))
        if any(work.patches for work in self._asked[: len(latents)]):
            self._patches.append(latents[:, 0].cpu().numpy())

    def done(self, row: int) -> Done:
        work = self._asked[row]

        def of_row(steps: list[np.ndarray]) -> np.ndarray:
            return np.stack([step[row] for step in steps[: work.units]])

        return Done(
            of_row(self._pooled),
            of_row(self._patches) if work.patches else None,
            of_row(self._moved) if self._moved else None,
        )


def _finite(pooled: Tensor) -> np.ndarray:
    """A number that is not finite makes the mean over patches so, too."""
    found = pooled.cpu().numpy()
    if not np.isfinite(found).all():
        raise ModelProblem("the model has no finite answer to these numbers")
    return found


def main(connection: Connection, run: Path, device: str) -> None:
    """Send the spec and what was measured once all is warm, then answer until the parent ends.

    Messages to the parent are pairs: "ready", "failed", "part" (of a batch's answers), "refused" or
    "fault", and what goes with it.
    """
    try:
        set_device(device, "auto")  # type: ignore[arg-type]
        model = load_latent_model(run, pick_device())
        if isinstance(model, ImageModel) and model.spec.device == "cpu":
            model.threads = share_cores(model.spec.num_patches * model.spec.dim)
        measured, line = read_measured(run, model.spec.model_id)
        worker = ModelWorker(model, measured)
        worker.warm_up()
    except (ValueError, OSError) as problem:
        connection.send(("failed", str(problem)))
        return
    connection.send(("ready", (model.spec, measured, line)))
    while True:
        try:
            batch = connection.recv()
        except EOFError:
            return
        try:
            for part in worker.answers(batch):
                connection.send(("part", part))
        except ModelProblem as problem:
            connection.send(("refused", str(problem)))
        except Exception as problem:  # the others are not to wait until all is loaded again
            traceback.print_exc()
            connection.send(("fault", type(problem).__name__))


if __name__ == "__main__":
    # Ctrl-C and a stop of the service reach both; the parent lets this one finish what it has
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        main(Connection(int(sys.argv[1])), Path(sys.argv[2]), sys.argv[3])
    except (BrokenPipeError, ConnectionResetError):
        os._exit(0)  # the parent has ended
