"""What the launchers share: output allocation, numerics, device guards."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

# Elements of a tensor from which addresses are computed in 64 bits. Not 2^31: what is added for padding must not
# overflow.
WIDE = 1 << 30


def output(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """An uninitialised [N, K, P, Q] of `x`'s dtype and device, dense in channels_last."""
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def precision(numbers: str) -> str:
    """`tl.dot`'s input_precision for `tuning.arithmetic`'s `numbers`."""
    return "tf32" if numbers == "tf32" else "ieee"


def device_of(x: Tensor) -> AbstractContextManager[None]:
    """Makes `x`'s device current: Triton launches on the current device's current stream."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
