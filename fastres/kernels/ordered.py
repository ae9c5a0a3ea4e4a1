"""Sums of partial results in a fixed order: [parts, L] float32 -> [L], the same on every run.

Work: an addition an element. Fewest bytes: 4 an element of `part`, once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import WIDE, device_of


@triton.jit(do_not_specialize=["PARTS"])
def ordered_sum_kernel(
    part_ptr, sum_ptr, PARTS, LENGTH, INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_L: tl.constexpr
):
    column = tl.program_id(0).to(INDEX) * BLOCK_L + tl.arange(0, BLOCK_L)
    total = tl.zeros((BLOCK_P, BLOCK_L), tl.float32)
    for start in range(0, PARTS, BLOCK_P):
        part = start + tl.arange(0, BLOCK_P)
        inside = (part < PARTS)[:, None] & (column < LENGTH)[None, :]
        total += tl.load(part_ptr + part.to(INDEX)[:, None] * LENGTH + column[None, :], mask=inside, other=0.0)
    tl.store(sum_ptr + column, tl.sum(total, 0), mask=column < LENGTH)


def ordered_sum(part: Tensor) -> Tensor:
    """The sum of a dense float32 [parts, ...] over its first axis."""
    total = torch.empty_like(part[0])
    length = total.numel()
    block_l = 64
    with device_of(part):
        ordered_sum_kernel[(triton.cdiv(length, block_l),)](
            part,
            total,
            part.shape[0],
            length,
            INDEX=tl.int64 if part.numel() >= WIDE else tl.int32,
            BLOCK_P=16,
            BLOCK_L=block_l,
            num_warps=4,
        )
    return total
