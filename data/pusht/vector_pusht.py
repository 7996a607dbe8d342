"""Many Push-T simulators over processes, stepped together.

Letters: N simulators, K candidates, T steps of a candidate.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from typing import Any

import numpy as np

from data.pusht.simulator import PushT


class SimulatorPool:
    """`count` simulators in `workers` processes; use it in a `with` statement.

    What comes out does not depend on the number of workers.
    """

    def __init__(self, count: int, image_size: int = 64, workers: int = 2) -> None:
        self.count, self.image_size = count, image_size
        self._seen = np.zeros((count, 3, image_size, image_size), np.uint8)
        workers = max(1, min(workers, count))
        self._shares = np.array_split(np.arange(count), workers)
        # spawn: a fork of a process with threads (torch has them) can hang
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Any] = []
        self._processes = []
        for share in self._shares:
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, len(share), image_size), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> SimulatorPool:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            try:
                pipe.send(None)
            except OSError:
                process.terminate()
            process.join()
            pipe.close()
        self._pipes, self._processes = [], []

    def reset(self, indices: np.ndarray, states: np.ndarray, velocities: np.ndarray) -> None:
        """Put simulators `indices` (M,) at states (M, 5) with agent velocities (M, 2)."""
        rows = {int(i): row for row, i in enumerate(indices)}
        asks = []
        for share in self._shares:
            wanted = [(place, rows[int(i)]) for place, i in enumerate(share) if int(i) in rows]
            asks.append(("reset", [(place, states[r], velocities[r]) for place, r in wanted]))
        self._ask(asks)

    def step(
        self, actions: np.ndarray, active: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Step with targets (N, 2) those that are `active` (N,) bool; the others stand still.

        Returns states (N, 5) and coverages (N,).
        """
        active = np.ones(self.count, bool) if active is None else active
        answers = self._ask([("step", (actions[s], active[s])) for s in self._shares])
        states, coverages = zip(*answers, strict=True)
        return np.concatenate(states), np.concatenate(coverages)

    def frames(self, active: np.ndarray | None = None) -> np.ndarray:
        """Look: (N, 3, H, W) uint8; at those that are not `active`, (N,) bool, as they were seen
        last."""
        active = np.ones(self.count, bool) if active is None else active
        drawn = self._ask([("frames", active[share]) for share in self._shares])
        self._seen[active] = np.concatenate(drawn)
        return self._seen.copy()

    def velocities(self) -> np.ndarray:
        """(N, 2) pixels a second, of the agents."""
        return np.concatenate(self._ask([("velocities", None)] * len(self._shares)))

    def rollout(
        self, states: np.ndarray, velocities: np.ndarray, actions: np.ndarray
    ) -> np.ndarray:
        """Carry out candidates (M, K, T, 2) from M starts, (M, 5) and (M, 2).

        Returns the last states, (M, K, 5); the simulators of `step` are left as they are.
        """
        starts, candidates = actions.shape[:2]
        flat = actions.reshape(-1, *actions.shape[2:])
        rows = np.repeat(np.arange(starts), candidates)
        parts = np.array_split(np.arange(len(flat)), len(self._shares))
        asks = [("rollout", (states[rows[p]], velocities[rows[p]], flat[p])) for p in parts]
        return np.concatenate(self._ask(asks)).reshape(starts, candidates, -1)

    def _ask(self, asks: Sequence[tuple[str, Any]]) -> list[Any]:
        for pipe, ask in zip(self._pipes, asks, strict=True):
            pipe.send(ask)
        answers = []
        for pipe in self._pipes:
            try:
                answer = pipe.recv()
            except EOFError:
                raise OSError("a simulator process has ended; run the command again") from None
            if isinstance(answer, Exception):
                raise answer
            answers.append(answer)
        return answers


def _serve(pipe: Any, count: int, image_size: int) -> None:
    """Be a worker: answer until None comes."""
    worlds = [PushT(image_size) for _ in range(count)]
    spare = PushT(image_size)
    try:
        while (ask := pipe.recv()) is not None:
            name, given = ask
            try:
                pipe.send(_ANSWERS[name](worlds, spare, given))
            except ValueError as problem:
                pipe.send(problem)
    except (EOFError, KeyboardInterrupt):
        return


def _reset(worlds: list[PushT], spare: PushT, given: Any) -> None:
    for place, state, velocity in given:
        worlds[place].reset(state, velocity)


def _step(worlds: list[PushT], spare: PushT, given: Any) -> tuple[np.ndarray, np.ndarray]:
    for world, action, active in zip(worlds, *given, strict=True):
        if active:
            world.step(action)
    return np.stack([w.state for w in worlds]), np.array([w.coverage() for w in worlds])


def _frames(worlds: list[PushT], spare: PushT, given: Any) -> np.ndarray:
    drawn = [w.render() for w, active in zip(worlds, given, strict=True) if active]
    size = spare.image_size
    return np.array(drawn, np.uint8).reshape(-1, size, size, 3).transpose(0, 3, 1, 2)


def _velocities(worlds: list[PushT], spare: PushT, given: Any) -> np.ndarray:
    return np.stack([w.velocity for w in worlds])


def _rollout(worlds: list[PushT], spare: PushT, given: Any) -> np.ndarray:
    last = []
    for state, velocity, actions in zip(*given, strict=True):
        spare.reset(state, velocity)
        for action in actions:
            spare.step(action)
        last.append(spare.state)
    return np.array(last).reshape(len(last), 5)


_ANSWERS = {
    "reset": _reset,
    "step": _step,
    "frames": _frames,
    "velocities": _velocities,
    "rollout": _rollout,
}
