"""fastres' Triton kernels, as compiled for sm_80 and sm_90 (tensor descriptors, TMA and wgmma there), on the emulator.

Every byte is checked, so masks that are too wide, races and missing waits show, not only wrong numbers. And bfloat16,
which Triton's interpreter doesn't compute.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from tolerance import assert_right, to_oracle
from torch import Tensor

from fastres.emulator.report import Report
from fastres.emulator.triton import emulated
from fastres.kernels.conv import conv, pack
from fastres.kernels.gemm import gemm
from fastres.kernels.head import head
from fastres.kernels.projection import projection
from fastres.kernels.stem import stem
from fastres.tf32 import allowed, rounded
from fastres.tuning import Tile, arithmetic

SMALL = Tile(64, 32, 32, 4, 3)  # so that small problems have several tiles in every direction

Convolution = tuple[Tensor, Tensor, Tensor]  # x, weight, bias


@pytest.fixture(params=[torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=[80, 90], ids=["sm_80", "sm_90"])
def target(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def reports(target: int) -> Iterator[list[Report]]:
    with emulated(target, multiprocessors=2, seed=1) as reports:
        yield reports


def nhwc(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def operands(
    dtype: torch.dtype, c: int, k: int, image: tuple[int, int], kernel: int, n: int = 2, groups: int = 1
) -> Convolution:
    x = nhwc(torch.randn(n, c, *image).to(dtype))
    return x, torch.randn(k, c // groups, kernel, kernel).div(c**0.5).to(dtype), torch.randn(k)


CONVOLUTIONS = {
    "3x3": {"c": 32, "k": 40, "image": (9, 7), "kernel": 3},
    "3x3, stride 2": {"c": 48, "k": 64, "image": (13, 11), "kernel": 3, "stride": 2},
    "odd channels": {"c": 5, "k": 7, "image": (6, 5), "kernel": 3},
    "1x1": {"c": 64, "k": 48, "image": (9, 9), "kernel": 1},
    "1x1, stride 2": {"c": 40, "k": 64, "image": (9, 9), "kernel": 1, "stride": 2},
    "grouped": {"c": 64, "k": 64, "image": (7, 6), "kernel": 3, "groups": 4},
    "dilated": {"c": 16, "k": 16, "image": (10, 9), "kernel": 3, "dilation": 2},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name: str, dtype: torch.dtype, reports: list[Report]) -> None:
    case = dict(CONVOLUTIONS[name])
    stride, dilation, groups = case.pop("stride", 1), case.pop("dilation", 1), case.get("groups", 1)
    padding = dilation * (case["kernel"] // 2)
    x, weight, bias = operands(dtype, **case)

    def plain(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return F.relu(F.conv2d(x, weight, bias.to(x.dtype), stride, padding, dilation, groups) + residual)

    shape = F.conv2d(x.float(), weight.float(), None, stride, padding, dilation, groups).shape
    residual = nhwc(torch.randn(shape).to(dtype))
    packed, packed_groups = pack(weight, groups)
    y = conv(
        x,
        packed,
        bias,
        residual,
        relu=True,
        stride=(stride, stride),
        padding=(padding, padding),
        dilation=(dilation, dilation),
        groups=packed_groups,
        tile=SMALL,
    )
    given = x, weight, bias, residual
    assert_right(y, plain(*given), plain(*to_oracle(given)), name)
    assert all(report.findings == () for report in reports)


def test_the_tuning_table_s_own_tile(reports: list[Report]) -> None:
    x, weight, bias = operands(torch.bfloat16, 64, 64, (14, 14), 3, n=1)
    y = conv(x, pack(weight, 1)[0], bias, padding=(1, 1))

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias.to(x.dtype), padding=1)

    assert_right(y, plain(x, weight, bias), plain(*to_oracle((x, weight, bias))))
    assert len(reports) == 1


@pytest.mark.parametrize("shape", [(70, 48, 40), (1, 8, 8), (257, 24, 64), (33, 7, 13)])
def test_gemm(shape: tuple[int, int, int], dtype: torch.dtype, target: int, reports: list[Report]) -> None:
    m, n, k = shape
    x, w = torch.randn(m, k).to(dtype), torch.randn(n, k).div(k**0.5).to(dtype)
    bias, residual = torch.randn(n), torch.randn(m, n).to(dtype)

    def plain(x: Tensor, w: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return F.relu(F.linear(x, w, bias.to(x.dtype)) + residual)

    given = x, w, bias, residual
    y = torch.full((m, n), float("nan"), dtype=dtype)
    gemm(x, w, bias, residual, y, m, SMALL, True, arithmetic(dtype, tf32=False))
    assert_right(y, plain(*given), plain(*to_oracle(given)), str(shape))
    by_tma = any(opcode.startswith("cp.async.bulk.tensor") for opcode in reports[0].instructions)
    assert by_tma == (target == 90 and n % 8 == 0 and k % 8 == 0)


@pytest.mark.parametrize("name", ["3x3", "1x1"])
def test_tf32_rounds_to_nearest(name: str, target: int, reports: list[Report]) -> None:
    """Of positive operands with all their digits: the tensor cores would cut them, and such errors add up."""
    x, weight, bias = (t.abs() for t in operands(torch.float32, **CONVOLUTIONS[name]))
    padding = CONVOLUTIONS[name]["kernel"] // 2
    x[1, 3, 4, 5] = float("nan")

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, 1, padding)

    with allowed(True):
        y = conv(x, pack(weight, 1)[0], bias, padding=(padding, padding), tile=SMALL)
    given = x, weight, bias
    assert_right(y, plain(rounded(x), rounded(weight), bias), plain(*to_oracle(given)), name)
    opcode = "wgmma.mma_async" if target == 90 else "mma.sync"
    assert any("tf32" in text and text.startswith(opcode) for text in reports[0].instructions)
    assert reports[0].findings == ()


def test_projection(dtype: torch.dtype, reports: list[Report]) -> None:
    x, w, b = operands(dtype, 32, 48, (7, 6), 1)
    x2, w2, b2 = operands(dtype, 40, 48, (13, 11), 1)

    def plain(x: Tensor, w: Tensor, b: Tensor, x2: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        return F.relu(F.conv2d(x, w, b.to(x.dtype)) + F.conv2d(x2, w2, b2.to(x.dtype), 2))

    one = (pack(w, 1)[0], b, (1, 1), (0, 0), (1, 1))
    two = (pack(w2, 1)[0], b2, (2, 2), (0, 0), (1, 1))
    y = projection(x, one, x2, two, tile=SMALL)
    given = x, w, b, x2, w2, b2
    assert_right(y, plain(*given), plain(*to_oracle(given)))
    assert all(report.findings == () for report in reports)


def test_stem(dtype: torch.dtype, reports: list[Report]) -> None:
    x, w, b = operands(dtype, 3, 20, (27, 37), 7, n=1)

    def plain(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(F.conv2d(x, w, b.to(x.dtype), 2, 3)), 3, 2, 1)

    y = stem(x, pack(w, 1)[0], b, tile=Tile(32, 32, 32, 4, 1, 3))
    assert_right(y, plain(x, w, b), plain(*to_oracle((x, w, b))))
    assert all(report.findings == () for report in reports)


def test_head(dtype: torch.dtype, reports: list[Report]) -> None:
    x, w, b = nhwc(torch.randn(3, 72, 7, 7).to(dtype)), torch.randn(10, 72).div(8).to(dtype), torch.randn(10)

    def plain(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.linear(x.mean((2, 3)), w, b.to(x.dtype))

    assert_right(head(x, w, b), plain(x, w, b), plain(*to_oracle((x, w, b))))
    assert len(reports) == 2  # the pooling and the product
