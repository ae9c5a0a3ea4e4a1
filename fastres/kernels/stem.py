"""The network's first layers as one kernel: y = max_pool(relu(conv(x, w) + bias)), pooling 3x3 / 2 with padding 1.

    x     [N, H, W, C]     NHWC, dense, C small (3): float32, float16, bfloat16, or uint8 pixels
    w     [K, R, S, C]     KRSC, BatchNorm folded in
    bias  [K]              float32
    y     [N, P', Q', K]   P' = (P - 1) // 2 + 1 where the convolution's output is [N, P, Q, K]; Q' likewise

A row of the filter meets S * C neighbouring numbers of an image row, so the inner axis is walked row by row, BLOCK_K
wide.

The convolution's output, four times the size of y, never reaches memory. A program computes rows of BLOCK_W convolution
columns: the columns of a row are pooled in registers (adjacent pairs by a reshape, the left neighbour by a gather), the
rows as they come, so that each is computed once except the one above a program's first.

uint8 pixels become (pixel * scale + shift) per channel as they are loaded, before the zero padding: the same as
normalising the image first, border included.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..block import STEM_POOL, Geometry, pooled
from ..layout import empty
from ..tuning import Problem, Tile, architecture, arithmetic, choose, conv_tf32
from .launch import WIDE, device_of, precision
from .tile import product, relu


@triton.jit
def maximum(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def pooled_row(
    image,  # of x: the address of pixel (0, 0)
    w_ptr,
    bias,
    scale_ptr,
    shift_ptr,
    p,  # the convolution's row
    column,  # [BLOCK_W] its columns, from an odd one left of the first pooled pixel's middle
    filters,
    H,
    W,
    P,
    Q,
    STRIDE_H,
    STRIDE_W,
    PAD_H,
    PAD_W,
    C: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Row p of relu(conv(x)) pooled along its columns, [BLOCK_W / 2, BLOCK_N]; minus infinity outside the image.

    Entry i pools columns 2i-1, 2i, 2i+1 of `column`; entry 0 lacks its left neighbour and is not to be stored.
    """
    k = tl.arange(0, BLOCK_K)  # within a filter row: s * C + c
    x = (column * STRIDE_W - PAD_W)[:, None] * C + k[None, :]  # within an image row: w * C + c
    known = k < S * C
    acc = tl.zeros((BLOCK_W, BLOCK_N), tl.float32)
    for r in range(R):
        h = p * STRIDE_H - PAD_H + r
        inside = (known & (h >= 0) & (h < H))[None, :] & (x >= 0) & (x < W * C)
        a = tl.load(image + h * (W * C) + x, mask=inside, other=0)
        if scale_ptr is not None:
            scale, shift = tl.load(scale_ptr + k % C), tl.load(shift_ptr + k % C)
            a = tl.where(inside, a.to(tl.float32) * scale[None, :] + shift[None, :], 0.0)
        weights = w_ptr + filters[None, :] * (R * S * C) + (r * S * C + k)[:, None]
        b = tl.load(weights, mask=known[:, None], other=0.0)
        acc = product(a.to(b.dtype), b, acc, PRECISION)

    exists = (p >= 0) & (p < P) & (column >= 0) & (column < Q)
    row = tl.where(exists[:, None], relu(acc + bias[None, :]), float("-inf"))
    even, odd = tl.split(tl.permute(tl.reshape(row, (BLOCK_W // 2, 2, BLOCK_N)), (0, 2, 1)))
    place = tl.arange(0, BLOCK_W // 2)
    left = tl.broadcast_to(tl.where(place > 0, place - 1, 0)[:, None], (BLOCK_W // 2, BLOCK_N))
    return maximum(maximum(even, odd), tl.gather(odd, left, 0))


@triton.jit(do_not_specialize=["H", "W", "P", "Q", "POOLED_P", "POOLED_Q", "STRIDE_H", "STRIDE_W", "PAD_H", "PAD_W"])
def stem_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    scale_ptr,  # float32 [C], or None: x is floating and needs no scaling
    shift_ptr,
    y_ptr,
    H,
    W,
    P,
    Q,
    POOLED_P,
    POOLED_Q,
    K,
    STRIDE_H,
    STRIDE_W,
    PAD_H,
    PAD_W,
    C: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,  # pooled rows of a program
    BLOCK_W: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    USED: tl.constexpr = BLOCK_W // 2 - 1  # pooled columns of a program
    tiles_n = tl.cdiv(K, BLOCK_N)
    tiles_w = tl.cdiv(POOLED_Q, USED)
    tiles_h = tl.cdiv(POOLED_P, ROWS)
    tile = tl.program_id(0)
    n = tile // (tiles_n * tiles_w * tiles_h)
    first_p = tile // (tiles_n * tiles_w) % tiles_h * ROWS
    first_q = tile // tiles_n % tiles_w * USED

    pooled_q = first_q - 1 + tl.arange(0, BLOCK_W // 2)
    column = 2 * first_q - 2 + tl.arange(0, BLOCK_W)
    channel = tile % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    filters = tl.where(channel < K, channel, 0)
    bias = tl.load(bias_ptr + filters)
    image = x_ptr + n.to(INDEX) * H * W * C
    mine = (pooled_q >= first_q) & (pooled_q < POOLED_Q)

    above = pooled_row(
        image,
        w_ptr,
        bias,
        scale_ptr,
        shift_ptr,
        2 * first_p - 1,
        column,
        filters,
        H,
        W,
        P,
        Q,
        STRIDE_H,
        STRIDE_W,
        PAD_H,
        PAD_W,
        C,
        R,
        S,
        BLOCK_W,
        BLOCK_N,
        BLOCK_K,
        PRECISION,
    )
    # Pooled row i pools rows 2i-1, 2i and 2i+1, the last of which is also the first of pooled row i+1.
    for p in range(2 * first_p, 2 * min(first_p + ROWS, POOLED_P)):
        row = pooled_row(
            image,
            w_ptr,
            bias,
            scale_ptr,
            shift_ptr,
            p,
            column,
            filters,
            H,
            W,
            P,
            Q,
            STRIDE_H,
            STRIDE_W,
            PAD_H,
            PAD_W,
            C,
            R,
            S,
            BLOCK_W,
            BLOCK_N,
            BLOCK_K,
            PRECISION,
        )
        above = maximum(above, row)
        if p % 2 == 1:
            pixel = (n.to(INDEX) * POOLED_P + p // 2) * POOLED_Q + pooled_q
            at = pixel[:, None] * K + channel[None, :]
            tl.store(y_ptr + at, above.to(y_ptr.dtype.element_ty), mask=mine[:, None] & (channel < K)[None, :])
            above = row


def takes_pixels(numbers: str, arch: int) -> bool:
    """Whether 8-bit pixels may be normalised inside: in exact float32 not on sm_100.

    What Triton 3.6 sees to come from 8 bits it multiplies by tcgen05 in TF32 there, whatever its input_precision.
    """
    return numbers != "float32" or not 100 <= arch < 120


def stem(
    x: Tensor,
    w: Tensor,
    bias: Tensor,
    *,
    stride: tuple[int, int] = (2, 2),
    padding: tuple[int, int] = (3, 3),
    normalize: tuple[Tensor, Tensor] | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """max_pool(relu(conv(x, w) + bias), 3, 2, 1) as a new tensor [N, K, P', Q'] of `w`'s dtype, dense in channels_last.

    `x` is [N, C, H, W], dense in channels_last, of `w`'s dtype or, with `normalize`, uint8. `normalize` is
    (scale, shift), float32 [C] on `x`'s device: a pixel counts as pixel * scale + shift, so ImageNet's mean and
    deviation (in 0..1) are scale = 1 / (255 * deviation), shift = -mean / deviation. `w` is KRSC; `tile.m` counts
    convolution columns and `tile.group_m` pooled rows a program.

    Raises TypeError where `x` is of another dtype than these, ValueError for `normalize` where not `takes_pixels`.
    """
    if x.dtype != (w.dtype if normalize is None else torch.uint8):
        expected = (
            f"{w.dtype}, the dtype of the weights" if normalize is None else "torch.uint8, since `normalize` is given"
        )
        raise TypeError(f"x: expected {expected}, got {x.dtype}")
    n, c, height, width = x.shape
    k, r, s, _ = w.shape
    p, q = Geometry(stride, padding).out_size((height, width), (r, s))
    rows, columns = pooled((p, q), STEM_POOL)
    y = empty(x, (n, k, rows, columns), w.dtype)
    if y.numel() == 0:
        return y
    numbers = arithmetic(w.dtype, conv_tf32())
    if normalize is not None and not takes_pixels(numbers, architecture(x.device)):
        raise ValueError(
            "normalize: expected None in exact float32 on sm_100, as Triton rounds what was 8 bits to TF32"
        )
    run = partial(stem, x, w, bias, stride=stride, padding=padding, normalize=normalize)
    tile = tile or choose(Problem("stem", n * p * q, k, c * s, r, 1), numbers, x.device, run)
    tiles = n * triton.cdiv(rows, tile.group_m) * triton.cdiv(columns, tile.m // 2 - 1) * triton.cdiv(k, tile.n)
    scale, shift = normalize or (None, None)
    with device_of(x):
        stem_kernel[(tiles,)](
            x,
            w,
            bias,
            scale,
            shift,
            y,
            height,
            width,
            p,
            q,
            rows,
            columns,
            k,
            *stride,
            *padding,
            C=c,
            R=r,
            S=s,
            INDEX=tl.int64 if max(x.numel(), y.numel()) >= WIDE else tl.int32,
            PRECISION=precision(numbers),
            ROWS=tile.group_m,
            BLOCK_W=tile.m,
            BLOCK_N=tile.n,
            BLOCK_K=tile.k,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return y
