"""Operations that models are made of: the definition is in `kernels/reference.py`.

Triton kernels run on CUDA tensors where they were asked for or measured faster (choice.py), the
same mathematics in PyTorch elsewhere.  Triton is imported only where it runs.
"""

from __future__ import annotations

from torch import Tensor

from kernels import reference, written
from kernels.choice import Kernels, choose, describe, use_triton
from kernels.reference import View

# transformers asks any package called `kernels` for its version
__version__ = "0.1.0"

__all__ = ["Kernels", "View", "choose", "describe", "rms_norm", "rotate", "swiglu"]


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """Divide the last axis by its root mean square.

    x: (..., D), any float dtype.  weight: (D,).  Returns (..., D) in x's dtype.
    """
    if use_triton("rms_norm", x):
        from kernels import norm

        return norm.rms_norm(x, weight, eps)
    return written.rms_norm(x, weight, eps)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn pairs of channels by angles of position.

    x: (..., S, D).  cosine, sine: (S, D / 2).  Returns (..., S, D) in x's dtype.
    """
    if use_triton("rotate", x):
        from kernels import rope

        return rope.rotate(x, cosine, sine)
    return reference.rotate(x, cosine, sine)


def swiglu(gate_up: Tensor) -> Tensor:
    """Gate half of the last axis by the other: (..., 2F) -> (..., F)."""
    if use_triton("swiglu", gate_up):
        from kernels import gate

        return gate.swiglu(gate_up)
    return written.swiglu(gate_up)
