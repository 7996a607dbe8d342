"""Many Push-T simulators in one or several processes, stepped together.

Letters: N simulators, K candidates, T steps of a candidate.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from typing import Any

import numpy as np

from data.pusht.simulator import GOAL, PushT


class VectorPushT:
    """`num_envs` simulators in `num_workers` processes; use it in a `with` statement.

    The results do not depend on the number of workers; one is this process.
    """

    def __init__(
        self, num_envs: int, image_size: int = 64, num_workers: int = 2, goal: np.ndarray = GOAL
    ) -> None:
        self.num_envs, self.image_size, self.goal = num_envs, image_size, goal
        self._last_frames = np.zeros((num_envs, 3, image_size, image_size), np.uint8)
        num_workers = max(1, min(num_workers, num_envs))
        self._worker_indices = np.array_split(np.arange(num_envs), num_workers)
        self._pipes: list[Any] = []
        self._processes = []
        if num_workers == 1:  # another process takes seconds to import what is here
            self._pipes.append(_Simulators(num_envs, image_size, goal))
            return
        # spawn: a fork of a process with threads (torch has them) can hang
        context = multiprocessing.get_context("spawn")
        for indices in self._worker_indices:
            parent, child = context.Pipe()
            process = context.Process(
                target=_worker, args=(child, len(indices), image_size, goal), daemon=True
            )
            process.start()
            child.close()
            self._pipes.append(parent)
            self._processes.append(process)

    def __enter__(self) -> VectorPushT:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, whatever they are at: they hold nothing that is kept, and after an
        interruption one may wait for its answer to be read."""
        for process in self._processes:
            process.terminate()
            process.join()
        for pipe in self._pipes:
            pipe.close()
        self._pipes, self._processes = [], []

    def reset(
        self,
        indices: np.ndarray,
        states: np.ndarray,
        velocities: np.ndarray,
        goals: np.ndarray | None = None,
    ) -> None:
        """Reset simulators `indices` (M,) to states (M, 5) with agent velocities (M, 2).

        goals: (M, 3) block poses, by default the one that all were made with.
        """
        goals = np.tile(self.goal, (len(indices), 1)) if goals is None else goals
        rows = {int(i): row for row, i in enumerate(indices)}
        requests = []
        for own_indices in self._worker_indices:
            wanted = [
                (place, rows[int(i)]) for place, i in enumerate(own_indices) if int(i) in rows
            ]
            values = [(place, states[r], velocities[r], goals[r]) for place, r in wanted]
            requests.append(("reset", values))
        self._call_workers(requests)

    def step(
        self, actions: np.ndarray, active: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Step the `active` (N,) bool simulators with targets (N, 2); the others stay as they are.

        Returns states (N, 5) and coverages (N,).
        """
        active = np.ones(self.num_envs, bool) if active is None else active
        results = self._call_workers(
            [("step", (actions[s], active[s])) for s in self._worker_indices]
        )
        states, coverages = zip(*results, strict=True)
        return np.concatenate(states), np.concatenate(coverages)

    def frames(self, active: np.ndarray | None = None) -> np.ndarray:
        """Render (N, 3, H, W) uint8; those that are not `active`, (N,) bool, keep their last
        frame."""
        active = np.ones(self.num_envs, bool) if active is None else active
        frames = self._call_workers([("frames", active[share]) for share in self._worker_indices])
        self._last_frames[active] = np.concatenate(frames)
        return self._last_frames.copy()

    def velocities(self) -> np.ndarray:
        """Return the agents' velocities: (N, 2) pixels per second."""
        return np.concatenate(
            self._call_workers([("velocities", None)] * len(self._worker_indices))
        )

    def rollout(
        self, states: np.ndarray, velocities: np.ndarray, actions: np.ndarray
    ) -> np.ndarray:
        """Execute candidates (M, K, T, 2) from M states (M, 5) and velocities (M, 2).

        Returns the last states, (M, K, 5); the simulators of `step` do not change.
        """
        num_starts, num_candidates = actions.shape[:2]
        flat = actions.reshape(-1, *actions.shape[2:])
        rows = np.repeat(np.arange(num_starts), num_candidates)
        parts = np.array_split(np.arange(len(flat)), len(self._worker_indices))
        requests = [("rollout", (states[rows[p]], velocities[rows[p]], flat[p])) for p in parts]
        return np.concatenate(self._call_workers(requests)).reshape(num_starts, num_candidates, -1)

    def _call_workers(self, requests: Sequence[tuple[str, Any]]) -> list[Any]:
        for pipe, request in zip(self._pipes, requests, strict=True):
            pipe.send(request)
        results = []
        for pipe in self._pipes:
            try:
                result = pipe.recv()
            except EOFError:
                raise OSError("a simulator process has ended; run the command again") from None
            if isinstance(result, Exception):
                raise result
            results.append(result)
        return results


class _Simulators:
    """Simulators that are asked as if they were at the other end of a pipe."""

    def __init__(self, num_envs: int, image_size: int, goal: np.ndarray) -> None:
        self._simulators = [PushT(image_size, goal) for _ in range(num_envs)]
        self._scratch = PushT(image_size, goal)
        self._answer: Any = None

    def send(self, request: tuple[str, Any]) -> None:
        name, payload = request
        try:
            self._answer = _HANDLERS[name](self._simulators, self._scratch, payload)
        except ValueError as problem:
            self._answer = problem

    def recv(self) -> Any:
        return self._answer

    def close(self) -> None:
        self._simulators = []


def _worker(pipe: Any, num_envs: int, image_size: int, goal: np.ndarray) -> None:
    """Answer requests until the pipe is closed."""
    simulators = _Simulators(num_envs, image_size, goal)
    try:
        while True:
            simulators.send(pipe.recv())
            pipe.send(simulators.recv())
    except (EOFError, OSError, KeyboardInterrupt):
        return


def _reset(simulators: list[PushT], scratch: PushT, payload: Any) -> None:
    for slot, state, velocity, goal in payload:
        simulators[slot].reset(state, velocity, goal)


def _step(simulators: list[PushT], scratch: PushT, payload: Any) -> tuple[np.ndarray, np.ndarray]:
    for simulator, action, active in zip(simulators, *payload, strict=True):
        if active:
            simulator.step(action)
    return np.stack([w.state for w in simulators]), np.array([w.coverage() for w in simulators])


def _frames(simulators: list[PushT], scratch: PushT, payload: Any) -> np.ndarray:
    frames = [w.render() for w, active in zip(simulators, payload, strict=True) if active]
    size = scratch.image_size
    return np.array(frames, np.uint8).reshape(-1, size, size, 3).transpose(0, 3, 1, 2)


def _velocities(simulators: list[PushT], scratch: PushT, payload: Any) -> np.ndarray:
    return np.stack([w.velocity for w in simulators])


def _rollout(simulators: list[PushT], scratch: PushT, payload: Any) -> np.ndarray:
    last = []
    for state, velocity, actions in zip(*payload, strict=True):
        scratch.reset(state, velocity)
        for action in actions:
            scratch.step(action)
        last.append(scratch.state)
    return np.array(last).reshape(len(last), 5)


_HANDLERS = {
    "reset": _reset,
    "step": _step,
    "frames": _frames,
    "velocities": _velocities,
    "rollout": _rollout,
}
