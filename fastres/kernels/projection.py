"""A projection block's end as one GEMM: y = relu(conv(x, w) + conv(x2, w2) + bias + bias2).

    x   [N, H, W, C]     w   [K, R, S, C]      the branch's last convolution
    x2  [N, H2, W2, C2]  w2  [K, R2, S2, C2]   the shortcut's, of the block's input
    y   [N, P, Q, K]     bias, bias2 [K] float32

Both accumulate into the same registers, so the shortcut's output is never written. Layouts and dtypes as in `conv`.
"""

from __future__ import annotations

from functools import partial

import triton
import triton.language as tl
from torch import Tensor

from ..block import Geometry
from ..layout import empty
from ..tuning import Problem, Tile, arithmetic, choose, conv_tf32
from .launch import WIDE, device_of, precision
from .tile import multiply, output_pixels, relu


@triton.jit(
    do_not_specialize=[
        "M",
        "P",
        "Q",
        "H",
        "W",
        "STRIDE_H",
        "STRIDE_W",
        "PAD_H",
        "PAD_W",
        "DILATION_H",
        "DILATION_W",
        "H2",
        "W2",
        "STRIDE2_H",
        "STRIDE2_W",
        "PAD2_H",
        "PAD2_W",
        "DILATION2_H",
        "DILATION2_W",
    ]
)
def projection_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    x2_ptr,
    w2_ptr,
    bias2_ptr,
    y_ptr,
    M,
    P,
    Q,
    K,
    H,
    W,
    C,
    STRIDE_H,
    STRIDE_W,
    PAD_H,
    PAD_W,
    DILATION_H,
    DILATION_W,
    H2,
    W2,
    C2,
    STRIDE2_H,
    STRIDE2_W,
    PAD2_H,
    PAD2_W,
    DILATION2_H,
    DILATION2_W,
    R: tl.constexpr,
    S: tl.constexpr,
    PADDED: tl.constexpr,
    BY_TAP: tl.constexpr,
    R2: tl.constexpr,
    S2: tl.constexpr,
    PADDED2: tl.constexpr,
    BY_TAP2: tl.constexpr,
    INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tiles_n = tl.cdiv(K, BLOCK_N)
    row = (tl.program_id(0) // tiles_n).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    filters = tl.where(column < K, column, 0)

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    n, h, w = output_pixels(row, M, P, Q, STRIDE_H, STRIDE_W, PAD_H, PAD_W)
    acc = multiply(
        acc,
        x_ptr,
        w_ptr,
        n,
        h,
        w,
        filters,
        H,
        W,
        C,
        C,
        DILATION_H,
        DILATION_W,
        R,
        S,
        PADDED,
        BY_TAP,
        BLOCK_K,
        PRECISION,
    )
    n, h, w = output_pixels(row, M, P, Q, STRIDE2_H, STRIDE2_W, PAD2_H, PAD2_W)
    acc = multiply(
        acc,
        x2_ptr,
        w2_ptr,
        n,
        h,
        w,
        filters,
        H2,
        W2,
        C2,
        C2,
        DILATION2_H,
        DILATION2_W,
        R2,
        S2,
        PADDED2,
        BY_TAP2,
        BLOCK_K,
        PRECISION,
    )

    known = column < K
    bias = tl.load(bias_ptr + column, mask=known, other=0.0) + tl.load(bias2_ptr + column, mask=known, other=0.0)
    at = row[:, None] * K + column[None, :]
    inside = (row < M)[:, None] & known[None, :]
    tl.store(y_ptr + at, relu(acc + bias[None, :]).to(y_ptr.dtype.element_ty), mask=inside)


def projection(
    x: Tensor,
    conv: tuple[Tensor, Tensor, tuple[int, int], tuple[int, int], tuple[int, int]],
    x2: Tensor,
    conv2: tuple[Tensor, Tensor, tuple[int, int], tuple[int, int], tuple[int, int]],
    *,
    tile: Tile | None = None,
) -> Tensor:
    """relu(conv(x) + conv2(x2)) as a new tensor [N, K, P, Q], dense in channels_last.

    `x` and `x2` are dense in channels_last; each convolution is (KRSC weight, float32 bias, stride, padding, dilation),
    without groups, and both give one shape: the operators check it. `tile` overrides the tuning table.
    """
    w, bias, stride, padding, dilation = conv
    w2, bias2, stride2, padding2, dilation2 = conv2
    k, r, s, c = w.shape
    _, r2, s2, c2 = w2.shape
    n, _, height, width = x.shape
    p, q = Geometry(stride, padding, dilation).out_size((height, width), (r, s))
    y = empty(x, (n, k, p, q))
    if y.numel() == 0:
        return y
    m = n * p * q
    numbers = arithmetic(x.dtype, conv_tf32())
    run = partial(projection, x, conv, x2, conv2)
    tile = tile or choose(Problem("projection", m, k, c, r * s, 1), numbers, x.device, run)
    with device_of(x):
        projection_kernel[(triton.cdiv(m, tile.m) * triton.cdiv(k, tile.n),)](
            x,
            w,
            bias,
            x2,
            w2,
            bias2,
            y,
            m,
            p,
            q,
            k,
            height,
            width,
            c,
            *stride,
            *padding,
            *dilation,
            *x2.shape[2:],
            c2,
            *stride2,
            *padding2,
            *dilation2,
            R=r,
            S=s,
            PADDED=padding != (0, 0),
            BY_TAP=c % tile.k == 0,
            R2=r2,
            S2=s2,
            PADDED2=padding2 != (0, 0),
            BY_TAP2=c2 % tile.k == 0,
            INDEX=tl.int64 if max(x.numel(), x2.numel(), y.numel()) >= WIDE else tl.int32,
            PRECISION=precision(numbers),
            BLOCK_M=tile.m,
            BLOCK_N=tile.n,
            BLOCK_K=tile.k,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return y
