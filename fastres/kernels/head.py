"""Global average pooling and the classifier: y = mean over (h, w) of x, times w^T, plus bias.

    x  [N, H, W, C]  NHWC, dense      w  [classes, C]  row-major      bias  [classes]      y  [N, classes]

Pooling is one pass over x, the product a `gemm`. Not one kernel: every tile of classes would pool its images anew, and
at 1,000 classes reading x eight times costs more than writing and reading the means, 1/49 of it.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tf32 import rounded
from ..tuning import Problem, Tile, arithmetic, choose
from .gemm import gemm
from .launch import WIDE, device_of


@triton.jit(do_not_specialize=["PIXELS"])
def average_pool_kernel(x_ptr, y_ptr, PIXELS, C, INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    n = tl.program_id(0).to(INDEX)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for start in range(0, PIXELS, BLOCK_P):
        pixel = start + tl.arange(0, BLOCK_P)
        at = (n * PIXELS + pixel)[:, None] * C + channel[None, :]
        inside = (pixel < PIXELS)[:, None] & (channel < C)[None, :]
        total += tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(total, 0) / PIXELS
    tl.store(y_ptr + n * C + channel, mean.to(y_ptr.dtype.element_ty), mask=channel < C)


def average_pool(x: Tensor) -> Tensor:
    """The mean of [N, C, H, W], dense in channels_last, over its pixels: [N, C], summed in float32."""
    n, c, height, width = x.shape
    y = torch.empty((n, c), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    block_c = 64  # whole cache lines, and enough programs for a batch of one
    with device_of(x):
        average_pool_kernel[(n, triton.cdiv(c, block_c))](
            x,
            y,
            height * width,
            c,
            INDEX=tl.int64 if x.numel() >= WIDE else tl.int32,
            BLOCK_P=16,
            BLOCK_C=block_c,
            num_warps=1,  # the sum stays within a warp: no other one writes its result as well
        )
    return y


def head(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The classifier on the pooled image, [N, classes].

    `x` is [N, C, H, W], dense in channels_last; `weight` is [classes, C], dense, of `x`'s dtype; `bias` is of any.
    """
    return _classify(average_pool(x), weight, bias)


def _classify(pooled: Tensor, weight: Tensor, bias: Tensor | None, tile: Tile | None = None) -> Tensor:
    """pooled [N, C] times weight [classes, C] transposed, plus bias."""
    n, classes, c = pooled.shape[0], *weight.shape
    y = torch.empty((n, classes), dtype=pooled.dtype, device=pooled.device)
    if y.numel() == 0:
        return y
    numbers = arithmetic(pooled.dtype, torch.backends.cuda.matmul.allow_tf32)
    if numbers == "tf32":
        weight = rounded(weight)
    problem = Problem("gemm", n, classes, c, 1, 1)
    tile = tile or choose(problem, numbers, pooled.device, partial(_classify, pooled, weight, bias))
    gemm(pooled, weight, bias, None, y, n, tile, False, numbers)
    return y
