"""What training adds to csrc/kernels/conv_sm80.cu: a prologue, the statistics of what is stored, no bias."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from convolutions import Conv, Place
from torch import Tensor
from train_convolutions import check, tensors

from fastres import native
from fastres.backends import bn_plans, plans
from fastres.backends.emulator import emulate
from fastres.backends.steps import Affine

HALVES = (torch.bfloat16, torch.float16)
DTYPES = (*HALVES, torch.float32)
TILES = [(128, 128), (128, 64), (64, 64), (128, 32)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_every_tile(place: Place, tile: tuple[int, int], dtype: torch.dtype, stride: int) -> None:
    work = check(place, Conv(2, 24, 17, 15, 136, 3, stride, 1), dtype, (*tile, 1))
    assert work.moments is not None
    assert work.moments.shape[0] == -(-work.result.numel() // 136 // tile[0])
    assert work.plans[0].grid[0] > 3  # more than one tile each way


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [6, 10, 12])
def test_statistics_where_copies_are_narrow(place: Place, channels: int, dtype: torch.dtype) -> None:
    if dtype == torch.float32:
        channels //= 2
    work = check(place, Conv(2, channels, 9, 8, 20, 3, 1, 2, 2), dtype, prologue=False)
    assert work.plans[0].symbol.endswith(("copy8", "copy4", "copy2"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("padding", [0, 2, 4])
def test_padding_and_dilation(place: Place, padding: int, dtype: torch.dtype) -> None:
    check(place, Conv(2, 40, 7, 6, 24, 3, 1, padding, 2), dtype)


@pytest.mark.parametrize("groups", [2, 8])
def test_groups(place: Place, groups: int) -> None:
    check(place, Conv(1, 64, 7, 6, 96, 3, 2, 1, 1, groups), torch.bfloat16)


@pytest.mark.parametrize("splits", [2, 3])
def test_a_prologue_where_the_depth_is_split(place: Place, splits: int) -> None:
    work = check(place, Conv(1, 72, 5, 5, 44, 3, 1, 1), torch.float16, (64, 64, splits))
    assert work.moments is None
    assert work.plans[0].grid[2] == splits


@pytest.mark.parametrize("conv", [Conv(1, 8, 1, 1, 1, 3, 1, 1), Conv(5, 8, 1, 1, 8), Conv(1, 2048, 1, 1, 8)])
def test_tiny(place: Place, conv: Conv) -> None:
    check(place, conv, torch.float16, (128, 32, 1))


def test_nan_and_infinity_pass_the_prologue(place: Place) -> None:
    conv = Conv(2, 64, 8, 8, 64, 3, 1, 1)
    x, _, (scale, _) = tensors(conv, torch.bfloat16)
    torch.manual_seed(0)
    x[0, int(scale.argmax()), 2, 2], x[1, int(scale.argmin()), 7, 0] = float("nan"), float("-inf")
    check(place, conv, torch.bfloat16, x=x)


@pytest.mark.parametrize("seed", range(10))
def test_every_seed_gives_the_same_bits(seed: int) -> None:
    conv = Conv(2, 72, 9, 8, 72, 3, 1, 1)
    x, weight, prologue = tensors(conv, torch.bfloat16)

    def results(seed: int) -> list[Tensor]:
        operands = [(x, plans.pack(weight, None, conv.geometry))]
        work = plans.convolution(operands, False, prologue=prologue, moments=True, sms=108, tile=(64, 64, 1))
        assert work.moments is not None
        merge = bn_plans.merge(work.moments)
        emulate(work, seed)
        emulate(merge, seed)
        return [work.result, merge.result]

    assert all(map(torch.equal, results(seed), results(seed + 10)))


def test_what_statistics_and_prologue_cost_in_bytes() -> None:
    """12 bytes a filter and tile are written, and two vectors read, each once by a block."""
    conv = Conv(2, 64, 11, 9, 40)
    x, weight, prologue = tensors(conv, torch.bfloat16)

    def traffic(**kwargs: Any) -> Any:
        operands = [(x, plans.pack(weight, None, conv.geometry))]
        work = plans.convolution(operands, False, sms=108, tile=(64, 64, 1), **kwargs)
        return emulate(work)[0].traffic["global"]

    bare, statistics, both = traffic(), traffic(moments=True), traffic(moments=True, prologue=prologue)
    tiles = -(-2 * 11 * 9 // 64)
    assert statistics.write_requested - bare.write_requested == tiles * 40 * 12
    assert statistics.read_requested == bare.read_requested
    assert both.read_unique - statistics.read_unique == 64 * 2 * 4
    assert both.write_requested == statistics.write_requested


def test_what_does_not_fit_is_refused_by_name() -> None:
    conv = Conv(1, 8, 6, 6, 16, 3, 1, 1)
    x, weight, prologue = tensors(conv, torch.bfloat16)
    prepared, vector = plans.pack(weight, None, conv.geometry), torch.ones(8)
    for name, given in (("scale", Affine(vector[1:], vector)), ("shift", Affine(vector, vector.double()))):
        with pytest.raises(ValueError, match=rf"^prologue\.{name}: expected float32 \[8\]"):
            plans.convolution([(x, prepared)], False, prologue=given, sms=108)
    with pytest.raises(ValueError, match=r"^operands: expected 1 with a prologue, got 2"):
        plans.convolution([(x, prepared)] * 2, False, prologue=prologue, sms=108)
    with pytest.raises(ValueError, match=r"^moments: expected 1 operand, no bias, residual or ReLU"):
        plans.convolution([(x, prepared)], True, moments=True, sms=108)
    narrow = Conv(1, 4, 6, 6, 16)
    x, weight, prologue = tensors(narrow, torch.bfloat16)
    with pytest.raises(ValueError, match=r"^input_scale: expected .* multiples of 16 bytes, got 8"):
        plans.convolution([(x, plans.pack(weight, None, narrow.geometry))], False, prologue=prologue, sms=108)
    module = native.require()
    operand = module.ConvOperand(64, 64, 0, (4, 4, 8), (1, 1), (1, 1), (0, 0), (1, 1), 8)
    problem = module.ConvProblem([operand], (1, 4, 4, 8), 1, 0, 64, False, moments=64)
    with pytest.raises(ValueError, match=r"^splits\b.*expected"):
        module.conv_sm80_plan(module.DType.bf16, problem, 108, (64, 64, 2, 0), 64)
