"""What the launchers share: numerics, device guards."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

# Elements of a tensor from which addresses are computed in 64 bits. Not 2^31: what is added for padding must not
# overflow.
WIDE = 1 << 30


def precision(numbers: str) -> str:
    """`tl.dot`'s input_precision for `tuning.arithmetic`'s `numbers`."""
    return "tf32" if numbers == "tf32" else "ieee"


def device_of(x: Tensor) -> AbstractContextManager[None]:
    """Makes `x`'s device current: Triton launches on the current device's current stream."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
