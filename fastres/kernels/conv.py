"""Convolution forward, any geometry: with an epilogue in inference, with a prologue and statistics in training.

    inference  y = relu(conv(x, w) + bias + residual)           BatchNorm folded into w and bias
    training   y = conv(relu(x * scale + shift), w), or conv(x, w); and y's mean and m2 by channel

    x            [N, H, W, C]           NHWC, dense
    w            [K, R, S, C/groups]    KRSC, dense
    bias         [K]                    float32
    scale, shift [C]                    float32: the BatchNorm that x is the input of
    residual     [N, P, Q, K]           as y
    y            [N, P, Q, K]           NHWC, dense
    partial      [tiles, 2, K]          float32: mean and m2 of each BLOCK_M rows of y, for `statistics.merge`

x, w, residual and y are float32, float16 or bfloat16, all one; sums are float32, rounded once on the way out. See
`tile` for the main loop. In inference, a plain matrix product (1x1, stride 1, no padding) goes to `gemm`.

Work: 2 * N*P*Q * K * R*S * C/groups FLOPs. Fewest bytes: x, w, residual and y once each; in training, 8 * K bytes more
for each BLOCK_M rows, 1/32 of y in 16 bits at 128 rows. Padding is zero in the prologue's result, not in its argument.

A group narrower than the tensor cores' tile would leave most of it idle, so `pack` merges neighbouring groups until
they span 32 channels, with zeros off the diagonal: for ResNeXt's 3x3 that is at most 144 operations a byte, still
memory-bound on every GPU this runs on.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..block import Geometry
from ..layout import empty
from ..tf32 import rounded
from ..tuning import Problem, Tile, arithmetic, choose, conv_tf32
from . import gemm
from .launch import WIDE, device_of, precision
from .statistics import merge
from .tile import multiply, output_pixels, relu

MERGED = 32  # channels that merged groups span


@triton.jit(
    do_not_specialize=["M", "H", "W", "P", "Q", "STRIDE_H", "STRIDE_W", "PAD_H", "PAD_W", "DILATION_H", "DILATION_W"]
)
def conv_kernel(
    x_ptr,
    scale_ptr,  # with shift_ptr, or both None
    shift_ptr,
    w_ptr,
    bias_ptr,  # may be None
    residual_ptr,  # may be None
    y_ptr,
    partial_ptr,  # may be None
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
        None if scale_ptr is None else scale_ptr + group * C_GROUP,
        None if shift_ptr is None else shift_ptr + group * C_GROUP,
    )

    exists = column < K_GROUP
    inside = (row < M)[:, None] & exists[None, :]
    column += group * K_GROUP
    at = row[:, None] * K + column[None, :]
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + column, mask=column < K, other=0.0)[None, :]
    if residual_ptr is not None:
        acc += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        acc = relu(acc)
    y = acc.to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + at, y, mask=inside)
    if partial_ptr is not None:
        rows = min(BLOCK_M, M - tile_m * BLOCK_M)
        value = tl.where((row < M)[:, None], y.to(tl.float32), 0.0)
        rough = tl.sum(value, 0) / rows
        off = tl.where((row < M)[:, None], value - rough[None, :], 0.0)
        correction = tl.sum(off, 0) / rows
        part = partial_ptr + 2 * tile_m.to(INDEX) * K + column
        tl.store(part, rough + correction, mask=exists)
        tl.store(part + K, tl.sum(off * off, 0) - correction * correction * rows, mask=exists)


def merging(width: int, groups: int) -> int:
    """How many neighbouring groups of `width` input channels become one."""
    merge = 1
    while merge * width < MERGED and groups % (2 * merge) == 0:
        merge *= 2
    return merge


def pack(weight: Tensor, groups: int) -> tuple[Tensor, int]:
    """A filter [K, C/groups, R, S] as dense KRSC with narrow groups merged, and the number of groups left.

    Where PyTorch's switch allows TF32, a float32 filter is rounded to it.
    """
    if arithmetic(weight.dtype, conv_tf32()) == "tf32":
        weight = rounded(weight)
    filters = weight.permute(0, 2, 3, 1)
    k, _, _, width = filters.shape
    if (merge := merging(width, groups)) == 1:
        return filters.contiguous(), groups
    merged = filters.new_zeros((k, *filters.shape[1:3], merge, width))
    each = torch.arange(k, device=weight.device)
    merged[each, :, :, each // (k // groups) % merge] = filters
    return merged.flatten(3), groups // merge


def unpack(merged: Tensor, width: int, groups: int) -> Tensor:
    """`pack`'s inverse: of a KRSC filter with merged groups, the [K, width, R, S] of `groups` groups."""
    merge = merged.shape[3] // width
    if merge > 1:
        k = merged.shape[0]
        each = torch.arange(k, device=merged.device)
        merged = merged.unflatten(3, (merge, width))[each, :, :, each // (k // groups) % merge]
    return merged.permute(0, 3, 1, 2)


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
    geometry = Geometry(stride, padding, dilation, groups)
    y = empty(x, (x.shape[0], w.shape[0], *geometry.out_size(x.shape[2:], w.shape[1:3]))) if out is None else out
    if y.numel() == 0:
        return y
    k, r, s, c_group = w.shape
    m = y.numel() // k
    plain = (r, s) == (1, 1) and padding == (0, 0) and groups == 1
    problem = Problem("gemm" if plain and stride == (1, 1) else "conv", m, k // groups, c_group, r * s, groups)
    numbers = arithmetic(x.dtype, conv_tf32())
    run = partial(conv, x, w, bias, residual, relu=relu, **geometry._asdict())
    tile = tile or choose(problem, numbers, x.device, run)
    if problem.family == "gemm":
        gemm.gemm(x, w, bias, residual, y, m, tile, relu, numbers)
    else:
        _launch(x, None, w, bias, residual, y, None, geometry, relu, tile)
    return y


def conv_train(
    x: Tensor,
    w: Tensor,
    prologue: tuple[Tensor, Tensor] | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    statistics: bool = True,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor | None]:
    """conv(relu(x * scale + shift), w) for the `prologue` (scale, shift), or conv(x, w); and its statistics, or None.

    The first is as `conv`'s, the second is float32 [K, 3]: count, mean and sum of squared deviations from it of each
    channel as it was stored. `scale` and `shift` are float32 [C]; the rest is as for `conv`.
    """
    geometry = Geometry(stride, padding, dilation, groups)
    y = empty(x, (x.shape[0], w.shape[0], *geometry.out_size(x.shape[2:], w.shape[1:3])))
    k, r, s, c_group = w.shape
    m = y.numel() // k
    if y.numel() == 0:
        return y, torch.zeros((k, 3), dtype=torch.float32, device=x.device) if statistics else None
    numbers = arithmetic(x.dtype, conv_tf32())
    problem = Problem("conv_train", m, k // groups, c_group, r * s, groups)

    def run(tile: Tile) -> Tensor:
        return conv_train(x, w, prologue, **geometry._asdict(), statistics=statistics, tile=tile)[0]

    tile = tile or choose(problem, numbers, x.device, run)
    part = None
    if statistics:
        part = torch.empty((triton.cdiv(m, tile.m), 2, k), dtype=torch.float32, device=x.device)
    _launch(x, prologue, w, None, None, y, part, geometry, False, tile)
    return y, None if part is None else merge(part, tile.m, m)


def _launch(
    x: Tensor,
    prologue: tuple[Tensor, Tensor] | None,
    w: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    y: Tensor,
    part: Tensor | None,
    geometry: Geometry,
    relu: bool,
    tile: Tile,
) -> None:
    stride, padding, dilation, groups = geometry
    k, r, s, c_group = w.shape
    _, c, height, width = x.shape
    m = y.numel() // k
    scale, shift = prologue or (None, None)
    tiles = triton.cdiv(m, tile.m) * triton.cdiv(k // groups, tile.n) * groups
    with device_of(x):
        conv_kernel[(tiles,)](
            x,
            scale,
            shift,
            w,
            bias,
            residual,
            y,
            part,
            m,
            height,
            width,
            c,
            *y.shape[2:],
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
            PRECISION=precision(arithmetic(x.dtype, conv_tf32())),
            BLOCK_M=tile.m,
            BLOCK_N=tile.n,
            BLOCK_K=tile.k,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
