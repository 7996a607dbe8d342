"""A device that is not the CPU, in the CPU's memory: as Apple's MPS it has no float64.

Tensors that are sent there are marked, and so is what is computed of them.  As on a real device,
float64 raises TypeError, what lies on two devices does not mix, and NumPy reads the CPU's alone.
What runs in the backward pass is not seen, so that activation checkpointing cannot be tried here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode

DEVICE = torch.device("mps")
MARK = "_on_accelerator"
NO_FLOAT64 = "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it"
# what may have tensors of both devices: it moves them, or counts with an index of either
GET_DEVICE, SET_DATA = Tensor.device.__get__, Tensor.data.__set__  # type: ignore[attr-defined]
MOVES = {Tensor.to, Tensor.copy_, Tensor.__getitem__, Tensor.type_as}
READS = {Tensor.numpy, Tensor.__array__}
# what is the same on every device, and is asked at every operation
SAME = {
    Tensor.shape.__get__, Tensor.dtype.__get__, Tensor.is_cuda.__get__,  # type: ignore[attr-defined]
    Tensor.dim, Tensor.size, Tensor.is_floating_point, Tensor.__len__,
}  # fmt: skip


def is_there(tensor: Tensor) -> bool:
    return MARK in vars(tensor)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples and dictionaries.  It is called for every operation, and
    PyTorch's tree_leaves takes longer than most of them."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for each in value for tensor in tensors_in(each)]


def mark(value: Any, there: bool) -> Any:
    """Mark every tensor in a result, in place."""
    for tensor in tensors_in(value):
        if not there:
            vars(tensor).pop(MARK, None)
        elif tensor.dtype == torch.float64:
            raise TypeError(NO_FLOAT64)
        else:
            vars(tensor)[MARK] = True
    return value


class FakeAccelerator(TorchFunctionMode):
    """While it is active, `torch.device("mps")` is this device."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in SAME:
            return func(*args, **(kwargs or {}))
        kwargs = dict(kwargs or {})
        tensors = tensors_in(args) + tensors_in(kwargs)
        there = any(is_there(x) for x in tensors)
        if func == GET_DEVICE:
            return DEVICE if there else func(*args)
        if func is Tensor.__deepcopy__:
            return mark(func(*args, **kwargs), there)
        if func in READS and there:
            raise TypeError("can't convert mps:0 device type tensor to numpy")
        if func is Tensor.cpu:
            return mark(args[0].view_as(args[0]) if there else args[0], False)
        target = _target(func, args, kwargs)
        if target is not None:
            return self._on(target, func, args, kwargs, tensors)
        if func in (Tensor.copy_, Tensor.__getitem__):
            there = is_there(args[0])
        if func == SET_DATA:
            func(*args)
            return mark(args[0], is_there(args[1]))
        result = func(*args, **kwargs)
        if not there or not tensors_in(result):
            return result
        if func not in MOVES and any(x.dim() and not is_there(x) for x in tensors):
            raise RuntimeError(f"{func.__name__} of tensors on two devices, mps and cpu")
        return mark(result, True)

    @staticmethod
    def _on(
        target: torch.device, func: Any, args: tuple[Any, ...], kwargs: Any, tensors: list[Tensor]
    ) -> Any:
        """Make or move something to a device that was named."""
        there = target.type == "mps"
        args = tuple(_on_cpu(x) for x in args)
        result = func(*args, **{k: _on_cpu(v) for k, v in kwargs.items()})
        if isinstance(result, Tensor) and any(result is x for x in tensors):
            if is_there(result) == there:
                return result
            result = result.view_as(result)
        return mark(result, there)


def _target(func: Any, args: tuple[Any, ...], kwargs: Any) -> torch.device | None:
    """The device that a call names, or lends: by `device=`, `.to(device)` or `.to(tensor)`."""
    named = [kwargs.get("device")]
    if func is Tensor.to or isinstance(func, OpOverload):  # an operator of our own
        named += [x for x in args[1:] if isinstance(x, torch.device | str)]
    if func is Tensor.to:
        named += [DEVICE if is_there(x) else "cpu" for x in args[1:] if isinstance(x, Tensor)]
    return next((torch.device(x) for x in named if x is not None), None)


def _on_cpu(value: Any) -> Any:
    is_mps = isinstance(value, torch.device | str) and str(value).startswith("mps")
    return torch.device("cpu") if is_mps else value


HostGenerator = torch.Generator


class Generator:
    """Of random numbers; its device has some, which the CPU draws."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return HostGenerator()


@contextmanager
def fake_accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the project find this device, and no other, while the context is open."""
    deepcopy = nn.Parameter.__deepcopy__  # which no mode sees

    def copy_there(parameter: nn.Parameter, memo: dict[int, Any]) -> nn.Parameter:
        return mark(deepcopy(parameter, memo), is_there(parameter))

    def reset() -> None:
        AcceleratorState._reset_state()
        PartialState._reset_state()

    monkeypatch.setattr(nn.Parameter, "__deepcopy__", copy_there)
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: True)
    reset()
    try:
        with FakeAccelerator():
            yield
    finally:
        reset()
