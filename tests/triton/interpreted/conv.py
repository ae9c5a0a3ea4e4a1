"""Convolution: every geometry and flag, odd and tiny shapes, drawn problems, NaN and infinity, 64-bit addresses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import DEVICE, DTYPES, Convolution, channels_last
from tolerance import without_onednn

from fastres.kernels.conv import conv, pack
from fastres.tuning import Tile

CASES = {
    "3x3": Convolution(),
    "3x3, several N tiles, K steps within a tap": Convolution(c=32, k=40),
    "3x3 / 2": Convolution(c=32, k=40, stride=(2, 2)),
    "1x1 / 2": Convolution(c=32, kernel=(1, 1), padding=(0, 0), stride=(2, 2)),
    "1x1, padded": Convolution(kernel=(1, 1)),
    "7x7 / 2, 3 channels": Convolution(c=3, image=(13, 11), kernel=(7, 7), stride=(2, 2), padding=(3, 3)),
    "1x7, one stride, one padding": Convolution(c=5, kernel=(1, 7), stride=(2, 1), padding=(0, 3)),
    "5x2, dilated": Convolution(kernel=(5, 2), dilation=(1, 3), padding=(2, 2)),
    "4x4 filter, no padding": Convolution(c=16, kernel=(4, 4), padding=(0, 0)),
    "padding wider than the image": Convolution(n=1, image=(1, 2), padding=(3, 3)),
    "1 channel to 1": Convolution(c=1, k=1),
    "one pixel": Convolution(n=1, image=(1, 1), c=17, k=33),
    "7x7 image": Convolution(n=1, image=(7, 7), c=32, k=32),
    "groups": Convolution(c=24, k=36, groups=3),
    "many narrow groups": Convolution(n=1, image=(5, 7), c=64, k=64, groups=16),
    "wide groups": Convolution(n=1, image=(5, 4), c=64, k=96, groups=2),
    "merged groups that leave several": Convolution(n=1, image=(5, 7), c=96, k=48, groups=24),
    "depthwise": Convolution(n=1, image=(5, 7), c=48, k=48, groups=48),
    "depthwise, channels doubled, an odd number": Convolution(c=7, k=14, groups=7),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_geometry(case: Convolution, dtype: torch.dtype) -> None:
    case.check(dtype)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_epilogue_flags(residual: bool, relu: bool, dtype: torch.dtype) -> None:
    Convolution(residual=residual, relu=relu).check(dtype)


@pytest.mark.parametrize(
    "tile", [Tile(16, 32, 32, 4, 1), Tile(64, 32, 64, 4, 3), Tile(128, 64, 16, 8, 4), Tile(32, 16, 32, 4, 2), None]
)
def test_tile_does_not_change_the_result(tile: Tile | None, dtype: torch.dtype) -> None:
    Convolution(c=32, k=48).check(dtype, tile)


def test_result_is_a_new_dense_channels_last_tensor() -> None:
    problem = Convolution()
    inputs = problem.inputs(torch.float32)
    kept = [None if t is None else t.clone() for t in inputs]
    y = problem.fused(*inputs, tile=None)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert all(a is None or torch.equal(a, b) for a, b in zip(inputs, kept, strict=True))


def test_writes_over_the_residual_when_told(dtype: torch.dtype) -> None:
    for kernel, padding in (((3, 3), (1, 1)), ((1, 1), (0, 0))):
        problem = Convolution(kernel=kernel, padding=padding)
        x, weight, bias, residual = (t.to(DEVICE) for t in problem.inputs(dtype))
        expected = problem.fused(x, weight, bias, residual, tile=None)
        w, _ = pack(weight, 1)
        y = conv(x, w, bias, residual, relu=True, padding=padding, out=residual)
        assert y.data_ptr() == residual.data_ptr()
        assert torch.equal(y, expected)


def test_empty_batch() -> None:
    y = Convolution().fused(*Convolution(n=0, residual=False).inputs(torch.float32), tile=None)
    assert y.shape == (0, 24, 6, 5)


@pytest.mark.parametrize("kernel", [(3, 3), (1, 1)])
@pytest.mark.parametrize("relu", [False, True])
def test_nan_and_infinity_go_where_pytorch_sends_them(relu: bool, kernel: tuple[int, int], dtype: torch.dtype) -> None:
    problem = Convolution(kernel=kernel, padding=(kernel[0] // 2,) * 2, relu=relu)
    x, weight, bias, residual = problem.inputs(dtype)
    x[0, 3, 4, 4] = float("nan")
    x[1, 2, 1, 1] = float("inf")
    assert residual is not None
    residual[0, :, 0, 0] = float("-inf")
    residual[1, 5, 5, 4] = float("nan")
    with without_onednn():
        problem.check(dtype, inputs=(x, weight, bias, residual))


def test_float16_overflows_to_infinity_once() -> None:
    x = channels_last(torch.full((1, 16, 4, 4), 200.0, dtype=torch.float16))
    weight = torch.full((16, 16, 1, 1), 40.0, dtype=torch.float16)
    y = Convolution(n=1).fused(x, weight, torch.zeros(16), None, tile=None)
    assert y.shape[2:] == (6, 6)  # the default padding of 1, around a 1x1 filter
    assert y[:, :, 1:-1, 1:-1].isinf().all()
    assert (y[:, :, 0] == 0).all()


def test_misaligned_input(dtype: torch.dtype) -> None:
    problem = Convolution(c=16)
    x, weight, bias, residual = problem.inputs(dtype)
    storage = torch.empty(x.numel() + 1, dtype=dtype)
    view = storage[1:].view(2, 6, 5, 16).permute(0, 3, 1, 2)
    view.copy_(x)
    problem.check(dtype, inputs=(view, weight, bias, residual))


def test_addresses_past_2_to_the_31() -> None:
    """Strides of half the image leave nine output pixels, the last at the input's very end."""
    torch.use_deterministic_algorithms(False)  # so that the input's 4 GiB are never touched
    side, channels, stride = 32769, 2, 16384
    x = torch.empty((1, side, side, channels), dtype=torch.float16, device=DEVICE).permute(0, 3, 1, 2)
    assert x.numel() > 2**31
    for kernel in (1, 3):
        pad = kernel // 2
        places = [[at for at in range(p * stride - pad, p * stride + pad + 1) if 0 <= at < side] for p in range(3)]
        touched = [at for place in places for at in place]
        patch = torch.randn(1, channels, len(touched), len(touched), dtype=torch.float16, device=DEVICE)
        for i, row in enumerate(touched):
            for j, column in enumerate(touched):
                x[:, :, row, column] = patch[:, :, i, j]
        weight, bias = torch.randn(16, channels, kernel, kernel).half().to(DEVICE), torch.randn(16, device=DEVICE)
        y = conv(x, pack(weight, 1)[0], bias, stride=(stride, stride), padding=(pad, pad))
        small = F.conv2d(patch.double(), weight.double(), bias.double(), kernel, pad)
        assert y.shape == small.shape == (1, 16, 3, 3)
        assert (y.double() - small).abs().max() <= torch.finfo(torch.float16).eps * small.abs().max()


@st.composite
def problems(draw: st.DrawFn) -> Convolution:
    groups = draw(st.sampled_from([1, 1, 2, 3, 8]))
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    image = [
        draw(st.integers(max(1, d * (k - 1) + 1 - 2 * p), 12))
        for k, d, p in zip(kernel, dilation, padding, strict=True)
    ]
    return Convolution(
        n=draw(st.integers(1, 3)),
        c=groups * draw(st.integers(1, 20)),
        image=(image[0], image[1]),
        k=groups * draw(st.integers(1, 20)),
        kernel=kernel,
        stride=draw(pair),
        padding=padding,
        dilation=dilation,
        groups=groups,
        residual=draw(st.booleans()),
        relu=draw(st.booleans()),
    )


@settings(max_examples=20)
@given(problem=problems(), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**31))
def test_drawn_problems(problem: Convolution, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    problem.check(dtype)
