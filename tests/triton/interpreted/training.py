"""The passes of a training step: every geometry and flag, odd and tiny shapes, NaN and infinity."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from passes import Layer, Norm, check_finalize, tiles
from problems import DEVICE

from fastres.backends.triton_steps import TritonSteps
from fastres.kernels.statistics import merge
from fastres.tuning import Tile

STEPS = TritonSteps()
SMALL = Tile(32, 16, 32, 4, 2, 2)  # of 2 splits


@pytest.fixture(autouse=True)
def _on_the_device() -> Iterator[None]:
    with torch.device(DEVICE):
        yield


LAYERS = {
    "3x3": Layer(image=(5, 4)),
    "3x3 / 2, K steps within a tap": Layer(n=1, c=32, image=(9, 7), k=20, stride=(2, 2)),
    "1x1": Layer(c=32, image=(5, 4), kernel=(1, 1), padding=(0, 0)),
    "1x1 / 2": Layer(c=32, image=(9, 8), kernel=(1, 1), padding=(0, 0), stride=(2, 2)),
    "5x2 / (3, 2), dilated": Layer(n=1, image=(9, 8), kernel=(5, 2), stride=(3, 2), dilation=(2, 3), padding=(5, 1)),
    "7x7 / 2, 3 channels, no prologue": Layer(
        n=1, c=3, image=(9, 7), kernel=(7, 7), stride=(2, 2), padding=(3, 3), prologue=False
    ),
    "stride wider than the image": Layer(n=1, c=5, image=(1, 3), k=7, kernel=(1, 1), padding=(0, 0), stride=(3, 4)),
    "padding wider than the filter": Layer(n=1, c=5, image=(3, 4), k=7, kernel=(1, 2), padding=(2, 1), stride=(2, 1)),
    "groups": Layer(n=1, c=24, k=36, groups=3),
    "merged groups that leave several": Layer(n=1, c=48, k=24, groups=12, image=(4, 5)),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_convolution_and_its_gradients(layer: Layer, dtype: torch.dtype) -> None:
    with tiles(SMALL):
        layer.check_conv(STEPS, dtype)
        layer.check_dgrad(STEPS, dtype, residual=layer.stride != (1, 1))
        layer.check_wgrad(STEPS, dtype)


def test_what_else_dgrad_may_be_asked(dtype: torch.dtype) -> None:
    with tiles(SMALL):
        LAYERS["1x1 / 2"].check_dgrad(STEPS, dtype)
        LAYERS["1x1"].check_dgrad(STEPS, dtype, residual=True)
        LAYERS["3x3"].check_dgrad(STEPS, dtype, residual=True)


def test_convolution_without_statistics(dtype: torch.dtype) -> None:
    with tiles(SMALL):
        LAYERS["1x1"].check_conv_alone(STEPS, dtype)


def test_the_table_s_own_tiles(dtype: torch.dtype) -> None:
    layer = Layer(n=1, c=32, k=32)
    layer.check_conv(STEPS, dtype)
    layer.check_dgrad(STEPS, dtype)
    layer.check_wgrad(STEPS, dtype)


NORMS = {
    "plain": Norm(relu=False),
    "relu": Norm(),
    "shortcut": Norm(shortcut=True, relu=False),
    "shortcut, relu": Norm(shortcut=True),
    "projected": Norm(shortcut=True, projected=True),
    "several tiles each way": Norm(n=1, c=150, image=(13, 11)),
    "one channel": Norm(c=1),
}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_norm(norm: Norm, dtype: torch.dtype) -> None:
    norm.check(STEPS, dtype)


def test_nan_and_infinity_go_where_pytorch_sends_them(dtype: torch.dtype) -> None:
    Norm(shortcut=True).check(STEPS, dtype, not_finite=True)


@pytest.mark.parametrize("running", [None, torch.float32, torch.float16])
@pytest.mark.parametrize("affine", [False, True])
def test_finalize(running: torch.dtype | None, affine: bool) -> None:
    check_finalize(STEPS, 150, running, affine)


@pytest.mark.parametrize("parts", [1, 70, 1100])
def test_statistics_of_many_parts(parts: int) -> None:
    """Of values far from zero, in parts of 2 and a last one of 1; over 1,024 of them are merged in two launches."""
    values = torch.randn(2 * parts - 1, 40) + 1000
    pairs = torch.cat([values, values[-1:]]).unflatten(0, (parts, 2))
    mean, m2 = pairs.mean(1), (pairs - pairs.mean(1, keepdim=True)).square().sum(1)
    count, merged_mean, merged_m2 = merge(torch.stack([mean, m2], 1), 2, len(values)).T
    var, exact = torch.var_mean(values.double(), 0, correction=0)
    assert (count == len(values)).all()
    assert (merged_mean - exact).abs().max() <= 2 * torch.finfo(torch.float32).eps * 1000
    assert (merged_m2 - var * len(values)).abs().max() <= 1e-5 * (var * len(values)).max()


def test_empty_batch() -> None:
    x, weight, geometry = torch.empty(0, 8, 4, 4), torch.randn(8, 8, 3, 3), Layer().geometry
    x = x.contiguous(memory_format=torch.channels_last)
    y, statistics = STEPS.conv(x, weight, geometry)
    assert y.shape == x.shape
    assert torch.equal(statistics, torch.zeros(8, 3))
    assert STEPS.dgrad(y, weight, x, geometry).shape == x.shape
    assert torch.equal(STEPS.wgrad(y, x, weight, geometry), torch.zeros_like(weight))
    assert torch.equal(STEPS.gradient_sums(y, y, torch.zeros(8)), torch.zeros(8, 2))
