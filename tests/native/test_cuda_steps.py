"""The passes of a training step on the CUDA kernels, against autograd in float64 (tests/passes.py)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from passes import Layer, Norm, affine, check_finalize, nhwc

from fastres.backends import plans
from fastres.backends.cuda import Cuda
from fastres.backends.cuda_steps import CudaSteps, transposed
from fastres.backends.emulator import Emulator
from fastres.backends.plans import HOPPER
from fastres.backends.steps import Affine, Shortcut, Steps
from fastres.block import Geometry

HALVES = (torch.bfloat16, torch.float16)
every_half = pytest.mark.parametrize("dtype", HALVES, ids=str)

LAYERS = {
    "1x1": Layer(kernel=(1, 1), padding=(0, 0)),
    "first": Layer(c=3, kernel=(7, 7), stride=(2, 2), padding=(3, 3), prologue=False),
    "3x3": Layer(c=40, image=(9, 7), k=72),
    "strided 3x3": Layer(c=40, image=(9, 7), k=72, stride=(2, 2)),
    "strided 1x1": Layer(kernel=(1, 1), stride=(2, 2), padding=(0, 0), prologue=False),
    "dilated": Layer(dilation=(2, 2), padding=(2, 2)),
    "no padding": Layer(padding=(0, 0)),
    "oblong": Layer(kernel=(3, 1), padding=(2, 0), dilation=(2, 1), stride=(1, 1)),
    "grouped": Layer(c=32, k=32, groups=4),
    "narrow groups": Layer(c=32, k=64, groups=8, stride=(2, 2)),
    "odd channels": Layer(c=7, k=13),
    "padded beyond its reach": Layer(kernel=(1, 1), padding=(1, 1)),
    "split depth": Layer(n=1, c=1024, image=(3, 3), kernel=(1, 1), padding=(0, 0)),
}
every_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())


@pytest.fixture(params=["emulator", pytest.param("cuda", marks=pytest.mark.gpu)])
def steps(request: pytest.FixtureRequest) -> Iterator[CudaSteps]:
    """On CPU tensors in the emulator; on a GPU with tensors made there."""
    on_gpu = request.param == "cuda"
    with torch.device("cuda") if on_gpu else nullcontext():
        yield CudaSteps(Cuda() if on_gpu else Emulator())


@every_half
@every_layer
def test_conv(steps: CudaSteps, layer: Layer, dtype: torch.dtype) -> None:
    layer.check_conv(steps, dtype)


@every_half
@pytest.mark.parametrize("name", ["3x3", "odd channels", "split depth"])
def test_a_convolution_without_statistics_is_the_same(steps: CudaSteps, name: str, dtype: torch.dtype) -> None:
    layer = LAYERS[name]
    (x, prologue), weight = layer.input(dtype), layer.weight(dtype)
    given = x, weight, layer.geometry, prologue
    assert torch.equal(steps.conv_alone(*given), steps.conv(*given)[0])


@every_half
@every_layer
@pytest.mark.parametrize("residual", [False, True])
def test_dgrad(steps: CudaSteps, layer: Layer, dtype: torch.dtype, residual: bool) -> None:
    layer.check_dgrad(steps, dtype, residual)


@pytest.mark.parametrize("name", ["1x1", "3x3"])
def test_dgrad_by_conv_sm90(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hopper = Emulator("emulator_sm90", HOPPER)
    kernels: list[str] = []
    run = hopper.run
    monkeypatch.setattr(hopper, "run", lambda work: kernels.append(work.plans[0].symbol) or run(work))
    LAYERS[name].check_dgrad(CudaSteps(hopper), torch.bfloat16, True)
    assert [kernel[:9] for kernel in kernels] == ["conv_sm90"]


@every_layer
def test_wgrad(steps: CudaSteps, layer: Layer) -> None:
    """On a GPU it is cuDNN's, which rounds to bfloat16."""
    layer.check_wgrad(steps, torch.bfloat16, narrow=torch.get_default_device().type == "cuda")


@every_half
@pytest.mark.parametrize(
    "norm",
    [
        Norm(),
        Norm(relu=False),
        Norm(shortcut=True),
        Norm(shortcut=True, projected=True, c=20),
        Norm(n=3, c=9, image=(1, 1)),
    ],
    ids=str,
)
def test_norm(steps: CudaSteps, norm: Norm, dtype: torch.dtype) -> None:
    norm.check(steps, dtype)


