"""The process that holds the model: it reads batches from its parent, and answers them.

It ends with its parent.  Nothing but arrays and plain values passes between the two.

    python -m pipeline.serve.model_worker FD RUN DEVICE
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.device import pick_device, set_device
from pipeline.serve.jobs import Done, ModelProblem, Work
from pipeline.serve.latent_model import LatentModel, load_latent_model
from pipeline.serve.latent_report import Measured, read_measured
from pipeline.serve.service_config import BUCKETS, bucket_of

WARM_STEPS = (1, 5)


class ModelWorker:
    """Answers batches of one group; rows that fill up a bucket are dropped from the answer."""

    def __init__(self, model: LatentModel, measured: Measured | None) -> None:
        self.model, self.spec, self.measured = model, model.spec, measured
        self.device = torch.device(self.spec.device)
        self._noise = model.noise(measured.noise_std if measured is not None else 0.0)

    @torch.inference_mode()
    def answer(self, batch: list[Work]) -> list[Done]:
        """ModelProblem where the model has no finite answer."""
        kind = batch[0].kind
        if kind == "plan":
            return [self._plan(work) for work in batch]
        rows = len(batch)
        filled = [*batch, *[batch[-1]] * (bucket_of(rows) - rows)]
        given = torch.from_numpy(np.stack([work.input for work in filled])).to(self.device)
        if kind == "encode":
            return self._latents(batch, self.model.encode(given)[:rows])
        from_mean = given.ndim == 2 and self.spec.pooling == "mean"
        if given.ndim == 2:
            given = self.model.unpool(given)
        if kind == "decode":
            frames = self.model.decode(given)[:rows].cpu().numpy()
            return [Done(frame) for frame in frames]
        actions = np.stack([w.actions for w in filled if w.actions is not None])
        steps = torch.from_numpy(actions).to(self.device)
        # percentiles were measured from all patches, and say nothing of predictions from a mean
        with_spread = self.measured is not None and self.measured.uncertainty and not from_mean
        return self._predict(batch, given, steps, bool(with_spread))

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
        self, batch: list[Work], latents: Tensor, actions: Tensor, with_spread: bool
    ) -> list[Done]:
        rows = len(batch)
        if not with_spread:
            return self._latents(batch, self.model.rollout(latents, actions)[:rows])
        # both in one batch, which is cheaper than two
        starts, twice = torch.cat([latents, latents + self._noise]), torch.cat([actions, actions])
        found, other = (half[:rows] for half in self.model.rollout(starts, twice).chunk(2))
        done = self._latents(batch, found)
        apart = (self.model.pool(found) - self.model.pool(other)).norm(dim=-1).cpu().numpy()
        return [Done(d.pooled, d.patches, row) for d, row in zip(done, apart, strict=True)]

    def _latents(self, batch: list[Work], found: Tensor) -> list[Done]:
        if not torch.isfinite(found).all():
            raise ModelProblem("the model has no finite answer to these numbers")
        pooled = self.model.pool(found).cpu().numpy()
        if not any(work.patches for work in batch):
            return [Done(row) for row in pooled]
        patches = found.cpu().numpy()
        return [
            Done(row, patches[i] if work.patches else None)
            for i, (row, work) in enumerate(zip(pooled, batch, strict=True))
        ]

    def _plan(self, work: Work) -> Done:
        frame, goal = torch.from_numpy(work.input).to(self.device)
        plan = self.model.plan(frame, goal, work.steps, work.rollouts, work.seed)
        return Done(plan.actions.numpy(), cost=plan.cost, start_cost=plan.start_cost)


def main(connection: Connection, run: Path, device: str) -> None:
    """Send the spec and what was measured once all is warm, then answer until the parent ends.

    Messages to the parent are pairs: "ready", "failed", "done" or "refused", and what goes with it.
    """
    try:
        set_device(device, "auto")  # type: ignore[arg-type]
        model = load_latent_model(run, pick_device())
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
            connection.send(("done", worker.answer(batch)))
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
