"""The matrix products of a computation, alone: the same shapes and precision, back to back.

What is around them can be fused, products cannot be left out: their time is the least that any
implementation of the same model takes, however it is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.layers.int8 import Int8Linear
from models.layers.precision import Precision, autocast
from models.method import CompileFn

aten = torch.ops.aten
PRODUCTS = {
    aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
}  # fmt: skip


class ProductsOf(TorchDispatchMode):
    """Runs once, with gradients, and can then repeat its products; attention counts as one."""

    def __init__(self, run: Callable[[], object]) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
        self._operands: dict[Any, Tensor] = {}
        with self:
            run()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in PRODUCTS:
            given = tuple(self._operand(a, place) for place, a in enumerate(args))
            self.calls.append((func, given, dict(kwargs or {})))
        return func(*args, **(kwargs or {}))

    def _operand(self, value: Any, place: int) -> Any:
        """Random numbers in the same layout; those of one layout are one tensor, so that memory
        stays small."""
        if not isinstance(value, Tensor):
            return value
        key = (place, tuple(value.shape), value.stride(), value.dtype)
        if key not in self._operands:
            made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
            # numbers that share memory (expand) are copied before a product
            made = made.contiguous() if 0 in value.stride() else made
            self._operands[key] = made.normal_()
        return self._operands[key]

    @torch.no_grad()
    def __call__(self) -> None:
        for func, args, kwargs in self.calls:
            func(*args, **kwargs)


class LinearsAlone(nn.Module):
    """The linear layers that a computation without gradients asks, for as many rows, as often."""

    def __init__(
        self,
        model: nn.Module,
        run: Callable[[], object],
        times: int,
        precision: Precision,
        compile_fn: CompileFn | None,
    ) -> None:
        """run: the computation; a call of this stands for `times` of it."""
        super().__init__()
        self.precision: Precision = precision
        self.linears = nn.ModuleList()
        self.inputs: list[Tensor] = []
        self._places: list[int] = []
        self._calls = 0
        hooks = [
            module.register_forward_pre_hook(self._note)
            for module in model.modules()
            if isinstance(module, nn.Linear | Int8Linear)
        ]
        run()
        for hook in hooks:
            hook.remove()

        # all of them are asked equally often
        self._repeats = round(times * self._calls / len(self.linears))
        self._products = self.products if compile_fn is None else compile_fn(self, self.products)

    def _note(self, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        self._calls += 1
        dtype = module.weight.dtype if isinstance(module, nn.Linear) else given[0].dtype
        layouts = [(x.shape, x.dtype) for x in self.inputs]
        layout = given[0].shape, dtype
        if layout not in layouts:
            layouts.append(layout)
            self.inputs.append(torch.randn(given[0].shape).to(dtype))
        place = layouts.index(layout)
        known = zip(self.linears, self._places, strict=True)
        if not any(linear is module and other == place for linear, other in known):
            self.linears.append(module)
            self._places.append(place)

    def products(self, *inputs: Tensor) -> list[Tensor]:
        """A column of each product: all of them would be more memory than the products touch."""
        results = zip(self.linears, self._places, strict=True)
        return [linear(inputs[place])[..., :1].clone() for linear, place in results]

    def forward(self) -> None:
        with torch.inference_mode(), autocast(self.inputs[0].device, self.precision):
            for _ in range(self._repeats):
                self._products(*self.inputs)
