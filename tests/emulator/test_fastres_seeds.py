"""fastres' Triton kernels, as compiled for sm_80 and sm_90, under every flag and ten seeds: right, and the same bits.

A seed chooses how warps and blocks interleave and how late asynchronous copies and products happen, so a wait that is
missing shows as a race, or as a result that one of the seeds changes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from test_fastres_kernels import SMALL, nhwc, operands
from tolerance import assert_right, to_oracle
from torch import Tensor

from fastres import reference
from fastres.emulator.triton import emulated
from fastres.kernels.conv import conv, pack
from fastres.kernels.gemm import gemm
from fastres.kernels.head import head
from fastres.kernels.projection import projection
from fastres.kernels.stem import stem
from fastres.pixels import MEAN, STD, Pixels
from fastres.tuning import Tile, arithmetic

SEEDS = range(10)


class Case(NamedTuple):
    """`run()` launches into new memory; `plain(*given)` is PyTorch's, in the dtype of what it is given."""

    run: Callable[[], Tensor]
    plain: Callable[..., Tensor]
    given: tuple[Any, ...]


def _conv(
    dtype: torch.dtype, c: int, relu: bool, residual: str, kernel: int = 3, stride: int = 1, groups: int = 1
) -> Case:
    x, weight, bias = operands(dtype, c, 40, (9, 7), kernel, groups=groups)
    padding = kernel // 2
    size = F.conv2d(x, weight, None, stride, padding, 1, groups).shape
    other = nhwc(torch.randn(size).to(dtype)) if residual != "none" else None
    packed, left = pack(weight, groups)
    geometry = {"stride": (stride, stride), "padding": (padding, padding), "groups": left}

    def run() -> Tensor:
        # A copy each time, as the result may be written over it.
        added = None if other is None else other.clone(memory_format=torch.channels_last)
        out = added if residual == "overwritten" else None
        return conv(x, packed, bias, added, relu=relu, **geometry, out=out, tile=SMALL)

    def plain(x: Tensor, weight: Tensor, bias: Tensor, other: Tensor | None) -> Tensor:
        y = F.conv2d(x, weight, bias.to(x.dtype), stride, padding, 1, groups)
        y = y if other is None else y + other
        return F.relu(y) if relu else y

    return Case(run, plain, (x, weight, bias, other))


def _gemm(
    dtype: torch.dtype, k: int, relu: bool, residual: bool, bias: bool = True, descriptors: bool | None = None
) -> Case:
    m, n = 70, 48
    x, w = torch.randn(m, k).to(dtype), torch.randn(n, k).div(k**0.5).to(dtype)
    offset, other = torch.randn(n) if bias else None, torch.randn(m, n).to(dtype) if residual else None

    def run() -> Tensor:
        y = torch.full((m, n), float("nan"), dtype=dtype)
        gemm(x, w, offset, other, y, m, SMALL, relu, arithmetic(dtype, tf32=False), descriptors)
        return y

    def plain(x: Tensor, w: Tensor, offset: Tensor | None, other: Tensor | None) -> Tensor:
        y = F.linear(x, w, None if offset is None else offset.to(x.dtype))
        y = y if other is None else y + other
        return F.relu(y) if relu else y

    return Case(run, plain, (x, w, offset, other))


def _projection(dtype: torch.dtype, c: int, kernel: int) -> Case:
    x, w, b = operands(dtype, c, 48, (7, 6), kernel)
    x2, w2, b2 = operands(dtype, 40, 48, (13, 11), 1)
    padding = kernel // 2
    first = pack(w, 1)[0], b, (1, 1), (padding, padding), (1, 1)
    second = pack(w2, 1)[0], b2, (2, 2), (0, 0), (1, 1)

    def plain(x: Tensor, w: Tensor, b: Tensor, x2: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        return F.relu(F.conv2d(x, w, b.to(x.dtype), 1, padding) + F.conv2d(x2, w2, b2.to(x.dtype), 2))

    return Case(partial(projection, x, first, x2, second, tile=SMALL), plain, (x, w, b, x2, w2, b2))


def _stem(dtype: torch.dtype, pixels: bool) -> Case:
    x, w, b = operands(dtype, 3, 40, (7, 65), 7, n=1)
    numbers = Pixels(MEAN, STD)
    normalize = torch.tensor(numbers.scale), torch.tensor(numbers.shift)
    if pixels:
        x = nhwc(torch.randint(0, 256, x.shape, dtype=torch.uint8))

    def plain(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        x = reference.normalize(x, numbers, w.dtype) if pixels else x
        return F.max_pool2d(F.relu(F.conv2d(x, w, b.to(x.dtype), 2, 3)), 3, 2, 1)

    tile = Tile(32, 32, 32, 4, 1, 1)
    run = partial(stem, x, pack(w, 1)[0], b, normalize=normalize if pixels else None, tile=tile)
    return Case(run, plain, (x, w, b))


def _head(dtype: torch.dtype, bias: bool) -> Case:
    x, w = nhwc(torch.randn(3, 72, 5, 5).to(dtype)), torch.randn(10, 72).div(8).to(dtype)
    b = torch.randn(10) if bias else None

    def plain(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return F.linear(x.mean((2, 3)), w, None if b is None else b.to(x.dtype))

    return Case(partial(head, x, w, b), plain, (x, w, b))


CASES: dict[str, Callable[[torch.dtype], Case]] = {
    "conv, by tap, relu, residual": lambda d: _conv(d, 32, True, "kept"),
    "conv, across taps": lambda d: _conv(d, 12, False, "none"),
    "conv, relu": lambda d: _conv(d, 32, True, "none", stride=2),
    "conv, residual overwritten": lambda d: _conv(d, 20, True, "overwritten"),
    "conv, not padded, residual": lambda d: _conv(d, 40, False, "kept", kernel=1, stride=2),
    "conv, grouped": lambda d: _conv(d, 64, True, "kept", groups=2),
    "gemm, relu, residual": lambda d: _gemm(d, 64, True, True),
    "gemm, odd depth": lambda d: _gemm(d, 45, False, False),
    "gemm, residual": lambda d: _gemm(d, 40, False, True),
    "gemm, relu, no bias": lambda d: _gemm(d, 64, True, False, bias=False),
    "gemm by pointer, relu, residual": lambda d: _gemm(d, 64, True, True, descriptors=False),
    "projection": lambda d: _projection(d, 32, 1),
    "projection, padded, across taps": lambda d: _projection(d, 12, 3),
    "stem": lambda d: _stem(d, pixels=False),
    "stem of 8-bit pixels": lambda d: _stem(d, pixels=True),
    "head": lambda d: _head(d, bias=True),
    "head, no bias": lambda d: _head(d, bias=False),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("target", [80, 90], ids=["sm_80", "sm_90"])
@pytest.mark.parametrize("name", CASES)
def test_ten_seeds(name: str, target: int, dtype: torch.dtype) -> None:
    run, plain, given = CASES[name](dtype)
    results = []
    for seed in SEEDS:
        with emulated(target, multiprocessors=2, seed=seed) as reports:
            results.append(run())
        assert all(report.findings == () for report in reports)
    assert_right(results[0], plain(*given), plain(*to_oracle(given)), name)
    assert all(torch.equal(results[0], result) for result in results[1:])
