"""Processes of one job: which one this is, and how they end together."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

T = TypeVar("T")
GRACE = 20  # seconds from a SIGTERM, which may have gone to all processes of a job, to the end


def rank_and_world_size() -> tuple[int, int]:
    """Return this process's number and how many there are, from RANK and WORLD_SIZE.

    torchrun or an array job sets both; a RANK that was left behind without the other means nothing.
    ValueError where they are no numbers, or do not fit together.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    rank = os.environ.get("RANK", "0") if "WORLD_SIZE" in os.environ else "0"
    if not (size.isdecimal() and rank.isdecimal() and int(rank) < int(size)):
        raise ValueError(
            f"RANK={rank} and WORLD_SIZE={size} in the environment do not fit together; torchrun "
            f"sets both, with RANK from 0 to WORLD_SIZE - 1; unset them to run one process"
        )
    return int(rank), int(size)


def end_with_parent() -> None:
    """In a spawned process: end it as soon as its parent has ended, however that ended.

    Signals are the parent's to answer, which may have work left for its workers.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE))

    def watch() -> None:
        parent.join()
        os._exit(1)  # whatever the other threads are at

    threading.Thread(target=watch, daemon=True).start()


def map_in_processes(
    function: Callable[..., T], jobs: Iterable[tuple[Any, ...]], num_workers: int, advice: str
) -> Iterator[T]:
    """Give the results of `function(*job)`, in whatever order they are done.

    With one worker in this process, else in spawned ones, which end at once after an error, or
    with their parent. ValueError with the `advice` where memory runs out.
    """
    try:
        if num_workers == 1:
            for job in jobs:
                yield function(*job)
        else:
            yield from _map_in_pool(function, jobs, num_workers)
    except MemoryError as error:
        reason = f" ({error})" if str(error) else ""
        raise ValueError(f"memory ran out{reason}; {advice}") from None
    except BrokenProcessPool:
        raise ValueError(
            f"one of the {num_workers} worker processes was killed, as the system does where "
            f"memory runs out; {advice}"
        ) from None


def _map_in_pool(
    function: Callable[..., T], jobs: Iterable[tuple[Any, ...]], num_workers: int
) -> Iterator[T]:
    # spawn: a fork of a process with threads (torch has them) can hang
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(num_workers, context, end_with_parent) as pool:
        try:
            pending = {pool.submit(function, *job) for job in jobs}
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BaseException:
            for worker in set(multiprocessing.active_children()) - others:
                worker.kill()  # what they write is whole or not there
            pool.shutdown(wait=True, cancel_futures=True)
            raise
