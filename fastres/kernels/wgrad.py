"""The gradient of a convolution's weight, a GEMM whose inner axis are the output pixels, split and added in order.

    dw[k, r, s, c] = sum over n, p, q of g[n, p, q, k] * a[n, p*stride_h - pad_h + r*dilation_h, q*stride_w - ..., c]
    a = x, or relu(x * scale + shift), and zero outside the image

    g             [N, P, Q, K]               NHWC, dense
    x             [N, H, W, C]               NHWC, dense, of g's dtype: float32, float16 or bfloat16
    scale, shift  [C]                        float32
    partial       [splits, K, R*S*C/groups]  float32: of equal runs of pixels, added by `ordered_sum`
    dw            [K, R, S, C/groups]        float32

A tile has output channels for rows and (r, s, c) for columns. Splits give every multiprocessor work where dw has few
tiles. Groups are merged as forward merges them; what falls between two groups is dropped.

Work: 2 * N*P*Q * K * R*S * C/groups FLOPs, as forward. Fewest bytes: g and x once each, and 8 an element of dw and
split.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tuning import Problem, Tile, arithmetic, choose, conv_tf32
from .conv import merging, unpack
from .launch import WIDE, device_of, precision
from .ordered import ordered_sum
from .tile import normalised, output_pixels, product, rounded


@triton.jit(
    do_not_specialize=[
        "M",
        "RUN",
        "H",
        "W",
        "P",
        "Q",
        "STRIDE_H",
        "STRIDE_W",
        "PAD_H",
        "PAD_W",
        "DILATION_H",
        "DILATION_W",
    ]
)
def wgrad_kernel(
    g_ptr,
    x_ptr,
    scale_ptr,  # with shift_ptr, or both None
    shift_ptr,
    partial_ptr,
    M,
    RUN,  # pixels of a split
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
    BY_TAP: tl.constexpr,  # BLOCK_N divides C_GROUP: a tile's columns lie within one tap
    INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # Neighbouring programs are tiles of one split and share its pixels, found in L2.
    length = R * S * C_GROUP
    tiles_n = tl.cdiv(length, BLOCK_N)
    tiles_m = tl.cdiv(K_GROUP, BLOCK_M)
    tile_n = tl.program_id(0) % tiles_n
    tile_m = tl.program_id(0) // tiles_n % tiles_m
    group = tl.program_id(0) // (tiles_n * tiles_m)
    split = tl.program_id(1)

    row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    if BY_TAP:
        tap = tile_n * BLOCK_N // C_GROUP
        channel = column - tap * C_GROUP
    else:
        tap = (column // C_GROUP)[None, :]
        channel = column % C_GROUP
    dh = tap // S * DILATION_H
    dw = tap % S * DILATION_W
    filters = g_ptr + group * K_GROUP + row
    values = x_ptr + group * C_GROUP + channel
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + group * C_GROUP + channel)
        shift = tl.load(shift_ptr + group * C_GROUP + channel)

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    last = min(split * RUN + RUN, M)
    for start in range(split * RUN, last, BLOCK_K):
        pixel = start + tl.arange(0, BLOCK_K).to(INDEX)
        known = (pixel < last)[:, None]
        n, h, w = output_pixels(pixel, last, P, Q, STRIDE_H, STRIDE_W, PAD_H, PAD_W)
        g = tl.load(filters[None, :] + pixel[:, None] * K, mask=known & (row < K_GROUP)[None, :], other=0.0)
        h = h[:, None] + dh
        w = w[:, None] + dw
        inside = known & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        if not BY_TAP:
            inside = inside & (column < length)[None, :]
        a = tl.load(values[None, :] + ((n[:, None] * H + h) * W + w) * C, mask=inside, other=0.0)
        if scale_ptr is not None:
            a = tl.where(inside, normalised(a, scale, shift), 0.0)
        acc = product(tl.trans(g), rounded(a, PRECISION), acc, PRECISION)

    inside = (row < K_GROUP)[:, None] & (column < length)[None, :]
    at = ((split * K + group * K_GROUP).to(INDEX) + row)[:, None] * length + column[None, :]
    tl.store(partial_ptr + at, acc, mask=inside)


def wgrad(
    gradient: Tensor,
    x: Tensor,
    size: torch.Size,
    prologue: tuple[Tensor, Tensor] | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    tile: Tile | None = None,
) -> Tensor:
    """dw of `size` [K, C/groups, R, S], float32, dense in channels_last.

    `gradient` is [N, K, P, Q] and `x` [N, C, H, W], dense in channels_last; `prologue` is (scale, shift), float32 [C].
    `tile` overrides the tuning table; its `group_m` is the number of splits. Shapes and dtypes are the caller's
    promise.
    """
    k, width, r, s = size
    if gradient.numel() == 0 or k * width * r * s == 0:
        return torch.zeros(size, dtype=torch.float32, device=x.device)
    merge = merging(width, groups)
    merged_groups, c_group = groups // merge, width * merge
    k_group = k // merged_groups
    m = gradient.numel() // k
    numbers = arithmetic(x.dtype, conv_tf32())
    problem = Problem("wgrad", m, k_group, c_group, r * s, merged_groups)

    def run(tile: Tile) -> Tensor:
        geometry = {"stride": stride, "padding": padding, "dilation": dilation}
        return wgrad(gradient, x, size, prologue, **geometry, groups=groups, tile=tile)

    tile = tile or choose(problem, numbers, x.device, run)
    length = r * s * c_group
    pixels = triton.cdiv(triton.cdiv(m, tile.group_m), tile.k) * tile.k
    splits = triton.cdiv(m, pixels)
    part = torch.empty((splits, k, r, s, c_group), dtype=torch.float32, device=x.device)
    scale, shift = prologue or (None, None)
    with device_of(x):
        wgrad_kernel[(merged_groups * triton.cdiv(k_group, tile.m) * triton.cdiv(length, tile.n), splits)](
            gradient,
            x,
            scale,
            shift,
            part,
            m,
            pixels,
            *x.shape[2:],
            x.shape[1],
            *gradient.shape[2:],
            k,
            c_group,
            k_group,
            *stride,
            *padding,
            *dilation,
            R=r,
            S=s,
            BY_TAP=c_group % tile.n == 0,
            INDEX=tl.int64 if max(x.numel(), gradient.numel(), part.numel()) >= WIDE else tl.int32,
            PRECISION=precision(numbers),
            BLOCK_M=tile.m,
            BLOCK_N=tile.n,
            BLOCK_K=tile.k,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return unpack(part[0] if splits == 1 else ordered_sum(part), width, groups)
