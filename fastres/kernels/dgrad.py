"""The gradient of a convolution's input: dx = conv_transpose(g, w) + residual, any geometry.

    dx[n, h, w, c] = sum over r, s, k of g[n, p, q, k] * w[k, r, s, c]
        where p * stride_h = h + pad_h - r * dilation_h, q likewise, and (p, q) lies within g

    g             [N, P, Q, K]           NHWC, dense
    w             [C, R, S, K/groups]    the filter with its channels exchanged within each group: `transposed`
    dx, residual  [N, H, W, C]           NHWC, dense

All of one dtype, float32, float16 or bfloat16; sums are float32. h = stride * i + a: the pixels of one remainder a
meet the same taps, every (stride / d)-th, d = gcd(dilation, stride), and each of these is dilation / d further back in
g; i is a step of one. So each pair of remainders is a pass of the forward's main loop, a negative dilation standing
for a flipped filter; a pass without taps writes zeros, or the residual. Without stride there is one pass, and for 1x1
filters it is a `gemm`.

Work: 2 * N*P*Q * K * R*S * C/groups FLOPs, as forward. Fewest bytes: g, w, residual and dx once each.
"""

from __future__ import annotations

from functools import partial
from math import gcd
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layout import empty
from ..tuning import Problem, Tile, arithmetic, choose, conv_tf32
from .conv import pack
from .gemm import gemm
from .launch import WIDE, device_of, precision
from .tile import multiply, output_pixels


