"""Matrix product with its epilogue: y = relu(x @ w^T + bias + residual), the 1x1 convolutions of stride 1 and the head.

    x [M, K]   w [N, K]   bias [N]   residual, y [M, N]      all row-major and dense

On Hopper and sm_100, tiles come and go by tensor descriptor (TMA), whose hardware bounds the edges, and the kernel is
persistent: one program a multiprocessor walks over the output's tiles in grouped order, the two loops flattened into
one so that the loads of the next tile start under the epilogue of this one. Elsewhere, or where a row is not a
multiple of 16 bytes, tiles move by pointer and a program has one tile: Triton pipelines no pointer loads in a
flattened loop (seen in 3.6's PTX), and two programs on a multiprocessor overlap as well.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..tuning import Tile, architecture, processors
from .launch import WIDE, device_of, precision
from .tile import product, relu, swizzle


@triton.jit(do_not_specialize=["M"])
def gemm_kernel(
    x_ptr,  # x, w, residual and y: pointers, or tensor descriptors where DESCRIPTORS
    w_ptr,
    bias_ptr,  # may be None
    residual_ptr,  # may be None
    y_ptr,
    M,
    N,
    K,
    DESCRIPTORS: tl.constexpr,
    EVEN_K: tl.constexpr,
    RELU: tl.constexpr,
    INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP_M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), flatten=DESCRIPTORS):
        tile_m, tile_n = swizzle(tile, tiles_m, tiles_n, GROUP_M)
        row = tile_m.to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
        column = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
        x_rows = tl.where(row < M, row, 0) * K
        w_rows = tl.where(column < N, column, 0) * K
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start in range(0, K, BLOCK_K):
            if DESCRIPTORS:
                a = x_ptr.load([tile_m * BLOCK_M, start])
                b = w_ptr.load([tile_n * BLOCK_N, start]).T
            elif EVEN_K:
                a = tl.load(x_ptr + x_rows[:, None] + (start + inner)[None, :])
                b = tl.load(w_ptr + w_rows[None, :] + (start + inner)[:, None])
            else:
                k = start + inner
                a = tl.load(x_ptr + x_rows[:, None] + k[None, :], mask=(k < K)[None, :], other=0.0)
                b = tl.load(w_ptr + w_rows[None, :] + k[:, None], mask=(k < K)[:, None], other=0.0)
            acc = product(a, b, acc, PRECISION)

        if bias_ptr is not None:
            acc += tl.load(bias_ptr + column, mask=column < N, other=0.0).to(tl.float32)[None, :]
        if DESCRIPTORS:
            if residual_ptr is not None:
                acc += residual_ptr.load([tile_m * BLOCK_M, tile_n * BLOCK_N]).to(tl.float32)
            if RELU:
                acc = relu(acc)
            y_ptr.store([tile_m * BLOCK_M, tile_n * BLOCK_N], acc.to(y_ptr.dtype))
        else:
            inside = (row < M)[:, None] & (column < N)[None, :]
            at = row[:, None] * N + column[None, :]
            if residual_ptr is not None:
                acc += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
            if RELU:
                acc = relu(acc)
            tl.store(y_ptr + at, acc.to(y_ptr.dtype.element_ty), mask=inside)


def takes_descriptors(arch: int, numbers: str) -> bool:
    """Whether tiles move by TMA: on Hopper and data-centre Blackwell, whose matrix units read shared memory.

    Exact float32 and sm_120 multiply from registers; there, tiles of this size spill when they come by descriptor. TF32
    is rounded in registers, and in the flattened loop Triton 3.6 then reads sums before it waits for their wgmma.
    """
    return 90 <= arch < 120 and numbers in ("bfloat16", "float16")


def gemm(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    y: Tensor,
    rows: int,
    tile: Tile,
    relu: bool,
    numbers: str,
    descriptors: bool | None = None,
) -> None:
    """Writes relu(x @ w^T + bias + residual) to `y`.

    Tensors are taken as matrices, `x`, `residual` and `y` of `rows` rows. `numbers` is from `tuning.arithmetic`: in
    "tf32", `w` was rounded to it beforehand. `descriptors` overrides whether tiles move by TMA.
    """
    columns = y.numel() // rows
    depth = x.numel() // rows
    if descriptors is None:
        descriptors = takes_descriptors(architecture(x.device), numbers)
    tensors = (x, w, y) if residual is None else (x, w, y, residual)
    pitch = min(depth, columns) | depth | columns  # its lowest set bit divides both row lengths
    descriptors = (
        descriptors
        and (pitch & -pitch) * x.element_size() % 16 == 0
        and all(t.data_ptr() % 16 == 0 for t in tensors)
        and rows < 1 << 31
    )

    def operand(tensor: Tensor | None, shape: tuple[int, int], block: tuple[int, int]) -> Any:
        if tensor is None or not descriptors:
            return tensor
        return TensorDescriptor(tensor, [*shape], [shape[1], 1], [*block])

    tiles = triton.cdiv(rows, tile.m) * triton.cdiv(columns, tile.n)
    with device_of(x):
        gemm_kernel[(min(processors(x.device), tiles) if descriptors else tiles,)](
            operand(x, (rows, depth), (tile.m, tile.k)),
            operand(w, (columns, depth), (tile.n, tile.k)),
            bias,
            operand(residual, (rows, columns), (tile.m, tile.n)),
            operand(y, (rows, columns), (tile.m, tile.n)),
            rows,
            columns,
            depth,
            DESCRIPTORS=descriptors,
            EVEN_K=depth % tile.k == 0,
            RELU=relu,
            INDEX=tl.int64 if max(x.numel(), y.numel()) >= WIDE else tl.int32,
            PRECISION=precision(numbers),
            GROUP_M=tile.group_m,
            BLOCK_M=tile.m,
            BLOCK_N=tile.n,
            BLOCK_K=tile.k,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
