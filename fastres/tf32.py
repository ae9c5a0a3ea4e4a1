"""TF32 as PyTorch's convolutions compute in it: float32 operands rounded to 10 bits of mantissa, sums in float32.

A tensor core reads the upper 19 bits of a float32 and ignores the others, which would round towards zero: every product
too small, by errors that add up. cuDNN rounds to nearest beforehand (`cvt.rna.tf32.f32`), and so does fastres.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .tuning import conv_tf32


def rounded(x: Tensor) -> Tensor:
    """float32 `x`, each number the nearest of TF32, the larger of two equally near; infinities and NaN stay."""
    bits = x.view(torch.int32).add(0x1000).bitwise_and_(~0x1FFF)
    return torch.where(x.isnan(), x, bits.view(torch.float32))


@contextmanager
def allowed(allow: bool) -> Iterator[None]:
    """Within it, PyTorch's switch says whether float32 convolutions may be computed in TF32. It is of the process."""
    before = conv_tf32()
    torch.backends.cudnn.allow_tf32 = allow
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
