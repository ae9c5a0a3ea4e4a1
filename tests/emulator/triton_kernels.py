"""Triton kernels for the emulator's tests: known-good code from another compiler."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def matmul(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """C (M x N) = A (M x K) B (K x N), row-major, accumulated in float32."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    inner = tl.arange(0, BK)
    total = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        left = tl.load(a + rows[:, None] * K + (k + inner), mask=(rows[:, None] < M) & (k + inner < K), other=0.0)
        right = tl.load(
            b + (k + inner)[:, None] * N + columns, mask=((k + inner)[:, None] < K) & (columns < N), other=0.0
        )
        total = tl.dot(left, right, total)
    value = total.to(c.dtype.element_ty)
    tl.store(c + rows[:, None] * N + columns, value, mask=(rows[:, None] < M) & (columns < N))


@triton.jit
def conv3x3(x, w, y, H, W, C, K, relu: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """3x3 convolution with padding 1 as an implicit GEMM: x NHWC of one image, w (3, 3, C, K), y (H, W, K)."""
    pixel = tl.program_id(0) * BM + tl.arange(0, BM)
    filters = tl.program_id(1) * BN + tl.arange(0, BN)
    p, q = pixel // W, pixel % W
    channels = tl.arange(0, BK)
    total = tl.zeros((BM, BN), tl.float32)
    for tap in range(9):
        row, column = p + tap // 3 - 1, q + tap % 3 - 1
        inside = (row >= 0) & (row < H) & (column >= 0) & (column < W) & (pixel < H * W)
        for c in range(0, C, BK):
            left = tl.load(
                x + (row * W + column)[:, None] * C + c + channels,
                mask=inside[:, None] & (c + channels < C),
                other=0.0,
            )
            right = tl.load(
                w + (tap * C + c + channels)[:, None] * K + filters,
                mask=(c + channels < C)[:, None] & (filters < K),
                other=0.0,
            )
            total = tl.dot(left, right, total)
    if relu:
        total = tl.maximum(total, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(
        y + pixel[:, None] * K + filters,
        total.to(y.dtype.element_ty),
        mask=(pixel < H * W)[:, None] & (filters < K),
    )


@triton.jit
def softmax(x, y, n, BLOCK: tl.constexpr):
    """Softmax of each row of ``n`` numbers."""
    row, columns = tl.program_id(0), tl.arange(0, BLOCK)
    value = tl.load(x + row * n + columns, mask=columns < n, other=-float("inf")).to(tl.float32)
    value = tl.exp(value - tl.max(value, 0))
    tl.store(y + row * n + columns, (value / tl.sum(value, 0)).to(y.dtype.element_ty), mask=columns < n)


@triton.jit
def histogram(x, counts, n, BLOCK: tl.constexpr):
    """counts[x[i]] += 1 by atomics."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + index, mask=index < n, other=0)
    tl.atomic_add(counts + value, 1, mask=index < n)


@triton.jit
def unmasked(x, y, BLOCK: tl.constexpr):
    """A copy without a mask: reads past the end of ``x`` where it is shorter than the grid."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + index, tl.load(x + index))
