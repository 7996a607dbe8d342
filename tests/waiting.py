"""Finds, on a CPU, what would wait for a GPU: CUDA graphs cannot capture that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# reads of values (a number, or the size of a result), and copies of a list to a GPU
WAITS = {
    "_local_scalar_dense", "bincount", "equal", "is_nonzero", "lift_fresh", "masked_select",
    "multinomial", "nonzero", "unique_dim", "_unique2", "_linalg_svd", "_linalg_eigh",
}  # fmt: skip
INDEXES = {"index", "index_put", "index_put_", "_index_put_impl_"}
COPIES = ("tolist", "numpy", "cpu")


class Watched(TorchDispatchMode):
    """AssertionError at the first operation that waits."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        masks = name in INDEXES and any(_is_mask(x) for x in args[1])
        assert name not in WAITS and not masks, f"{name} waits for a GPU"
        return func(*args, **(kwargs or {}))


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


@contextmanager
def nothing_waits() -> Iterator[None]:
    """AssertionError for anything in here that would wait for a GPU."""

    def refused(name: str) -> Any:
        def refuse(*_: Any, **__: Any) -> None:
            raise AssertionError(f"Tensor.{name} waits for a GPU")

        return mock.patch.object(Tensor, name, refuse)

    tolist, numpy, cpu = (refused(name) for name in COPIES)
    with tolist, numpy, cpu, Watched():
        yield
