"""Ask serve.py as one client, as many at once, and faster than it can answer; kill its model.

Reads   a run, in a service that is started for it.
Writes  nothing; prints a line of figures for each part.
Try     python -m bench.serve_load --run checkpoints/pusht-goals
        python -m bench.serve_load --run runs/images --parts overload --seconds 600

Client and service share the machine.  A prediction starts from what /encode gave, patches included
where a latent has several; a rollout has five steps.
"""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):  # a script, or a worker process of one
    from pipeline.startup import start

    start(__name__)

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from bench.http_connections import HttpConnections
from data.ranges import CheckedConfig, NonEmpty, Range
from pipeline.cli import run_cli
from pipeline.client.async_client import AsyncLatentClient
from pipeline.client.calls import Retries, encode
from pipeline.client.errors import ServiceError

ROOT = Path(__file__).parents[1]
START_SECONDS = 300.0
ROLLOUT = 5  # steps
MOST_OPEN = 500  # requests that wait for an answer; the service takes 512 connections
LOOKS = 100  # at the memory, in equal times
IMAGE_SIDE = 64  # pixels of the image that is sent
Part = Literal["latency", "throughput", "overload", "kill"]
Ask = Callable[[], Awaitable[Any]]


@dataclass(frozen=True)
class Config(CheckedConfig):
    run: Path = Path("checkpoints/pusht-goals")
    """Folder of the run that is served."""
    parts: Annotated[tuple[Part, ...], NonEmpty()] = ("latency", "throughput", "overload", "kill")
    requests: Annotated[int, Range(10, 10**6)] = 200
    """Requests of each kind, one after the other, and again of all clients together."""
    clients: Annotated[int, Range(1, 512)] = 16
    """Clients at a time."""
    seconds: Annotated[float, Range(1, 36_000)] = 60.0
    """How long it is asked twice as often as it can answer."""
    threads: Annotated[int, Range(0, 1024)] = 0
    """Threads of the model; 0 leaves it to PyTorch."""


async def measure(config: Config, url: str, pid: int) -> None:
    async with AsyncLatentClient(url, timeout=120, retries=Retries(attempts=1)) as client:
        await until_ready(client)
        asks = await questions(client)
        for ask in asks.values():
            for _ in range(10):
                await ask()
        if "latency" in config.parts:
            for name, ask in asks.items():
                before = cpu_seconds(pid)
                taken = await one_by_one(ask, config.requests)
                print_latency(name, taken, (cpu_seconds(pid) - before) / len(taken))
        if "throughput" in config.parts:
            for name, ask in asks.items():
                await throughput(name, ask, config)
        if "overload" in config.parts:
            await overload(url, config, pid)
        if "kill" in config.parts:
            await kill(client, asks["encode"], pid)


async def questions(client: AsyncLatentClient) -> dict[str, Ask]:
    image = pixels()
    start = await client.encode(image, patches=True)
    spec = (await client.spec()).spec
    size, low = spec["actions"]["size"], spec["actions"]["low"] or [0.0]
    action = np.resize(np.asarray(low, float), size)
    asks: dict[str, Ask] = {"encode": lambda: client.encode(image)}
    if "predict" not in spec["cannot"]:
        asks["predict"] = lambda: client.predict(start, action)
        asks[f"rollout({ROLLOUT})"] = lambda: client.rollout(start, np.tile(action, (ROLLOUT, 1)))
    return asks


