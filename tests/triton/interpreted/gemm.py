"""The matrix product: pointers and tensor descriptors, tails along every side, every flag."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from problems import DEVICE, SMALL
from tolerance import assert_right, to_oracle
from torch import Tensor

from fastres.kernels.gemm import gemm
from fastres.tuning import Tile, arithmetic

SHAPES = [(70, 48, 40), (16, 16, 16), (1, 8, 8), (49, 40, 136), (257, 24, 32)]  # M, N, K; rows of whole 16 bytes
ODD = [(33, 7, 13), (1, 1, 1), (40, 100, 24)]


def check(
    shape: tuple[int, int, int], dtype: torch.dtype, descriptors: bool, tile: Tile = SMALL, **flags: bool
) -> None:
    m, n, k = shape
    x, w = torch.randn(m, k).to(dtype), torch.randn(n, k).div(k**0.5).to(dtype)
    bias = torch.randn(n) if flags.get("bias", True) else None
    residual = torch.randn(m, n).to(dtype) if flags.get("residual", True) else None
    relu = flags.get("relu", True)

    def plain(x: Tensor, w: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        y = F.linear(x, w, None if bias is None else bias.to(x.dtype))
        y = y if residual is None else y + residual
        return F.relu(y) if relu else y

    inputs = x, w, bias, residual
    on_device = [None if t is None else t.to(DEVICE) for t in inputs]
    y = torch.empty(m, n, dtype=dtype, device=DEVICE)
    gemm(*on_device, y, m, tile, relu, arithmetic(dtype, tf32=False), descriptors)
    assert_right(y, plain(*inputs), plain(*to_oracle(inputs)), str(shape))


@pytest.mark.parametrize("descriptors", [False, True], ids=["pointers", "descriptors"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: tuple[int, int, int], descriptors: bool, dtype: torch.dtype) -> None:
    check(shape, dtype, descriptors)


@pytest.mark.parametrize("shape", ODD)
def test_rows_that_no_descriptor_takes_go_by_pointer(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    check(shape, dtype, descriptors=True)


@pytest.mark.parametrize("descriptors", [False, True], ids=["pointers", "descriptors"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_epilogue_flags(bias: bool, residual: bool, relu: bool, descriptors: bool) -> None:
    check((40, 24, 32), torch.float32, descriptors, bias=bias, residual=residual, relu=relu)


@pytest.mark.parametrize("descriptors", [False, True], ids=["pointers", "descriptors"])
@pytest.mark.parametrize("group_m", [1, 3, 8])
def test_every_tile_is_walked_once_in_any_order(group_m: int, descriptors: bool) -> None:
    check((112, 56, 16), torch.float32, descriptors, SMALL._replace(group_m=group_m))
