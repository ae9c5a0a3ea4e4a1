"""BatchNorm with known statistics, ReLU and a shortcut: forward, its gradient's sums, and backward, one pass each.

    z = y * scale + shift [+ shortcut, or + shortcut * scale2 + shift2]
    apply      out = relu(z), or z
    sums       sum_g and sum_gy: of g, and of g * (y - mean); g is the gradient where relu passes it, 0 elsewhere
    backward   dy = scale * (g - sum_g / values - (y - mean) * invstd^2 * sum_gy / values), and g

    y, shortcut, out, gradient, dy, g   [rows, C]   N*H*W rows of NHWC tensors, of one dtype
    scale, shift, mean, invstd          [C]         float32
    sums                                [C, 2]      float32

z is computed by one function everywhere and rounded like the stored `out`, so that backward finds the ReLU as forward
left it. As in PyTorch, a gradient passes where z is NaN. A program sums a slab of rows; slabs are added in a fixed
order.

Work: 2 to 12 FLOPs an element: bound by memory. Fewest bytes: each tensor named once. A 56x56x256 layer, batch 256, in
16 bits is 411 MB a tensor: 0.3 ms at 4 TB/s for apply with a shortcut.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tuning import processors
from .launch import WIDE, device_of
from .ordered import ordered_sum
from .tile import relu

Affine = tuple[Tensor, Tensor]  # scale, shift
Shortcut = tuple[Tensor, Affine | None]
Relu = tuple[Affine, Shortcut | None]  # z's: what it passes is known from y


@triton.jit
def load_channels(ptr, channel, C):
    return tl.load(ptr + channel, mask=channel < C, other=0.0)[None, :]


@triton.jit
def argument(y, at, inside, channel, C, z):
    """z in float32 for a tile of y, from (scale, shift, shortcut, scale2, shift2), the last three or two None."""
    value = y.to(tl.float32) * load_channels(z[0], channel, C) + load_channels(z[1], channel, C)
    if z[2] is not None:
        other = tl.load(z[2] + at, mask=inside, other=0.0).to(tl.float32)
        if z[3] is not None:
            other = other * load_channels(z[3], channel, C) + load_channels(z[4], channel, C)
        value += other
    return value


@triton.jit
def passed(y, gradient_ptr, at, inside, channel, C, z):
    """g in float32 for a tile of y, z as in `argument`; where its scale is None, there is no ReLU."""
    g = tl.load(gradient_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if z[0] is not None:
        value = argument(y, at, inside, channel, C, z).to(y.dtype)
        g = tl.where(value.to(tl.float32) <= 0, 0.0, g)
    return g


@triton.jit(do_not_specialize=["ROWS"])
def apply_kernel(
    y_ptr,
    scale_ptr,
    shift_ptr,
    shortcut_ptr,  # may be None
    scale2_ptr,  # with shift2_ptr, or both None
    shift2_ptr,
    out_ptr,
    ROWS,
    C,
    RELU: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    tiles_c = tl.cdiv(C, BLOCK_C)
    row = (tl.program_id(0) // tiles_c).to(INDEX) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(0) % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (row < ROWS)[:, None] & (channel < C)[None, :]
    at = row[:, None] * C + channel[None, :]
    y = tl.load(y_ptr + at, mask=inside, other=0.0)
    out = argument(y, at, inside, channel, C, (scale_ptr, shift_ptr, shortcut_ptr, scale2_ptr, shift2_ptr))
    if RELU:
        out = relu(out)
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["ROWS", "SLAB"])
def sums_kernel(
    y_ptr,
    gradient_ptr,
    mean_ptr,
    scale_ptr,  # with shift_ptr, or both None: there is no ReLU
    shift_ptr,
    shortcut_ptr,  # may be None
    scale2_ptr,  # with shift2_ptr, or both None
    shift2_ptr,
    partial_ptr,  # [slabs, C, 2]
    ROWS,
    SLAB,  # rows of a program
    C,
    INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    tiles_c = tl.cdiv(C, BLOCK_C)
    slab = tl.program_id(0) // tiles_c
    channel = tl.program_id(0) % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    mean = load_channels(mean_ptr, channel, C)
    z = (scale_ptr, shift_ptr, shortcut_ptr, scale2_ptr, shift2_ptr)
    sum_g = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    sum_gy = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for start in range(slab * SLAB, min(slab * SLAB + SLAB, ROWS), BLOCK_P):
        row = start + tl.arange(0, BLOCK_P)
        inside = (row < ROWS)[:, None] & (channel < C)[None, :]
        at = row.to(INDEX)[:, None] * C + channel[None, :]
        y = tl.load(y_ptr + at, mask=inside, other=0.0)
        g = passed(y, gradient_ptr, at, inside, channel, C, z)
        sum_g += g
        sum_gy += g * (y.to(tl.float32) - mean)
    part = partial_ptr + (slab * C + channel) * 2
    tl.store(part, tl.sum(sum_g, 0), mask=channel < C)
    tl.store(part + 1, tl.sum(sum_gy, 0), mask=channel < C)


@triton.jit(do_not_specialize=["ROWS", "VALUES"])
def backward_kernel(
    y_ptr,
    gradient_ptr,
    mean_ptr,
    invstd_ptr,
    gain_ptr,  # gamma * invstd
    sums_ptr,
    scale_ptr,  # with shift_ptr, or both None: there is no ReLU
    shift_ptr,
    shortcut_ptr,  # may be None
    scale2_ptr,  # with shift2_ptr, or both None
    shift2_ptr,
    dy_ptr,  # may be gradient_ptr
    masked_ptr,  # may be None
    ROWS,
    C,
    VALUES,
    INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    tiles_c = tl.cdiv(C, BLOCK_C)
    row = (tl.program_id(0) // tiles_c).to(INDEX) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(0) % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (row < ROWS)[:, None] & (channel < C)[None, :]
    at = row[:, None] * C + channel[None, :]
    y = tl.load(y_ptr + at, mask=inside, other=0.0)
    g = passed(y, gradient_ptr, at, inside, channel, C, (scale_ptr, shift_ptr, shortcut_ptr, scale2_ptr, shift2_ptr))
    invstd = load_channels(invstd_ptr, channel, C)
    mean_g = load_channels(sums_ptr, 2 * channel, 2 * C) / VALUES
    slope = load_channels(sums_ptr, 2 * channel + 1, 2 * C) / VALUES * invstd * invstd
    off = y.to(tl.float32) - load_channels(mean_ptr, channel, C)
    dy = load_channels(gain_ptr, channel, C) * (g - mean_g - off * slope)
    if masked_ptr is not None:
        tl.store(masked_ptr + at, g.to(masked_ptr.dtype.element_ty), mask=inside)
    tl.store(dy_ptr + at, dy.to(dy_ptr.dtype.element_ty), mask=inside)


def apply(y: Tensor, affine: Affine, shortcut: Shortcut | None = None, relu: bool = True) -> Tensor:
    """relu(z), or z, as a new tensor like `y`: [N, C, H, W], dense in channels_last.

    `shortcut` is (a tensor like y, its own scale and shift or None). Vectors are float32 [C].
    """
    out = torch.empty_like(y)
    if out.numel() > 0:
        rows, grid, options = _tiles(y)
        with device_of(y):
            apply_kernel[grid](y, *affine, *_flat(shortcut), out, rows, y.shape[1], RELU=relu, **options)
    return out


def gradient_sums(y: Tensor, gradient: Tensor, mean: Tensor, relu: Relu | None = None) -> Tensor:
    """Float32 [C, 2]: the sums of g and of g * (y - mean), over all rows."""
    rows, c = y.numel() // y.shape[1], y.shape[1]
    if rows == 0:
        return torch.zeros((c, 2), dtype=torch.float32, device=y.device)
    block_p, block_c = _block(c, 2048)
    tiles_c = triton.cdiv(c, block_c)
    slabs = min(triton.cdiv(rows, block_p), triton.cdiv(4 * processors(y.device), tiles_c))
    slab = triton.cdiv(triton.cdiv(rows, slabs), block_p) * block_p
    slabs = triton.cdiv(rows, slab)
    part = torch.empty((slabs, c, 2), dtype=torch.float32, device=y.device)
    with device_of(y):
        sums_kernel[(slabs * tiles_c,)](
            y,
            gradient,
            mean,
            *_mask(relu),
            part,
            rows,
            slab,
            c,
            INDEX=_index(y),
            BLOCK_P=block_p,
            BLOCK_C=block_c,
            num_warps=4,
        )
    return ordered_sum(part)


def backward(
    y: Tensor,
    gradient: Tensor,
    mean: Tensor,
    invstd: Tensor,
    scale: Tensor,
    values: int,
    sums: Tensor,
    relu: Relu | None = None,
    *,
    overwrite: bool = False,
    keep_masked: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """dy, and g if `keep_masked`, like `y`; `scale` is gamma * invstd. With `overwrite`, dy is `gradient`'s memory."""
    dy = gradient if overwrite else torch.empty_like(y)
    masked = torch.empty_like(y) if keep_masked else None
    if y.numel() > 0:
        rows, grid, options = _tiles(y)
        with device_of(y):
            backward_kernel[grid](
                y, gradient, mean, invstd, scale, sums, *_mask(relu), dy, masked, rows, y.shape[1], values, **options
            )
    return dy, masked


def _flat(shortcut: Shortcut | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, affine = shortcut or (None, None)
    scale, shift = affine or (None, None)
    return x, scale, shift


def _mask(relu: Relu | None) -> tuple[Tensor | None, ...]:
    affine, shortcut = relu or (None, None)
    return (*(affine or (None, None)), *_flat(shortcut))


def _block(channels: int, elements: int) -> tuple[int, int]:
    block_c = max(16, min(128, triton.next_power_of_2(channels)))
    return elements // block_c, block_c


def _index(y: Tensor) -> tl.dtype:
    return tl.int64 if y.numel() >= WIDE else tl.int32


def _tiles(y: Tensor) -> tuple[int, tuple[int], dict[str, object]]:
    """Rows, grid and options of a launch in which a program has one tile."""
    rows, c = y.numel() // y.shape[1], y.shape[1]
    block_p, block_c = _block(c, 4096)
    grid = (triton.cdiv(rows, block_p) * triton.cdiv(c, block_c),)
    return rows, grid, {"INDEX": _index(y), "BLOCK_P": block_p, "BLOCK_C": block_c, "num_warps": 4}