def pixels() -> np.ndarray:
    shape = (IMAGE_SIDE, IMAGE_SIDE, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


async def one_by_one(ask: Ask, count: int) -> np.ndarray:
    """Seconds of each."""
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        await ask()
        taken.append(time.perf_counter() - began)
    return np.array(taken)


async def throughput(name: str, ask: Ask, config: Config) -> None:
    """One client, and many, in turn: three times each."""
    each = max(1, config.requests // config.clients)
    rates: dict[int, list[float]] = {1: [], config.clients: []}
    for _ in range(3):
        for clients, found in rates.items():
            began = time.perf_counter()
            count = each if clients > 1 else each * config.clients // 3 + 1
            jobs = [one_by_one(ask, count) for _ in range(clients)]
            counts = [len(taken) for taken in await asyncio.gather(*jobs)]
            found.append(sum(counts) / (time.perf_counter() - began))
    one, many = (np.array(found) for found in rates.values())
    gain = many / one
    print(
        f"{name}: {np.median(one):.1f} requests/s of one client, {np.median(many):.1f} of "
        f"{config.clients}: {np.median(gain):.2f}x [{gain.min():.2f}, {gain.max():.2f}], three "
        f"rounds",
        flush=True,
    )


async def overload(url: str, config: Config, pid: int) -> None:
    """Ask at twice the rate of many clients, whether or not it answers."""
    call = encode(pixels(), patches=False)
    assert call.content is not None
    async with HttpConnections(url, call.path, call.content) as connections:
        began, each = time.perf_counter(), config.requests // config.clients + 1
        jobs = [one_by_one(connections.ask, each) for _ in range(config.clients)]
        await asyncio.gather(*jobs)
        rate = 2 * config.clients * each / (time.perf_counter() - began)
        await ask_at(rate, connections, config, pid)


async def ask_at(rate: float, connections: HttpConnections, config: Config, pid: int) -> None:
    """rate: requests a second."""
    seen: Counter[str] = Counter()
    served: list[float] = []  # seconds of each, as they were answered
    open_jobs: set[asyncio.Task[None]] = set()

    async def ask_once() -> None:
        at = time.perf_counter()
        try:
            status = await connections.ask()
        except (OSError, EOFError) as problem:
            seen[type(problem).__name__] += 1
            return
        seen[str(status)] += 1
        if status == 200:
            served.append(time.perf_counter() - at)

    begin = time.perf_counter()
    number, memory = 0, [memory_mb(pid)]
    while (now := time.perf_counter() - begin) < config.seconds:
        while number < now * rate:
            number += 1
            if len(open_jobs) >= MOST_OPEN:
                seen["not sent"] += 1
                continue
            task = asyncio.create_task(ask_once())
            open_jobs.add(task)
            task.add_done_callback(open_jobs.discard)
        if now > config.seconds * len(memory) / LOOKS:
            memory.append(memory_mb(pid))
        await asyncio.sleep(0.002)
    await asyncio.gather(*open_jobs)
    warm, last = memory[len(memory) // 10], memory[-1]
    print(
        f"overload: {rate:.0f} requests/s for {config.seconds:g} s: {dict(seen)}; memory "
        f"{memory[0]:.0f} MB, {warm:.0f} after a tenth of the time, {last:.0f} at the end "
        f"({100 * (last / warm - 1):+.1f}%), at most {max(memory):.0f}",
        flush=True,
    )
    for name, part in (("all", served), ("last tenth", served[-len(served) // 10 :])):
        if not part:
            print("served: none")
            return
        p50, p95, p99 = 1000 * np.percentile(part, [50, 95, 99])
        print(f"served ({name}): p50 {p50:.0f} ms, p95 {p95:.0f}, p99 {p99:.0f}, n {len(part)}")


async def kill(client: AsyncLatentClient, ask: Ask, pid: int) -> None:
    victim = next(p for p in processes(pid) if p != pid)
    os.kill(victim, signal.SIGKILL)
    began, told = time.perf_counter(), Counter[str]()
    while True:
        try:
            await ask()
            if told:
                break
        except ServiceError as problem:
            told[str(problem.status or type(problem).__name__)] += 1
        await asyncio.sleep(0.02)
    seconds = time.perf_counter() - began
    print(f"kill -9 of the model: {dict(told)}, then answers again after {seconds:.1f} s")


def print_latency(name: str, taken: np.ndarray, cpu: float) -> None:
    """cpu: seconds of a request that the service's processes computed, whatever else ran."""
    p50, p95 = 1000 * np.percentile(taken, [50, 95])
    print(
        f"{name}: p50 {p50:.1f} ms, p95 {p95:.1f} ms, n {len(taken)}; {1000 * cpu:.1f} ms of CPU "
        f"time a request",
        flush=True,
    )


async def until_ready(client: AsyncLatentClient) -> None:
    began = time.perf_counter()
    while True:
        try:
            if (await client.health()).model_loaded:
                return print(f"ready after {time.perf_counter() - began:.1f} s")
        except ServiceError:
            pass
        if time.perf_counter() - began > START_SECONDS:
            raise ValueError(f"the service is not ready after {START_SECONDS:g} s")
        await asyncio.sleep(0.1)


def processes(pid: int) -> list[int]:
    """A process and its children (Linux)."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its children."""
    ticks = 0
    for process in processes(pid):
        values = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(values[11]) + int(values[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int) -> float:
    found = 0
    for process in processes(pid):
        status = Path(f"/proc/{process}/status").read_text()
        found += int(re.findall(r"VmRSS:\s+(\d+)", status)[0])
    return found / 1024


@contextmanager
def service(config: Config) -> Iterator[tuple[str, int]]:
    command = [sys.executable, "serve.py", "--run", str(config.run.resolve())]
    threads = {"OMP_NUM_THREADS": str(config.threads)} if config.threads else {}
    process = subprocess.Popen(
        [*command, "--server.port", "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        env=os.environ | threads,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        if found is None:
            raise ValueError(f"serve.py --run {config.run} does not start; its message is above")
        yield found[0].rstrip("/"), process.pid
    finally:
        process.terminate()
        process.wait()


def main(config: Config) -> None:
    with service(config) as (url, pid):
        asyncio.run(measure(config, url, pid))


if __name__ == "__main__":
    run_cli(main, Config)
