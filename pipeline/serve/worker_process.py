"""The model's process, as the service sees it: started, asked, and started again where it ended."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from pipeline.serve.jobs import Done, ModelProblem, Told, Work
from pipeline.serve.latent_report import Measured
from pipeline.serve.run_spec import RunSpec

Ready = tuple[RunSpec, Measured | None, str]
ROOT = Path(__file__).parents[2]
STOP_SECONDS = 5.0
LOOK_SECONDS = 0.2  # between two looks whether it lives


class WorkerEnded(Exception):
    """The process ended while it was asked; what it was asked has no answer."""


class WorkerFailed(Exception):
    """It could not load the model; the message is for whoever started the service."""


class ModelFault(Exception):
    """It failed at what it was asked, by a fault of ours; it has written down why."""


class Worker(Protocol):
    """What answers batches, one at a time."""

    async def start(self) -> Ready:
        """Load the model, also after it has ended; WorkerFailed, WorkerEnded."""
        ...

    async def answer(self, batch: list[Work], told: Told) -> None:
        """Return once all are answered, each as soon as it is; ModelProblem, ModelFault,
        WorkerEnded."""
        ...

    async def ended(self) -> None:
        """Return once it has ended, asked or not."""
        ...

    async def stop(self) -> None:
        """End it, and whatever it is at."""
        ...


class WorkerProcess:
    """A child process, so that a fault in it, or a kill, ends no service and no client's wait."""

    def __init__(self, run: Path, device: str, longest_seconds: float) -> None:
        """longest_seconds: of a batch; a process that takes longer hangs, and is killed."""
        self.run, self.device, self.longest_seconds = run, device, longest_seconds
        self.process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._connection: Connection | None = None
        self._thread = ThreadPoolExecutor(1, "model-worker")  # one question at a time

    async def start(self) -> Ready:
        await asyncio.to_thread(self._end)
        ours, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            words = [str(number), str(self.run.resolve()), self.device]
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.serve.model_worker", *words],
                pass_fds=(number,),
                cwd=ROOT,
            )
        self._socket, self._connection = ours, Connection(os.dup(ours.fileno()))
        said, what = await self._in_thread(self._receive)
        if said != "ready":
            raise WorkerFailed(what)
        return what

    async def answer(self, batch: list[Work], told: Told) -> None:
        loop = asyncio.get_running_loop()

        def tell(answers: dict[int, Done]) -> None:
            loop.call_soon_threadsafe(told, answers)

        watchdog = loop.call_later(self.longest_seconds, self._kill)
        try:
            said, what = await self._in_thread(lambda: self._ask(batch, tell))
        finally:
            watchdog.cancel()
        if said == "refused":
            raise ModelProblem(what)
        if said == "fault":
            raise ModelFault(what)

    async def ended(self) -> None:
        process = self.process
        while process is not None and process.poll() is None:
            await asyncio.sleep(LOOK_SECONDS)

    async def stop(self) -> None:
        await asyncio.to_thread(self._end)
        self._thread.shutdown(wait=False)

    @property
    def pid(self) -> int | None:
        return None if self.process is None else self.process.pid

    async def _in_thread(self, function: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def _ask(self, batch: list[Work], told: Told) -> tuple[str, Any]:
        """Return the message that ends the answer."""
        if self._connection is None:
            raise WorkerEnded
        try:
            self._connection.send(batch)
        except OSError:
            raise WorkerEnded from None
        left = len(batch)
        while True:
            said, what = self._receive()
            if said != "part":
                return said, what
            told(what)
            left -= len(what)
            if not left:
                return said, None

    def _receive(self) -> tuple[str, Any]:
        assert self._connection is not None
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            raise WorkerEnded from None

    def _kill(self) -> None:
        if self.process is not None:
            self.process.kill()

    def _end(self) -> None:
        """Let it answer what it was asked, and end."""
        if self._socket is not None and self._connection is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
        if self.process is not None:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
            self.process.kill()
            self.process.wait()
            self.process = None
        for each in (self._socket, self._connection):
            if each is not None:
                each.close()
        self._socket = self._connection = None