@triton.jit(
    do_not_specialize=[
        "M",
        "ROWS",
        "COLUMNS",
        "H",
        "W",
        "P",
        "Q",
        "STRIDE_H",
        "STRIDE_W",
        "FIRST_H",
        "FIRST_W",
        "FIRST_P",
        "FIRST_Q",
        "STEP_P",
        "STEP_Q",
    ]
)
def dgrad_kernel(
    g_ptr,
    w_ptr,
    residual_ptr,  # may be None
    dx_ptr,
    M,  # pixels of this pass: N * ROWS * COLUMNS
    ROWS,
    COLUMNS,
    H,
    W,
    C,
    P,
    Q,
    K,
    C_GROUP,
    K_GROUP,
    STRIDE_H,
    STRIDE_W,
    FIRST_H,  # remainders
    FIRST_W,
    FIRST_P,  # where in g the first tap of the first pixel is
    FIRST_Q,
    STEP_P,  # from a tap to the next
    STEP_Q,
    R: tl.constexpr,  # taps of this pass
    S: tl.constexpr,
    PADDED: tl.constexpr,
    BY_TAP: tl.constexpr,
    INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tiles_group = tl.cdiv(C_GROUP, BLOCK_N)
    tiles_n = (C // C_GROUP) * tiles_group
    tile_n = tl.program_id(0) % tiles_n
    group = tile_n // tiles_group

    row = (tl.program_id(0) // tiles_n).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tile_n % tiles_group * BLOCK_N + tl.arange(0, BLOCK_N)
    n, p, q = output_pixels(row, M, ROWS, COLUMNS, 1, 1, -FIRST_P, -FIRST_Q)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if R * S > 0:
        acc = multiply(
            acc,
            g_ptr + group * K_GROUP,
            w_ptr + group * C_GROUP * (R * S * K_GROUP),
            n,
            p,
            q,
            tl.where(column < C_GROUP, column, 0),
            P,
            Q,
            K,
            K_GROUP,
            STEP_P,
            STEP_Q,
            R,
            S,
            PADDED,
            BY_TAP,
            BLOCK_K,
            PRECISION,
        )

    inside = (row < M)[:, None] & (column < C_GROUP)[None, :]
    column += group * C_GROUP
    h = (p - FIRST_P) * STRIDE_H + FIRST_H
    w = (q - FIRST_Q) * STRIDE_W + FIRST_W
    at = (((n * H + h) * W + w) * C)[:, None] + column[None, :]
    if residual_ptr is not None:
        acc += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx_ptr + at, acc.to(dx_ptr.dtype.element_ty), mask=inside)


class Axis(NamedTuple):
    """Of one remainder, along one axis: how many pixels, the taps they meet, and where and how those walk through g."""

    pixels: int
    taps: slice
    number: int
    first: int
    step: int
    padded: bool  # some tap of some pixel lies outside g

    @classmethod
    def of(cls, remainder: int, size: int, taps: int, stride: int, padding: int, dilation: int, image: int) -> Axis:
        """`size` is dx's, `image` g's, `taps` the filter's."""
        pixels = len(range(remainder, size, stride))
        meeting = [r for r in range(taps) if (remainder + padding - r * dilation) % stride == 0]
        every = stride // gcd(dilation, stride)
        if not meeting:
            return cls(pixels, slice(0), 0, 0, 0, False)
        first = (remainder + padding - meeting[0] * dilation) // stride
        step = -every * dilation // stride
        outside = first + step * (len(meeting) - 1) < 0 or first + pixels > image
        return cls(pixels, slice(meeting[0], None, every), len(meeting), first, step, outside)


def transposed(weight: Tensor, groups: int) -> Tensor:
    """The [C, K/groups, R, S] of a filter [K, C/groups, R, S]: input and output channels exchanged, a view."""
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


def dgrad(
    gradient: Tensor,
    weight: Tensor,
    size: torch.Size,
    residual: Tensor | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    tile: Tile | None = None,
) -> Tensor:
    """dx of `size` [N, C, H, W], a new tensor, dense in channels_last.

    `gradient` is [N, K, P, Q] and `residual` of `size`, dense in channels_last; `weight` is [K, C/groups, R, S] of any
    layout. `tile` overrides the tuning table. Shapes and dtypes are the caller's promise.
    """
    n, c, height, width = size
    dx = empty(gradient, (n, c, height, width))
    if dx.numel() == 0:
        return dx
    _, k, p, q = gradient.shape
    r, s = weight.shape[2:]
    merged, merged_groups = pack(transposed(weight, groups), groups)
    k_group = merged.shape[3]
    plain = (r, s, stride, padding, merged_groups) == (1, 1, (1, 1), (0, 0), 1)
    pixels = triton.cdiv(n * height * width, stride[0] * stride[1])
    problem = Problem("gemm" if plain else "dgrad", pixels, c // merged_groups, k_group, r * s, merged_groups)
    numbers = arithmetic(gradient.dtype, conv_tf32())
    geometry: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
    run = partial(dgrad, gradient, weight, size, residual, **geometry, groups=groups)
    tile = tile or choose(problem, numbers, gradient.device, run)
    if plain:
        gemm(gradient, merged, None, residual, dx, pixels, tile, False, numbers)
        return dx
    for a in range(min(stride[0], height)):
        rows = Axis.of(a, height, r, stride[0], padding[0], dilation[0], p)
        for b in range(min(stride[1], width)):
            columns = Axis.of(b, width, s, stride[1], padding[1], dilation[1], q)
            m = n * rows.pixels * columns.pixels
            taps = merged[:, rows.taps, columns.taps].contiguous()
            some = taps.numel() > 0
            with device_of(gradient):
                dgrad_kernel[(triton.cdiv(m, tile.m) * triton.cdiv(c // merged_groups, tile.n) * merged_groups,)](
                    gradient,
                    taps,
                    residual,
                    dx,
                    m,
                    rows.pixels,
                    columns.pixels,
                    height,
                    width,
                    c,
                    p,
                    q,
                    k,
                    c // merged_groups,
                    k_group,
                    *stride,
                    a,
                    b,
                    rows.first,
                    columns.first,
                    rows.step,
                    columns.step,
                    R=rows.number if some else 0,
                    S=columns.number if some else 0,
                    PADDED=some and (rows.padded or columns.padded),
                    BY_TAP=k_group % tile.k == 0,
                    INDEX=tl.int64 if max(dx.numel(), gradient.numel()) >= WIDE else tl.int32,
                    PRECISION=precision(numbers),
                    BLOCK_M=tile.m,
                    BLOCK_N=tile.n,
                    BLOCK_K=tile.k,
                    num_warps=tile.warps,
                    num_stages=tile.stages,
                )
    return dx
