"""Operations that models are made of. Each is defined in `kernels/reference.py`."""

from kernels.reference import rotate
from kernels.rms_norm import rms_norm
from kernels.swiglu import swiglu

# transformers asks any package called `kernels` for its version
__version__ = "0.1.0"

__all__ = ["rms_norm", "rotate", "swiglu"]
