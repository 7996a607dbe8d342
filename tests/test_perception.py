"""Perception: what a frame leaves behind, what is dropped, and a service that is not there."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import numpy as np
import pytest

pytest.importorskip("prometheus_client", reason="requirements-serve.txt is not installed")
from served import OwnWorker, listening_service, picture, tiny_service

from pipeline.client.answers import Encoded, RolledOut, Spec
from pipeline.client.async_client import AsyncLatentClient
from pipeline.client.calls import Retries
from pipeline.client.errors import Busy, Unreachable
from pipeline.client.perception import Perception, VisionState

FRAME = np.zeros((8, 8, 3), np.uint8)
SPEC = Spec(
    {"latent_spec": "a", "actions": {"kind": "transformation"}, "cannot": {}},
    {"mrr": 0.5, "surprise": {"1": [0.0, 10.0], "3": [0.0, 4.0]}},
)


class FakeClient:
    """Encodes a frame as its mean, twice; predicts that nothing changes, plus the actions."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.problem: Exception | None = None
        self.given = SPEC
        self.rollouts: list[Any] = []

    async def spec(self) -> Spec:
        return self.given

    async def encode(self, image: np.ndarray, patches: bool) -> Encoded:
        await self.gate.wait()
        if self.problem is not None:
            raise self.problem
        z = np.full(2, image.mean(), np.float32)
        return Encoded(z, None, 12.5, "core", self.given.latent_spec)

    async def rollout(self, start: Encoded, actions: Any) -> RolledOut:
        self.rollouts.append(actions)
        moved = np.cumsum([step[0] if step else 0.0 for step in actions])
        return RolledOut(start.z_cls + moved[:, None], None, [], [], 12.5, "a")


def perceive(job: Any, threshold: float = 2.0) -> None:
    async def main() -> None:
        client = FakeClient()
        await job(client, Perception(cast(AsyncLatentClient, client), threshold), VisionState())

    asyncio.run(main())


def test_the_five_fields_and_the_counters():
    async def job(client: FakeClient, seen: Perception, state: VisionState) -> None:
        assert await seen.process_frame(FRAME, state)
        assert state.vision_prediction_surprise is None and state.vision_core_latent_prev is None
        assert state.vision_core_latent is not None and state.vision_core_latent.dtype == np.float32
        assert await seen.process_frame(FRAME + 1, state, "move_forward")
        assert state.vision_prediction_surprise == 0.0  # the action leads there
        assert state.vision_core_latent_prev is not None
        assert state.vision_core_latent_prev.tolist() == [0, 0]
        assert await seen.process_frame(FRAME + 4, state, action_taken="wait")
        assert state.vision_prediction_surprise == pytest.approx(3 * 2**0.5)
        assert seen.surprise_percentile == pytest.approx(30 * 2**0.5)
        assert (state.vision_mrr, state.vision_core_timestamp) == (0.5, 12.5)
        assert (seen.total_frames, seen.total_errors, seen.high_surprise_count) == (3, 0, 1)
        assert seen.high_surprise_rate == 0.5 and seen.error_rate == 0 and not seen.stale

    perceive(job)


def test_frames_are_dropped_rather_than_kept_waiting_and_their_actions_are_kept():
    async def job(client: FakeClient, seen: Perception, state: VisionState) -> None:
        await seen.process_frame(FRAME, state)
        client.gate.clear()
        first = asyncio.create_task(seen.process_frame(FRAME, state, "wait"))
        await asyncio.sleep(0)
        for _ in range(2):
            assert not await seen.process_frame(FRAME, state, "move_forward")
        client.gate.set()
        assert await first
        assert await seen.process_frame(FRAME + 3, state, "move_forward")
        assert client.rollouts[-1] == [[1, 0, 0, 0]] * 3
        assert state.vision_prediction_surprise == 0 and seen.surprise_percentile == 0
        assert seen.dropped_frames == 2 and seen.dropped_rate == 0.4

    perceive(job)