@pytest.mark.parametrize(
    ("channels", "shortcut", "launched"),
    [
        (16, False, ["bn_pool_bf16_3x3s2", "bn_pool_taps_bf16_3x3s2", "bn_pool_gather_bf16_3x3s2"]),
        (12, False, ["bn_apply_bf16"] * 2),
        (16, True, ["bn_apply_bf16"] * 2),
    ],
    ids=["kernels", "odd channels", "shortcut"],
)
def test_pool(channels: int, shortcut: bool, launched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernels do not fit, the passes that every backend has; the same bits."""
    emulator = Emulator()
    symbols: list[str] = []
    run = emulator.run
    monkeypatch.setattr(emulator, "run", lambda work: symbols.extend(p.symbol for p in work.plans) or run(work))
    steps = CudaSteps(emulator)
    y, other = (nhwc(torch.randn(2, channels, 7, 6).bfloat16()) for _ in range(2))
    given = affine(channels), Shortcut(other) if shortcut else None, True, (3, 2, 1)
    gradient = nhwc(torch.ones(2, channels, 4, 3).bfloat16())  # sums of up to four are exact
    pooled, back = steps.apply_pool(y, *given), steps.pool_backward(y, gradient, *given)
    assert symbols == launched
    assert torch.equal(pooled, Steps.apply_pool(steps, y, *given))
    assert torch.equal(back, Steps.pool_backward(steps, y, gradient, *given))
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in (pooled, back))


@pytest.mark.parametrize("running", [None, torch.float32, torch.bfloat16])
def test_finalize(steps: CudaSteps, running: torch.dtype | None) -> None:
    check_finalize(steps, 40, running, affine_=running is not None)


def test_who_computes_what(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours are dgrad at stride 1 and every forward pass, each in as few launches as its docstring says."""
    launched: list[str] = []
    emulator = Emulator()
    steps = CudaSteps(emulator)

    def run(work: plans.Work) -> torch.Tensor:
        launched.extend(plan.symbol for plan in work.plans)
        return work.result

    monkeypatch.setattr(emulator, "run", run)
    dtype = torch.bfloat16

    def conv(name: str) -> list[str]:
        layer = LAYERS[name]
        launched.clear()
        (x, prologue), weight = layer.input(dtype), layer.weight(dtype)
        steps.conv(x, weight, layer.geometry, prologue)
        return launched

    def dgrad(name: str) -> list[str]:
        layer = LAYERS[name]
        launched.clear()
        x, _ = layer.input(dtype)
        steps.dgrad(layer.gradient(dtype), layer.weight(dtype), x, layer.geometry)
        return launched

    assert conv("1x1") == ["conv_sm80_bf16_128x32_copy16", "bn_merge_statistics"]
    assert conv("odd channels")[0] == "bn_apply_bf16"
    assert conv("split depth")[1:] == ["conv_sm80_bf16_reduce", "bn_statistics_bf16", "bn_merge_statistics"]
    assert dgrad("1x1") == ["conv_sm80_bf16_128x32_copy16"]
    assert dgrad("3x3") == ["conv_sm80_bf16_64x64_copy16", "conv_sm80_bf16_reduce"]
    assert dgrad("strided 3x3") == []
    assert dgrad("padded beyond its reach") == []


def test_dgrad_is_a_convolution_at_stride_1_alone() -> None:
    weight = torch.randn(8, 6, 3, 2)
    turned, geometry = transposed(weight, Geometry((1, 1), (0, 1), (2, 1), 2)) or (None, None)
    assert geometry == Geometry((1, 1), (4, 0), (2, 1), 2)
    assert turned is not None
    assert turned.shape == (12, 4, 3, 2)
    assert torch.equal(turned[7, 1], weight[5, 1].flip(0, 1))
    assert transposed(weight, Geometry((2, 1), (0, 0), (1, 1), 2)) is None
    assert transposed(weight, Geometry((1, 1), (0, 2), (1, 1), 2)) is None


def test_a_tensor_that_does_not_fit_is_refused_by_name(steps: CudaSteps) -> None:
    x = torch.ones(2, 8, 4, 4)
    with pytest.raises(ValueError, match=r"^operands\[0\]\.x: expected a tensor dense in"):
        steps.conv(x, torch.ones(8, 8, 1, 1), Geometry())
    with pytest.raises(ValueError, match=r"^affine\.scale: expected float32 \[8\]"):
        steps.apply(x.contiguous(memory_format=torch.channels_last), Affine(torch.ones(7), torch.ones(8)))
