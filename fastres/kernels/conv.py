"""Convolution forward with its epilogue: y = relu(conv(x, w) + bias + residual), any geometry.

    x         [N, H, W, C]           NHWC, dense
    w         [K, R, S, C/groups]    KRSC, dense; BatchNorm folded in
    bias      [K]                    float32
    residual  [N, P, Q, K]           as y
    y         [N, P, Q, K]           NHWC, dense

x, w, residual and y are float32, float16 or bfloat16, all one; sums are float32, rounded once on the way out. See
`tile` for the main loop. A convolution that is a plain matrix product (1x1, stride 1, no padding) goes to `gemm`.

A group narrower than the tensor cores' tile would leave most of it idle, so `pack` merges neighbouring groups until
they span 32 channels, with zeros off the diagonal: for ResNeXt's 3x3 that is at most 144 operations a byte, still
memory-bound on every GPU this runs on.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tuning import Problem, Tile, arithmetic, choose
from . import gemm
from .launch import WIDE, device_of, output, precision
from .tile import multiply, output_pixels, relu

MERGED = 32  # channels that merged groups span


@triton.jit(
    do_not_specialize=["M", "H", "W", "P", "Q", "STRIDE_H", "STRIDE_W", "PAD_H", "PAD_W", "DILATION_H", "DILATION_W"]
)
def conv_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    residual_ptr,
    y_ptr,
    M,
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
    PAD_H,
    PAD_W,
    DILATION_H,
    DILATION_W,
    R: tl.constexpr,
    S: tl.constexpr,
    PADDED: tl.constexpr,
    BY_TAP: tl.constexpr,
    RELU: tl.constexpr,
    INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # Neighbouring programs share their pixels and differ in their channels: x is read from memory once.
    tiles_group = tl.cdiv(K_GROUP, BLOCK_N)
    tiles_n = (K // K_GROUP) * tiles_group
    tile_m = tl.program_id(0) // tiles_n
    tile_n = tl.program_id(0) % tiles_n
    group = tile_n // tiles_group

    row = tile_m.to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tile_n % tiles_group * BLOCK_N + tl.arange(0, BLOCK_N)
    n, h, w = output_pixels(row, M, P, Q, STRIDE_H, STRIDE_W, PAD_H, PAD_W)
    acc = multiply(
        tl.zeros((BLOCK_M, BLOCK_N), tl.float32),
        x_ptr + group * C_GROUP,
        w_ptr + group * K_GROUP * (R * S * C_GROUP),
        n,
        h,
        w,
        tl.where(column < K_GROUP, column, 0),
        H,
        W,
        C,
        C_GROUP,
        DILATION_H,
        DILATION_W,
        R,
        S,
        PADDED,
        BY_TAP,
        BLOCK_K,
        PRECISION,
    )

    inside = (row < M)[:, None] & (column < K_GROUP)[None, :]
    column += group * K_GROUP
    at = row[:, None] * K + column[None, :]
    acc += tl.load(bias_ptr + column, mask=column < K, other=0.0)[None, :]
    if residual_ptr is not None:
        acc += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        acc = relu(acc)
    tl.store(y_ptr + at, acc.to(y_ptr.dtype.element_ty), mask=inside)


def pack(weight: Tensor, groups: int) -> tuple[Tensor, int]:
    """A filter [K, C/groups, R, S] as dense KRSC with narrow groups merged, and the number of groups left."""
    filters = weight.permute(0, 2, 3, 1)
    k, _, _, width = filters.shape
    merge = 1
    while merge * width < MERGED and groups % (2 * merge) == 0:
        merge *= 2
    if merge == 1:
        return filters.contiguous(), groups
    per_group = k // groups
    merged = filters.new_zeros((k, *filters.shape[1:3], merge, width))
    position = torch.arange(k, device=weight.device) // per_group % merge
    merged[torch.arange(k, device=weight.device), :, :, position] = filters
    return merged.flatten(3), groups // merge


def conv(
    x: Tensor,
    w: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    *,
    relu: bool = False,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    out: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """relu(conv(x, w) + bias + residual), [N, K, P, Q], dense in channels_last.

    The result is a new tensor, or `out`, which may be `residual`. `x` is [N, C, H, W] and `residual` [N, K, P, Q],
    dense in channels_last too; `w` and `groups` come from `pack`; `bias` is float32. `tile` overrides the tuning
    table. Shapes and dtypes are the caller's promise: the operators check them.
    """
    n, c, height, width = x.shape
    k, r, s, c_group = w.shape
    p = (height + 2 * padding[0] - dilation[0] * (r - 1) - 1) // stride[0] + 1
    q = (width + 2 * padding[1] - dilation[1] * (s - 1) - 1) // stride[1] + 1
    y = output(x, (n, k, p, q)) if out is None else out
    if y.numel() == 0:
        return y
    m = n * p * q
    plain = (r, s) == (1, 1) and padding == (0, 0) and groups == 1
    problem = Problem("gemm" if plain and stride == (1, 1) else "conv", m, k // groups, c_group, r * s, groups)
    numbers = arithmetic(x.dtype, torch.backends.cudnn.allow_tf32)
    geometry: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    run = partial(conv, x, w, bias, residual, relu=relu, **geometry)
    tile = tile or choose(problem, numbers, x.device, run)
    if problem.family == "gemm":
        gemm.gemm(x, w, bias, residual, y, m, tile, relu, numbers)
        return y
    tiles = triton.cdiv(m, tile.m) * triton.cdiv(k // groups, tile.n) * groups
    with device_of(x):
        conv_kernel[(tiles,)](
            x,
            w,
            bias,
            residual,
            y,
            m,
            height,
            width,
            c,
            p,
            q,
            k,
            c_group,
            k // groups,
            *stride,
            *padding,
            *dilation,
            R=r,
            S=s,
            PADDED=padding != (0, 0),
            BY_TAP=c_group % tile.k == 0,
            RELU=relu,
            INDEX=tl.int64 if max(x.numel(), y.numel()) >= WIDE else tl.int32,
            PRECISION=precision(numbers),
            BLOCK_M=tile.m,
            BLOCK_N=tile.n,
            BLOCK_K=tile.k,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return y