def test_a_failure_is_stale_and_not_a_zero_and_the_next_frame_tries_again():
    async def job(client: FakeClient, seen: Perception, state: VisionState) -> None:
        await seen.process_frame(FRAME, state)
        await seen.process_frame(FRAME + 9, state)
        latent, surprise = state.vision_core_latent, state.vision_prediction_surprise
        for problem in (Unreachable("gone"), Busy("loading", 503)):
            client.problem = problem
            assert not await seen.process_frame(FRAME, state)
            assert seen.stale and str(problem) in seen.last_error
        assert state.vision_core_latent is latent
        assert state.vision_prediction_surprise == surprise and surprise
        client.problem = None
        assert await seen.process_frame(FRAME, state) and not seen.stale
        assert state.vision_prediction_surprise is None  # what was before is not known
        assert seen.total_errors == 2 and seen.error_rate == 0.4

    perceive(job)


def test_another_run_behind_the_same_address_is_noticed():
    async def job(client: FakeClient, seen: Perception, state: VisionState) -> None:
        await seen.process_frame(FRAME, state)
        client.given = Spec(dict(SPEC.spec) | {"latent_spec": "b"}, None)
        assert not await seen.process_frame(FRAME, state) and "another run" in seen.last_error
        assert await seen.process_frame(FRAME, state) and state.vision_mrr is None

    perceive(job)


def test_an_action_that_is_none_of_the_runs_is_refused():
    async def job(client: FakeClient, seen: Perception, state: VisionState) -> None:
        await seen.process_frame(FRAME, state)
        with pytest.raises(ValueError, match="'fly' is no action of this run"):
            await seen.process_frame(FRAME, state, "fly")
        assert seen.stale and "fly" in seen.last_error
        assert await seen.process_frame(FRAME + 2, state, "wait")
        assert not client.rollouts  # two frames lie between, and one action of them is not known
        client.given = replace_kind("continuous")
        await seen.process_frame(FRAME, state)

    perceive(job)


def test_after_a_cancelled_call_nothing_is_predicted_from_the_frame_before():
    async def job(client: FakeClient, seen: Perception, state: VisionState) -> None:
        await seen.process_frame(FRAME, state)
        client.gate.clear()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(seen.process_frame(FRAME, state, "move_forward"), 0.01)
        assert seen.stale and seen.last_error
        client.gate.set()
        client.rollouts.clear()
        assert await seen.process_frame(FRAME + 2, state, "wait")
        assert not client.rollouts and state.vision_prediction_surprise is None

    perceive(job)


def replace_kind(kind: str) -> Spec:
    return Spec(dict(SPEC.spec) | {"actions": {"kind": kind}}, None)


def test_in_a_world_no_action_means_no_surprise():
    async def job(client: FakeClient, seen: Perception, state: VisionState) -> None:
        client.given = replace_kind("continuous")
        for _ in range(2):
            await seen.process_frame(FRAME, state)
        assert state.vision_prediction_surprise is None and not client.rollouts
        await seen.process_frame(FRAME, state, action_taken=[0.5, 0.1])
        assert client.rollouts == [[[0.5, 0.1]]]

    perceive(job)


def test_a_static_scene_surprises_less_than_a_cut_and_works_through_a_restart():
    service = tiny_service()

    async def main(url: str) -> None:
        async with AsyncLatentClient(url, retries=Retries(attempts=1)) as client:
            seen, state = Perception(client), VisionState()
            for _ in range(2):
                assert await seen.process_frame(picture(), state), seen.last_error
            static = state.vision_prediction_surprise
            await seen.process_frame(255 - picture(1) // 4, state)
            cut = state.vision_prediction_surprise
            assert static is not None and cut is not None and static != cut
            worker = cast(OwnWorker, service.worker)
            worker.may_start.clear()
            worker.end()
            while await seen.process_frame(picture(), state):
                await asyncio.sleep(0.005)
            assert seen.stale and "being loaded" in seen.last_error
            worker.may_start.set()
            while not await seen.process_frame(picture(), state):
                await asyncio.sleep(0.005)
            assert not seen.stale and state.vision_prediction_surprise is None

    with listening_service(service) as url:
        asyncio.run(main(url))
