"""What the kernel families share: the implicit-GEMM main loop and the epilogue, on one tile of the output.

A convolution of x [N, H, W, C] with w [K, R, S, C/groups] is a GEMM whose rows are the output pixels (n, p, q), whose
columns are the output channels and whose inner axis is (r, s, c):

    y[(n, p, q), k] = sum over r, s, c of x[n, p*stride_h - pad_h + r*dilation_h, q*stride_w - ..., c] * w[k, r, s, c]

Nothing is gathered beforehand: each step of the main loop computes the addresses of its BLOCK_M x BLOCK_K piece of x.
Rows and columns past the end read the first one's values (no mask, so loads stay vectors) and are not stored.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def output_pixels(row, M, P, Q, STRIDE_H, STRIDE_W, PAD_H, PAD_W):
    """(n, h, w) of the first filter tap of each row's output pixel; h and w may lie in the padding."""
    pixel = tl.where(row < M, row, 0)
    q = pixel % Q
    p = pixel // Q % P
    return pixel // Q // P, p * STRIDE_H - PAD_H, q * STRIDE_W - PAD_W


@triton.jit
def multiply(
    acc,
    x_ptr,  # advanced to the group's first channel
    w_ptr,  # advanced to the group's first filter
    n,
    h,
    w,
    column,  # [BLOCK_N], clamped, within the group
    H,
    W,
    C,  # channels of x
    C_GROUP,  # of which one group reads these
    DILATION_H,
    DILATION_W,
    R: tl.constexpr,
    S: tl.constexpr,
    PADDED: tl.constexpr,  # False: no tap of any pixel lies outside x
    BY_TAP: tl.constexpr,  # BLOCK_K divides C_GROUP: each step lies within one tap
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    scale_ptr=None,  # of a prologue, float32, advanced to the group's first channel; None: x is taken as it is
    shift_ptr=None,
):
    """acc + im2col(x) @ w^T for one tile, in float32; or, with a prologue, of relu(x * scale + shift).

    In TF32, w was rounded beforehand.
    """
    inner = tl.arange(0, BLOCK_K)
    first = x_ptr + ((n * H + h) * W + w) * C
    filters = w_ptr + column * (R * S * C_GROUP)
    if BY_TAP:
        steps = C_GROUP // BLOCK_K
        for step in range(0, R * S * steps):
            tap = step // steps
            dh = tap // S * DILATION_H
            dw = tap % S * DILATION_W
            at = first + ((dh.to(n.dtype) * W + dw) * C + (step - tap * steps) * BLOCK_K)
            if PADDED:
                inside = (h + dh >= 0) & (h + dh < H) & (w + dw >= 0) & (w + dw < W)
                a = tl.load(at[:, None] + inner[None, :], mask=inside[:, None], other=0.0)
            else:
                a = tl.load(at[:, None] + inner[None, :])
            if scale_ptr is not None:
                channel = (step - tap * steps) * BLOCK_K + inner
                a = normalised(a, tl.load(scale_ptr + channel), tl.load(shift_ptr + channel))
                if PADDED:
                    a = tl.where(inside[:, None], a, 0.0)
            b = tl.load(filters[None, :] + (step * BLOCK_K + inner)[:, None])
            acc = product(a, b, acc, PRECISION)
    else:
        for start in range(0, R * S * C_GROUP, BLOCK_K):
            k = start + inner
            tap = k // C_GROUP
            dh = tap // S * DILATION_H
            dw = tap % S * DILATION_W
            within = k < R * S * C_GROUP
            at = (dh.to(n.dtype) * W + dw) * C + k - tap * C_GROUP
            inside = within[None, :]
            if PADDED:
                inside = inside & (h[:, None] + dh[None, :] >= 0) & (h[:, None] + dh[None, :] < H)
                inside = inside & (w[:, None] + dw[None, :] >= 0) & (w[:, None] + dw[None, :] < W)
            a = tl.load(first[:, None] + at[None, :], mask=inside, other=0.0)
            if scale_ptr is not None:
                channel = k - tap * C_GROUP
                scale = tl.load(scale_ptr + channel, mask=within, other=0.0)
                a = normalised(a, scale, tl.load(shift_ptr + channel, mask=within, other=0.0))
                a = tl.where(inside, a, 0.0)
            b = tl.load(filters[None, :] + k[:, None], mask=within[:, None], other=0.0)
            acc = product(a, b, acc, PRECISION)
    return acc


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b, of one step: in TF32 with b rounded beforehand.

    In exact float32 a step's sum is made apart: the error of a sum in a row grows with the root of its length.
    """
    if PRECISION == "ieee" and a.dtype == tl.float32:
        acc += tl.dot(a, b, input_precision=PRECISION, max_num_imprecise_acc=a.shape[1])
    else:
        acc = tl.dot(rounded(a, PRECISION), b, acc, input_precision=PRECISION)
    return acc


@triton.jit
def rounded(x, PRECISION: tl.constexpr):
    """x, in TF32 rounded to nearest, infinities and NaN kept: the tensor cores would round towards zero."""
    if PRECISION == "tf32":
        bits = x.to(tl.int32, bitcast=True)
        nearest = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
        x = tl.where(x == x, nearest, float("nan"))
    return x


@triton.jit
def relu(value):
    """max(value, 0) that keeps NaN, as PyTorch does: `max.NaN`, where plain `max` would drop it."""
    return tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def normalised(x, scale, shift):
    """relu(x * scale + shift) by channel, the columns of x: computed in float32, and rounded to x's dtype."""
    return relu(x.to(tl.float32) * scale[None, :] + shift[None, :]).to(x.dtype)


@triton.jit
def swizzle(tile, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """(m, n) of a tile when tiles are walked down columns of GROUP_M rows; 1 walks along the rows.

    Neighbours in time share a piece of x (along n) and of w (down GROUP_M), so both are found in L2.
    """
    group = tile // (GROUP_M * tiles_n)
    rows = min(tiles_m - group * GROUP_M, GROUP_M)
    within = tile - group * (GROUP_M * tiles_n)
    return group * GROUP_M + within % rows, within // rows
