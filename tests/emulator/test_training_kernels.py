"""The Triton kernels of training, compiled for sm_80 and sm_90 and emulated: the passes of `TritonSteps`, bit by bit.

Their geometries and flags one by one are in `triton/interpreted/training.py`; here is what compilation may change.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from passes import Layer, Norm, affine, check_finalize, nhwc, tiles
from torch import Tensor

from fastres.backends.steps import Relu, Shortcut
from fastres.backends.triton_steps import TritonSteps
from fastres.emulator.triton import emulated
from fastres.tuning import Tile

STEPS = TritonSteps()
SMALL = Tile(64, 32, 32, 4, 3, 2)  # so that small problems have several tiles in every direction, and two splits
TARGETS = {"sm_80, fp16": (80, torch.float16), "sm_90, bf16": (90, torch.bfloat16)}
OTHERS = {"sm_80, bf16": (80, torch.bfloat16), "sm_90, fp16": (90, torch.float16)}
MULTIPLY = {80: "mma.sync", 90: "wgmma.mma_async"}


@pytest.fixture(autouse=True)
def _poisoned_outputs() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # fills what torch.empty gives with NaN
    yield
    torch.use_deterministic_algorithms(False)


def check(layer: Layer, target: int, dtype: torch.dtype, residual: bool = False) -> None:
    with emulated(target, multiprocessors=2, seed=1) as reports, tiles(SMALL):
        for run in (layer.check_conv, layer.check_wgrad, lambda *given: layer.check_dgrad(*given, residual=residual)):
            first = len(reports)
            run(STEPS, dtype)
            opcodes = {opcode for report in reports[first:] for opcode in report.instructions}
            assert any(opcode.startswith(MULTIPLY[target]) for opcode in opcodes)
    assert all(report.findings == () for report in reports)


@pytest.mark.parametrize("on", (TARGETS | OTHERS).values(), ids=TARGETS | OTHERS)
def test_strided(on: tuple[int, torch.dtype]) -> None:
    check(Layer(c=32, image=(13, 11), k=40, stride=(2, 2)), *on, residual=True)


LAYERS = {
    "3x3": Layer(c=40, image=(9, 7), k=64),
    "1x1, no prologue": Layer(c=64, image=(9, 9), k=48, kernel=(1, 1), padding=(0, 0), prologue=False),
    "dilated, strides of two kinds": Layer(image=(9, 8), stride=(3, 2), dilation=(2, 2), padding=(2, 1)),
    "grouped": Layer(c=64, image=(7, 6), k=64, groups=16),
    "odd channels": Layer(c=5, k=7),
}


@pytest.mark.parametrize("on", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_layer(layer: Layer, on: tuple[int, torch.dtype]) -> None:
    check(layer, *on)


@pytest.mark.parametrize("on", TARGETS.values(), ids=TARGETS)
def test_norm(on: tuple[int, torch.dtype]) -> None:
    target, dtype = on
    with emulated(target, multiprocessors=2, seed=1) as reports:
        Norm(c=72, image=(9, 11), shortcut=True, projected=True).check(STEPS, dtype)
        Norm(c=150, relu=False).check(STEPS, dtype)
        check_finalize(STEPS, 150, dtype, True)
    assert all(report.findings == () for report in reports)


@pytest.mark.parametrize("on", TARGETS.values(), ids=TARGETS)
def test_nan_and_infinity_go_where_pytorch_sends_them(on: tuple[int, torch.dtype]) -> None:
    with emulated(on[0], multiprocessors=2):
        Norm(shortcut=True).check(STEPS, on[1], not_finite=True)


@pytest.mark.parametrize("on", TARGETS.values(), ids=TARGETS)
def test_every_bit_is_the_same_on_every_run(on: tuple[int, torch.dtype]) -> None:
    """Whatever the order in which warps and blocks run and copies land: ten seeds."""
    target, dtype = on
    layer, norm = Layer(c=32, k=40), Norm(c=40)
    (x, prologue), weight, gradient = layer.input(dtype), layer.weight(dtype), layer.gradient(dtype)
    y, gamma, beta, _, other = norm.inputs(dtype)
    relu = Relu(affine(40), Shortcut(nhwc(torch.randn_like(y)), affine(40)))

    def step() -> list[Tensor]:
        moments, known = STEPS.finalize(torch.rand(40, 3), 60, gamma, beta, 1e-5)
        sums = STEPS.gradient_sums(y, other, moments.mean, relu)
        return [
            *STEPS.conv(x, weight, layer.geometry, prologue),
            STEPS.conv_alone(x, weight, layer.geometry, prologue),
            STEPS.dgrad(gradient, weight, x, layer.geometry),
            STEPS.wgrad(gradient, x, weight, layer.geometry, prologue),
            STEPS.apply(y, known),
            STEPS.apply(y, *relu),
            sums,
            *STEPS.bn_backward(y, other, moments, sums, relu, keep_masked=True),
        ]

    runs = []
    for seed in range(10):
        torch.manual_seed(0)
        with emulated(target, multiprocessors=2, seed=seed) as reports, tiles(SMALL):
            runs.append(step())
        assert all(report.findings == () for report in reports)
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))
    convolved, _, alone, *_, out, _, _, masked = runs[0]
    assert torch.equal(convolved, alone)
    assert torch.equal(masked, other.masked_fill(out == 0, 0))  # backward finds the ReLU as forward left it
