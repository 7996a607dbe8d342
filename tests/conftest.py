"""Tests run on one thread: their tensors are tiny, and threads wait for each other."""

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is imported


@pytest.fixture
def where_kernels_run() -> Iterator[None]:
    """What a test makes lies on the GPU where there is one, for that is where a kernel reads it."""
    torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
    yield
    torch.set_default_device(None)
