"""Every instantiation of the convolution and of the stem, every flag, under ten seeds: right, and the same bits.

A seed chooses how warps and blocks interleave and how late asynchronous copies arrive. bn_act.cu's are in its own test.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_conv_sm80 import DTYPES, HALVES, TILES, Conv, operand, plain
from test_stem import pack
from test_stem import plain as plain_stem
from tolerance import assert_right

from fastres import native
from fastres.backends import plans
from fastres.backends.emulator import emulate

SEEDS = range(10)
SUFFIX = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "tf32"}


def _convolutions() -> Iterator[Any]:
    """(kernel's name, problem, dtype, tile, relu, residual): more than one tile each way, a tail in depth, and flags.

    The split depth is of 64 x 64, and its reduction has the epilogue's flags.
    """
    for dtype in DTYPES:
        size, name = dtype.itemsize, f"conv_sm80_{SUFFIX[dtype]}"
        for i, tile in enumerate(TILES):
            conv = Conv(1, 16 // size, tile[0] // 8 + 1, 9, tile[1] + 8, 3, 1, 1)
            yield f"{name}_{tile[0]}x{tile[1]}_copy16", conv, dtype, (*tile, 1), i % 2 == 0, i // 2 == 0
        for copy in (8, 4, 2):
            if copy >= size:
                conv = Conv(1, 5 * copy // size, 17, 9, 36, 3, 1, 1)
                yield f"{name}_128x32_copy{copy}", conv, dtype, (128, 32, 1), copy == 4, copy != 4
        for relu in (True, False):
            yield f"{name}_reduce", Conv(1, 24, 9, 8, 72, 3, 1, 1), dtype, (64, 64, 3), relu, not relu


CONVOLUTIONS = list(_convolutions())


@pytest.mark.parametrize(
    ("symbol", "conv", "dtype", "tile", "relu", "with_residual"),
    CONVOLUTIONS,
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_convolution(
    symbol: str, conv: Conv, dtype: torch.dtype, tile: tuple[int, int, int], relu: bool, with_residual: bool
) -> None:
    x, weight, bias, layer = operand(conv, dtype)
    residual = torch.randn(layer.out_size(x)).to(dtype).contiguous(memory_format=torch.channels_last)
    added = residual if with_residual else None
    results = []
    for seed in SEEDS:
        work = plans.convolution([(x, plans.pack(weight, bias, layer.geometry))], relu, added, sms=108, tile=tile)
        work.result.fill_(float("nan"))
        emulate(work, seed)
        results.append(work.result)
    assert work.plans[-1].symbol == symbol
    exact = plain(*(t.double() for t in (x, weight, bias)), layer, None if added is None else added.double(), relu)
    assert_right(results[0], plain(x, weight, bias, layer, added, relu), exact)
    assert all(torch.equal(results[0], result) for result in results[1:])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("pixels", [False, True], ids=["numbers", "pixels"])
def test_stem(pixels: bool, dtype: torch.dtype) -> None:
    weight, bias, prepared = pack(3, 72, dtype, torch.device("cpu"))
    x = torch.randint(0, 256, (1, 3, 9, 33), dtype=torch.uint8) if pixels else torch.randn(1, 3, 9, 33).to(dtype)
    scale, shift = (0.5, 0.25, 0.125), (-3.0, 1.0, 0.0)
    image = x
    if pixels:
        image = (x.float() * torch.tensor(scale).view(3, 1, 1) + torch.tensor(shift).view(3, 1, 1)).to(dtype)
    results = []
    for seed in SEEDS:
        work = plans.stem(x, prepared, scale, shift)
        work.result.fill_(float("nan"))
        emulate(work, seed)
        results.append(work.result)
    assert work.plans[0].symbol == f"stem_{SUFFIX[dtype]}" + "_uint8" * pixels
    exact = plain_stem(image.double(), weight.double(), bias.double())
    assert_right(results[0], plain_stem(image, weight, bias), exact)
    assert all(torch.equal(results[0], result) for result in results[1:])


def test_no_instantiation_is_left_out() -> None:
    built = {name for name, stem in native.require().build_info()["kernels"].items() if stem == "conv_sm80"}
    assert {symbol for symbol, *_ in CONVOLUTIONS} == built
