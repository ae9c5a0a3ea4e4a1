"""csrc/kernels/conv_sm90*: every instantiation and flag, against the float64 oracle.

Blocks are few (`sms`), so that each computes more tiles than one and its rings turn over.
"""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from convolutions import HALVES, Conv, Place, check, check_operands, operand, plain
from tolerance import assert_right

from fastres import native
from fastres.backends import plans
from fastres.backends.emulator import emulate
from fastres.backends.steps import Affine
from fastres.block import Geometry

# Columns and cluster of each instantiation; rows are 128.
TILES = [(64, 1), (64, 2), (128, 1), (128, 2), (256, 1), (256, 2)]
NAMES = [f"conv_sm90_{t}_128x{n}_cluster{c}" for t in ("bf16", "fp16") for n, c in TILES]
SM90: dict[str, Any] = {"kernel": "conv_sm90", "sms": 2}


def tile(columns: int, cluster: int, splits: int = 1) -> tuple[int, int, int, int]:
    return 128, columns, splits, cluster


def test_every_instantiation_is_tested_here() -> None:
    names = {name for name, stem in native.require().build_info()["kernels"].items() if stem == "conv_sm90"}
    assert names == set(NAMES)


CONVOLUTIONS = {  # M and N tails, channels that fill no step, and more than one tile each way, at both strides
    "1x1": Conv(2, 136, 17, 16, 264),
    "1x1, stride 2": Conv(2, 72, 33, 31, 264, 1, 2),
    "3x3": Conv(2, 72, 17, 16, 264, 3, 1, 1),
    "3x3, stride 2": Conv(2, 40, 33, 31, 264, 3, 2, 1),
}


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shape", TILES, ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_every_instantiation(place: Place, name: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    work = check(place, CONVOLUTIONS[name], dtype, with_residual=True, tile=tile(*shape), **SM90)
    (plan,) = work.plans
    assert plan.symbol.endswith(f"_128x{shape[0]}_cluster{shape[1]}")
    assert (plan.grid, plan.cluster, plan.overlap) == ((2, 1, 1), (shape[1], 1, 1), True)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("shape", TILES, ids=str)
def test_flags(place: Place, shape: tuple[int, int], splits: int, residual: bool, relu: bool) -> None:
    """Without a residual, with one, and with the depth in three uneven parts."""
    dtype = HALVES[relu ^ residual]
    work = check(place, Conv(2, 200, 12, 13, 152), dtype, relu, residual, tile=tile(*shape, splits), **SM90)
    assert [plan.symbol.endswith("reduce") for plan in work.plans] == [False, True][: 1 + (splits > 1)]


