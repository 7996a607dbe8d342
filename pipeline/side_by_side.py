"""Pieces of a stage in several processes on a CPU, each with its share of the cores.

Two processes of one thread get more done than one of two: small models are small steps, between
which a second thread waits.  The first process takes pieces from the front and the others from the
back, so that a long piece at the end is not begun last.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, redirect_stderr, redirect_stdout
from typing import Any

import torch

from pipeline.device import pick_device

Work = Callable[[str], object]
"""Do the piece of this name, and keep what comes of it."""
Open = Callable[[Any], AbstractContextManager[Work]]
"""Open what a config is about, in a process that is not the first."""


class Pieces:
    """The places of a list of pieces, each of which one process takes."""

    def __init__(self, context: Any) -> None:
        self._left = context.Array("i", [0, 0])  # the first, and the end

    def fill(self, count: int) -> None:
        self._left[:] = [0, count]

    def take(self, from_back: bool = False) -> int | None:
        """Take a place; None where none is left."""
        with self._left.get_lock():
            first, end = self._left
            if first == end:
                return None
            self._left[:] = [first, end - 1] if from_back else [first + 1, end]
            return end - 1 if from_back else first


class SideBySide:
    """This process and others beside it; use it in a `with` statement."""

    def __init__(self, open_pieces: Open, config: Any, requested: int, most: int) -> None:
        """open_pieces: a function that others can import.  most: processes that find a piece."""
        self._threads = torch.get_num_threads()
        alone = pick_device().type != "cpu" or _distributed()
        self.count = 1 if alone else max(1, min(requested, most, self._threads))
        """Processes; a GPU, and each of several under torchrun, is one process's."""
        # spawn: a fork of a process with threads (torch has them) can hang
        context = multiprocessing.get_context("spawn")
        self._pieces = Pieces(context)
        self._others: list[tuple[Any, Any]] = []  # a process, and a pipe to it
        for _ in range(self.count - 1):
            here, there = context.Pipe()
            threads = self._threads // self.count
            arguments = (there, self._pieces, open_pieces, config, threads)
            process = context.Process(target=_work, args=arguments)
            process.start()
            there.close()
            self._others.append((process, here))

    def __enter__(self) -> SideBySide:
        return self

    def __exit__(self, *error: Any) -> None:
        """End the others, whatever they are at: what they have finished is kept."""
        for process, pipe in self._others:
            if any(error):
                process.terminate()
            pipe.close()
        for process, _ in self._others:
            process.join()

    def share(self, groups: Sequence[Sequence[str]], work: Work) -> Iterator[tuple[str, str]]:
        """Do groups of pieces, each group in one process and in its order: gives the name of each
        piece that is finished, and what it printed elsewhere."""
        pipes = [pipe for _, pipe in self._others]
        self._pieces.fill(len(groups))
        for pipe in pipes:
            pipe.send(groups)
        torch.set_num_threads(self._threads // self.count)
        try:
            while (place := self._pieces.take()) is not None:
                for name in groups[place]:
                    work(name)
                    yield name, ""
                for pipe in list(pipes):
                    while pipe in pipes and pipe.poll():
                        yield from _receive(pipe, pipes)
            while pipes:
                yield from _receive(pipes[0], pipes)
        finally:
            torch.set_num_threads(self._threads)


def _receive(pipe: Any, pipes: list[Any]) -> Iterator[tuple[str, str]]:
    """Give what another process has finished; one that has no piece left leaves `pipes`."""
    try:
        message = pipe.recv()
    except EOFError:
        raise OSError(
            "a process beside this one has ended early; run the command again to go on"
        ) from None
    if isinstance(message, Exception):
        raise message
    if message is None:
        pipes.remove(pipe)
    else:
        yield message


def _work(pipe: Any, pieces: Pieces, open_pieces: Open, config: Any, threads: int) -> None:
    """Do pieces until none is left, or the first process has ended."""
    torch.set_num_threads(threads)
    try:
        with (
            redirect_stdout(io.StringIO()) as printed,
            redirect_stderr(io.StringIO()),  # progress bars, and what the first process says
            open_pieces(config) as work,
        ):
            groups = pipe.recv()
            while (place := pieces.take(from_back=True)) is not None:
                for name in groups[place]:
                    printed.seek(0)
                    printed.truncate()
                    work(name)
                    pipe.send((name, printed.getvalue().strip()))
        pipe.send(None)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):  # the first process has ended, or ends
        return
    except Exception as problem:
        if not isinstance(problem, ValueError | OSError):
            problem.add_note(traceback.format_exc())
        pipe.send(problem)


def _distributed() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1
