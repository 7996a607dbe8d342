"""A batch in parts: the same numbers, each part with one core, and small batches left whole."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from served import tiny_image_model

from pipeline.serve.latent_model import ImageModel
from pipeline.serve.row_threads import GRAIN, LEAST_ROWS, RowThreads, share_cores


@pytest.mark.parametrize("rows", [1, 2 * LEAST_ROWS - 1, 2 * LEAST_ROWS, 13, 32])
def test_parts_are_the_rows_in_their_order(rows):
    values, added = torch.randn(rows, 3), torch.randn(rows, 1)
    found = RowThreads(3).map(torch.add, values, added)
    assert torch.equal(found, values + added)


def test_a_large_batch_has_threads_of_one_core_each_and_a_small_one_none():
    threads, cores, sizes = set(), set(), []

    def ask(rows):
        threads.add(threading.current_thread().name)
        cores.add(torch.get_num_threads())
        sizes.append(len(rows))
        barrier.wait(10)  # all parts at a time
        return rows

    shared, barrier = RowThreads(2), threading.Barrier(2)
    shared.map(ask, torch.zeros(2 * LEAST_ROWS + 1, 1))
    assert len(threads) == 2 and threading.current_thread().name not in threads
    assert cores == {1} and sorted(sizes) == [LEAST_ROWS, LEAST_ROWS + 1]

    threads.clear()
    barrier = threading.Barrier(1)
    shared.map(ask, torch.zeros(2 * LEAST_ROWS - 1, 1))
    assert threads == {threading.current_thread().name}


@pytest.fixture
def two_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_cores")
def test_the_caller_keeps_its_own_cores():
    RowThreads(2).map(torch.neg, torch.zeros(2 * LEAST_ROWS, 2))
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_cores")
def test_cores_are_shared_by_rows_and_by_operations_where_a_row_is_large():
    assert share_cores(GRAIN).count == 2 == torch.get_num_threads()
    assert share_cores(GRAIN - 1).count == 2 and torch.get_num_threads() == 1


def test_a_part_that_fails_fails_the_batch():
    def fail(rows):
        if rows[0] == 0:
            raise ValueError("no")
        return rows

    with pytest.raises(ValueError, match="no"):
        RowThreads(2).map(fail, torch.arange(2 * LEAST_ROWS))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_parts_are_in_the_mode_of_the_caller(mode):
    weight = torch.ones(1, requires_grad=True)
    with mode():
        found = RowThreads(2).map(lambda rows: rows * weight, torch.ones(2 * LEAST_ROWS, 1))
    assert not found.requires_grad and found.is_inference() == (mode is torch.inference_mode)


@torch.inference_mode()
def test_latents_and_rollouts_in_parts_are_those_of_the_whole():
    whole = tiny_image_model()
    parts = ImageModel(whole.tokenizer, whole.spec)
    parts.threads = RowThreads(3)
    frames = torch.randint(0, 256, (13, 3, *whole.spec.image_size), dtype=torch.uint8)
    latents = whole.encode(frames)
    assert torch.allclose(parts.encode(frames), latents, atol=1e-5)
    actions = [torch.randn(rows, 16) / 4 for rows in (13, 9, 3)]
    for step, (one, other) in enumerate(
        zip(whole.steps(latents, actions), parts.steps(latents, actions), strict=True)
    ):
        assert len(other) == len(actions[step]) and torch.allclose(one, other, atol=1e-5)