@pytest.mark.parametrize(
    "conv",
    [
        Conv(2, 24, 11, 10, 40, 3, 1, 2, 2),  # dilation
        Conv(1, 16, 19, 21, 40, 3, 2, 3, 3),
        Conv(2, 64, 9, 8, 72, 3),  # no padding
        Conv(1, 136, 8, 8, 16, 1, 3, 1),  # a padded 1x1
        Conv(1, 8, 14, 15, 24, 5, 2, 2),
        Conv(2, 8, 23, 17, 16, 7, 4, 3),
        Conv(1, 8, 40, 40, 8, 3, 8, 1),  # the largest stride
        Conv(3, 512, 7, 7, 136, 3, 1, 1),  # as in the last stage
        Conv(5, 2048, 1, 1, 8),  # deeper than wide
        Conv(1, 8, 1, 1, 8),
        Conv(1, 8, 1, 1, 8, 3, 1, 1),  # all taps but one are padding
        Conv(130, 8, 1, 1, 8, 3, 2, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_windows_and_sizes(place: Place, conv: Conv, dtype: torch.dtype) -> None:
    check(place, conv, dtype, relu=False, **SM90)


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("shape", TILES, ids=str)
def test_two_operands(place: Place, shape: tuple[int, int], splits: int) -> None:
    """The projection shortcut: 3x3 and strided 1x1, and with the depth split, parts that lie in one or in both."""
    convs = [Conv(2, 72, 13, 12, 136, 3, 1, 1), Conv(2, 136, 25, 23, 136, 1, 2)]
    check_operands(place, convs, HALVES[splits > 1], tile(*shape, splits), **SM90)


def test_two_plain_operands(place: Place) -> None:
    check_operands(place, [Conv(2, 64, 12, 13, 264), Conv(2, 64, 12, 13, 264)], torch.bfloat16, tile(128, 1), **SM90)


@pytest.mark.parametrize("shape", [(64, 1), (256, 2)], ids=str)
@pytest.mark.parametrize("relu", [True, False])
def test_nan_and_infinity_stay_where_pytorch_puts_them(place: Place, shape: tuple[int, int], relu: bool) -> None:
    conv = Conv(2, 72, 12, 12, 72, 3, 1, 1)
    for dtype in HALVES:
        x = operand(conv, dtype)[0]
        x[0, 3, 2, 2], x[1, 71, 11, 0], x[1, 40, 7, 5] = float("nan"), float("inf"), float("-inf")
        check(place, conv, dtype, relu, True, tile(*shape), x, **SM90)


@pytest.mark.parametrize("shape", TILES, ids=str)
def test_the_result_may_be_written_over_the_residual(place: Place, shape: tuple[int, int]) -> None:
    device, run = place
    x, weight, bias, layer = operand(Conv(2, 32, 12, 13, 136), torch.float16)
    residual = torch.randn(2, 136, 12, 13).half().contiguous(memory_format=torch.channels_last)
    exact = plain(x.double(), weight.double(), bias.double(), layer, residual.double(), True)
    shared = residual.to(device, copy=True)
    prepared = plans.pack(weight.to(device), bias.to(device), layer.geometry)
    work = plans.convolution([(x.to(device), prepared)], True, shared, True, tile=tile(*shape), **SM90)
    assert run(work).data_ptr() == shared.data_ptr()
    assert_right(shared.cpu(), plain(x, weight, bias, layer, residual, True), exact)


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("shape", TILES, ids=str)
def test_ten_seeds_give_the_same_bits(shape: tuple[int, int], splits: int) -> None:
    """Whatever the order of warps, blocks and copies: two operands, a residual, rings that turn over."""
    conv = Conv(2, 72, 13, 11, 72, 3, 1, 1)
    x, weight, bias, layer = operand(conv, torch.bfloat16)
    residual = torch.randn(layer.out_size(x)).bfloat16().contiguous(memory_format=torch.channels_last)
    results = []
    for seed in range(10):
        work = plans.convolution(
            [(x, plans.pack(weight, bias, layer.geometry))], True, residual, tile=tile(*shape, splits), **SM90
        )
        emulate(work, seed)
        results.append(work.result)
    assert all(torch.equal(results[0], result) for result in results[1:])


@pytest.mark.parametrize("splits", [1, 2])
def test_without_a_bias(place: Place, splits: int) -> None:
    x, weight, bias, layer = operand(Conv(1, 72, 12, 13, 72, 3, 1, 1), torch.bfloat16)
    prepared = plans.pack(weight.to(place[0]), None, layer.geometry)
    work = plans.convolution([(x.to(place[0]), prepared)], False, tile=tile(64, 1, splits), **SM90)
    work.result.fill_(float("nan"))
    exact = plain(x.double(), weight.double(), 0 * bias.double(), layer, None, False)
    assert_right(place[1](work).cpu(), plain(x, weight, 0 * bias, layer, None, False), exact)


def test_a_misaligned_view_is_copied(place: Place) -> None:
    conv = Conv(1, 32, 6, 5, 16, 3, 1, 1)
    memory = torch.randn(4 + 32 * 6 * 5).bfloat16().to(place[0])
    x = memory[4:].view(1, 6, 5, 32).permute(0, 3, 1, 2)
    _, weight, bias, layer = operand(conv, torch.bfloat16)
    work = plans.convolution([(x, plans.pack(weight.to(place[0]), bias.to(place[0]), layer.geometry))], True, **SM90)
    exact = plain(x.cpu().double(), weight.double(), bias.double(), layer, None, True)
    assert_right(place[1](work).cpu(), plain(x.cpu(), weight, bias, layer, None, True), exact)


# --- what it takes ---------------------------------------------------------------------------------------------------

OBSTACLES: dict[str, tuple[Conv, torch.dtype]] = {
    "dtype": (Conv(1, 8, 6, 6, 8), torch.float32),
    "groups": (Conv(1, 16, 6, 6, 16, 3, 1, 1, 1, 2), torch.bfloat16),
    "k": (Conv(1, 8, 6, 6, 12), torch.bfloat16),
    "c": (Conv(1, 12, 6, 6, 8), torch.bfloat16),
    "stride": (Conv(1, 8, 20, 20, 8, 3, 9), torch.bfloat16),
    "pad": (Conv(1, 8, 6, 6, 8, 3, 1, 128, 64), torch.bfloat16),
    r"\(kernel - 1\) \* dilation": (Conv(1, 8, 140, 140, 8, 3, 1, 0, 65), torch.bfloat16),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_an_obstacle_is_named_and_refused(name: str) -> None:
    conv, dtype = OBSTACLES[name]
    x, weight, bias, layer = operand(conv, dtype)
    reason = plans.conv_sm90_unsupported(dtype, tuple(x.shape), plans.Filter.of(weight, layer.geometry))
    assert reason is not None
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        plans.convolution([(x, plans.pack(weight, bias, layer.geometry))], True, **SM90)


def test_a_prologue_is_refused() -> None:
    x, weight, _, layer = operand(Conv(1, 8, 6, 6, 8), torch.bfloat16)
    operands = [(x, plans.pack(weight, None, layer.geometry))]
    with pytest.raises(ValueError, match=r"^prologue: expected none$"):
        plans.convolution(operands, False, prologue=Affine(torch.ones(8), torch.ones(8)), **SM90)


def test_an_uneven_window_is_an_obstacle() -> None:
    for kernel, padding in (((3, 1), (1, 0)), ((3, 3), (1, 0)), ((1, 3), (0, 1))):
        filter = plans.Filter(8, 8, kernel, Geometry((1, 1), padding))
        assert "height and width" in (plans.conv_sm90_unsupported(torch.bfloat16, (1, 8, 6, 6), filter) or "")
    assert (
        plans.conv_sm90_unsupported(torch.bfloat16, (1, 8, 6, 6), plans.Filter(8, 8, (1, 1), Geometry((2, 1)))) is None
    )


def test_a_tile_that_there_is_not_is_refused() -> None:
    x, weight, bias, layer = operand(Conv(1, 64, 6, 6, 64), torch.bfloat16)
    for wrong, name in (((64, 64, 1, 1), "tile"), ((128, 64, 1, 3), "tile"), ((128, 64, 2, 1), "splits")):
        with pytest.raises(ValueError, match=f"^{name}: "):
            plans.convolution([(x, plans.pack(weight, bias, layer.geometry))], True, tile=wrong, **SM90)


def test_a_tile_is_chosen_by_the_size_of_the_problem() -> None:
    def symbols(n: int, c: int, h: int, k: int, r: int = 1) -> list[str]:
        x = torch.empty(n, c, h, h, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
        _, weight, bias, layer = operand(Conv(1, c, r, r, k, r, 1, r // 2), torch.bfloat16)
        work = plans.convolution([(x, plans.pack(weight, bias, layer.geometry))], True, sms=132, kernel="conv_sm90")
        return [plan.symbol.removeprefix("conv_sm90_bf16_128x") for plan in work.plans]

    assert symbols(64, 64, 56, 64) == ["64_cluster1"]
    assert symbols(64, 128, 28, 128, 3) == ["128_cluster1"]
    assert symbols(256, 256, 14, 256, 3) == ["256_cluster1"]
    assert symbols(1, 2048, 7, 512) == ["64_cluster1", "conv_sm80_bf16_reduce"]


# --- what was compiled -----------------------------------------------------------------------------------------------

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@cache
def machine_code() -> dict[str, str]:
    """The SASS of each conv_sm90 that this build ships."""
    command = [CUOBJDUMP, "-sass", "-arch", "sm_90a", native.require().__file__]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    functions = (part.partition("\n") for part in listing.split("Function : ")[1:])
    return {name.strip(): body for name, _, body in functions if name.startswith("conv_sm90")}


@pytest.mark.parametrize("name", NAMES)
def test_machine_code(name: str) -> None:
    code = machine_code()[name]
    columns, cluster = map(int, re.findall(r"x(\d+)_cluster(\d)", name)[0])
    products = re.findall(r"HGMMA\.(\w+)\.F32(\.BF16)?", code)
    assert {shape for shape, _ in products} == {f"64x{columns}x16"}
    assert all(bool(bf16) == ("bf16" in name) for _, bf16 in products)
    assert "UTMALDG.2D" in code  # x as a matrix, the residual
    assert "UTMALDG.4D.IM2COL" in code
    assert ("UTMALDG.3D.MULTICAST" in code) == (cluster == 2)
    assert "UTMASTG.2D" in code
    assert "STSM" in code
    assert "USETMAXREG" in code
    assert not re.search(r"\b(STL|LDL)\b", code), "local memory"
    # Only the wait for the step before and the last one: none that ptxas put in because it would not let them overlap.
    assert len(re.findall(r"WARPGROUP\.DEPBAR|WARPGROUP\.ARRIVE", code)) <= 4
    # Only a cluster's first and last barrier wait for all memory: in the main loop one up to doubled the time.
    assert len(re.findall(r"MEMBAR\.ALL\.GPU", code)) == (2 if cluster == 2 else 0)


def test_nothing_is_read_or_written_before_the_kernels_before_are_over() -> None:
    """Programmatic dependent launch, which the emulator runs as if there were none: griddepcontrol.wait comes first."""
    for body in native.ptx("conv_sm90").split(".entry")[1:]:
        lines = [line.strip() for line in body.splitlines()]
        wait, trigger = lines.index("griddepcontrol.wait;"), lines.index("griddepcontrol.launch_dependents;")
        touching = [i for i, line in enumerate(lines) if "global" in line and not line.startswith("//")]
        assert wait < trigger < min(touching)
        branches = [line for line in lines[:wait] if line.startswith(("bra", "@", "ret"))]
        assert not any("ret" in line for line in branches)
