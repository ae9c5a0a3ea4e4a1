"""channels_last: the layout that every activation has between fastres's kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def nhwc(x: Tensor) -> Tensor:
    """`x`, or a copy of it that is dense in channels_last."""
    return x.contiguous(memory_format=torch.channels_last)


def empty(x: Tensor, size: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor of `size`, on `x`'s device and, without `dtype`, of its dtype, dense in channels_last."""
    return torch.empty(size, dtype=dtype or x.dtype, device=x.device, memory_format=torch.channels_last)
