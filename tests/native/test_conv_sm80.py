"""csrc/kernels/conv_sm80.cu: every instantiation and flag, against the float64 oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from convolutions import HALVES, Conv, Place, check, check_operands, operand, plain
from tolerance import assert_right

from fastres import native
from fastres.backends import plans
from fastres.backends.emulator import emulate
from fastres.block import ConvBN, Geometry

DTYPES = (*HALVES, torch.float32)
TILES = [(128, 128), (128, 64), (64, 64), (128, 32)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_every_tile(place: Place, tile: tuple[int, int], dtype: torch.dtype, stride: int) -> None:
    work = check(place, Conv(2, 24, 17, 15, 136, 3, stride, 1), dtype, with_residual=True, tile=(*tile, 1))
    assert f"{tile[0]}x{tile[1]}_copy16" in work.plans[0].symbol
    assert work.plans[0].grid[0] > 3  # more than one tile each way


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("channels", "copy"), [(16, 16), (12, 8), (6, 4), (5, 2)])
def test_every_copy_width(place: Place, channels: int, copy: int, dtype: torch.dtype) -> None:
    work = check(place, Conv(2, channels, 9, 8, 20, 3, 1, 2, 2), dtype, with_residual=True)
    assert work.plans[0].symbol.endswith("copy16" if copy == 16 else f"copy{copy}")


@pytest.mark.parametrize(("channels", "copy"), [(8, 16), (6, 8), (5, 4)])
def test_every_copy_width_of_float32(place: Place, channels: int, copy: int) -> None:
    work = check(place, Conv(1, channels, 9, 8, 10, 3, 1, 1), torch.float32, relu=False)
    assert work.plans[0].symbol.endswith(f"copy{copy}")


@pytest.mark.parametrize("offset", [1, 2, 4])
def test_a_misaligned_view_takes_narrower_copies(place: Place, offset: int) -> None:
    conv = Conv(1, 32, 6, 5, 16, 3, 1, 1)
    memory = torch.randn(offset + 32 * 6 * 5).bfloat16().to(place[0])
    x = memory[offset:].view(1, 6, 5, 32).permute(0, 3, 1, 2)
    _, weight, bias, layer = operand(conv, torch.bfloat16)
    prepared = plans.pack(weight.to(place[0]), bias.to(place[0]), layer.geometry)
    work = plans.convolution([(x, prepared)], True, sms=108)
    assert work.plans[0].symbol.endswith(f"copy{2 * offset}")
    exact = plain(x.cpu().double(), weight.double(), bias.double(), layer, None, True)
    assert_right(place[1](work).cpu(), plain(x.cpu(), weight, bias, layer, None, True), exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("residual", [True, False])
def test_flags_and_split_depth(place: Place, dtype: torch.dtype, relu: bool, residual: bool) -> None:
    work = check(place, Conv(1, 64, 5, 5, 44, 3, 1, 1), dtype, relu, residual, tile=(64, 64, 3))
    assert work.plans[0].grid[2] == 3
    assert work.plans[1].symbol.endswith("reduce")


@pytest.mark.parametrize("groups", [2, 8, 32])
def test_groups(place: Place, groups: int) -> None:
    check(place, Conv(1, 64, 7, 6, 96 if groups != 32 else 32, 3, 2, 1, 1, groups), torch.bfloat16, with_residual=True)


@pytest.mark.parametrize(
    "conv", [Conv(1, 1, 1, 1, 1), Conv(5, 8, 1, 1, 8), Conv(1, 2048, 1, 1, 8), Conv(1, 3, 7, 7, 4, 7)]
)
def test_tiny(place: Place, conv: Conv) -> None:
    check(place, conv, torch.float16, relu=False)


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_operands(place: Place, dtype: torch.dtype, splits: int) -> None:
    check_operands(place, [Conv(2, 40, 9, 7, 72, 3, 1, 1), Conv(2, 24, 17, 13, 72, 1, 2)], dtype, (64, 64, splits))


def test_nan_and_infinity_stay_where_pytorch_puts_them(place: Place) -> None:
    for relu in (True, False):
        for groups in (1, 4):
            conv = Conv(2, 64, 8, 8, 64, 3, 1, 1, 1, groups)
            x = operand(conv, torch.bfloat16)[0]
            x[0, 3, 2, 2], x[1, 40, 7, 0] = float("nan"), float("-inf")
            check(place, conv, torch.bfloat16, relu, x=x)


def test_the_result_may_be_written_over_the_residual(place: Place) -> None:
    device, run = place
    x, weight, bias, layer = operand(Conv(1, 32, 6, 6, 40, 3, 1, 1), torch.float16)
    residual = torch.randn(1, 40, 6, 6).half().contiguous(memory_format=torch.channels_last)
    exact = plain(x.double(), weight.double(), bias.double(), layer, residual.double(), True)
    expected = plain(x, weight, bias, layer, residual, True)
    for splits in (1, 2):
        shared = residual.to(device, copy=True)
        prepared = plans.pack(weight.to(device), bias.to(device), layer.geometry)
        work = plans.convolution([(x.to(device), prepared)], True, shared, True, sms=108, tile=(64, 64, splits))
        assert run(work).data_ptr() == shared.data_ptr()
        assert_right(shared.cpu(), expected, exact)


@pytest.mark.parametrize("splits", [1, 3])
def test_ten_seeds_give_the_same_bits(splits: int) -> None:
    x, weight, bias, layer = operand(Conv(1, 72, 9, 8, 72, 3, 1, 1), torch.bfloat16)
    results = []
    for seed in range(10):
        work = plans.convolution([(x, plans.pack(weight, bias, layer.geometry))], True, sms=108, tile=(64, 64, splits))
        emulate(work, seed)
        results.append(work.result)
    assert all(torch.equal(results[0], result) for result in results[1:])


def test_a_tile_is_chosen_by_the_size_of_the_problem() -> None:
    def symbols(n: int, c: int, h: int, k: int) -> list[str]:
        x = torch.empty(n, c, h, h, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
        weight = torch.empty(k, c, 1, 1, dtype=torch.bfloat16)
        ones = torch.ones(k)
        layer = ConvBN(weight, None, None, None, ones, ones, None, 0.0, Geometry())
        return [
            plan.symbol
            for plan in plans.convolution([(x, plans.pack(weight, ones, layer.geometry))], True, sms=108).plans
        ]

    assert symbols(64, 64, 56, 256) == ["conv_sm80_bf16_128x128_copy16"]
    assert symbols(64, 256, 56, 64) == ["conv_sm80_bf16_128x64_copy16"]
    assert symbols(1, 2048, 7, 512) == ["conv_sm80_bf16_64x64_copy16", "conv_sm80_bf16_reduce"]
    assert symbols(4, 64, 8, 16) == ["conv_sm80_bf16_128x32_copy16"]


WRONG: dict[str, dict[str, Any]] = {
    "groups": {"groups": 3},
    "p": {"output": (1, 5, 4, 8)},
    "n": {"output": (0, 4, 4, 8)},
    "y": {"y": 8},
    "residual": {"residual": 24},
    "weight": {"weight": 8},
    "weight_pitch": {"weight_pitch": 16},
    "x": {"x": 1},
    "stride_h": {"stride": (0, 1)},
    "splits": {"tile": (64, 64, 99)},
    "tile": {"tile": (32, 32, 1)},
    "partial": {"tile": (64, 64, 2)},
}


@pytest.mark.parametrize("name", WRONG)
def test_what_would_corrupt_memory_is_refused_by_name(name: str) -> None:
    module = native.require()
    given: dict[str, Any] = {"groups": 1, "output": (1, 4, 4, 8), "stride": (1, 1), "tile": (64, 64, 1)}
    given |= {"x": 64, "y": 64, "residual": 0, "weight": 64, "weight_pitch": 72} | WRONG[name]
    operand = module.ConvOperand(
        given["x"], given["weight"], 64, (4, 4, 8), (3, 3), given["stride"], (1, 1), (1, 1), given["weight_pitch"]
    )
    problem = module.ConvProblem([operand], given["output"], given["groups"], given["residual"], given["y"], True)
    with pytest.raises(ValueError, match=rf"^{name}\b.*expected"):
        module.conv_sm80_plan(module.DType.bf16, problem, 108, (*given["tile"], 0), 0)


def test_tensors_that_do_not_fit_are_refused_by_name() -> None:
    x, weight, bias, layer = operand(Conv(1, 8, 6, 6, 16, 3, 1, 1), torch.bfloat16)
    prepared = plans.pack(weight, bias, layer.geometry)
    good = torch.empty(1, 16, 6, 6, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    for name, image, residual in (
        (r"operands\[0\]\.x", x.contiguous(), None),
        (r"operands\[0\]\.weight", x.half(), None),
        ("residual", x, good.half()),
        ("residual", x, good[:, :, :5]),
        ("residual", x, good.to("meta")),
        ("x", x.double(), None),
    ):
        with pytest.raises(ValueError, match=name + ": expected"):
            plans.convolution([(image, prepared)], True, residual, sms=108)
