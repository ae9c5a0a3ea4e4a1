"""csrc/kernels/stem.cu against the float64 oracle: 16-bit and 8-bit images, borders, NaN."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tolerance import assert_right, without_onednn
from torch import Tensor

from fastres.backends import plans
from fastres.backends.emulator import emulate
from fastres.block import ConvBN, Geometry

HALVES = (torch.bfloat16, torch.float16)
Place = tuple[torch.device, Callable[[plans.Work], Tensor]]


def pack(
    channels: int, filters: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, plans.Prepared]:
    weight, bias = (torch.randn(filters, channels, 7, 7) / 8).to(dtype), torch.randn(filters)
    ones = torch.ones(filters)
    layer = ConvBN(weight, None, None, None, ones, ones, None, 0.0, Geometry((2, 2), (3, 3)))
    return weight, bias, plans.pack(weight.to(device), bias.to(device), layer.geometry)


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.max_pool2d(F.relu(F.conv2d(x, weight, bias.to(x.dtype), 2, 3)), 3, 2, 1)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["NHWC", "NCHW"])
@pytest.mark.parametrize(
    ("n", "channels", "h", "w", "filters"), [(2, 3, 64, 48, 64), (1, 3, 33, 35, 72), (1, 1, 5, 3, 8), (3, 4, 1, 2, 64)]
)
def test_images_of_16_bits(
    place: Place, n: int, channels: int, h: int, w: int, filters: int, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    device, run = place
    weight, bias, prepared = pack(channels, filters, dtype, device)
    x = torch.randn(n, channels, h, w).to(dtype).contiguous(memory_format=layout)
    work = plans.stem(x.to(device), prepared)
    work.result.fill_(float("nan"))
    assert_right(run(work).cpu(), plain(x, weight, bias), plain(x.double(), weight.double(), bias.double()))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_images_of_8_bits_are_normalised_inside_an_exact_border(place: Place, dtype: torch.dtype) -> None:
    device, run = place
    weight, bias, prepared = pack(3, 64, dtype, device)
    x = torch.randint(0, 256, (2, 3, 37, 30), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    scale, shift = 1 / (255 * std), -mean / std
    work = plans.stem(x.to(device), prepared, scale.tolist(), shift.tolist())
    work.result.fill_(float("nan"))
    normalised = (x.double() * scale.double().view(3, 1, 1) + shift.double().view(3, 1, 1)).to(dtype)
    exact = plain(normalised.double(), weight.double(), bias.double())
    assert_right(run(work).cpu(), plain(normalised, weight, bias), exact)


def test_nan_and_infinity_stay_under_their_windows(place: Place) -> None:
    device, run = place
    weight, bias, prepared = pack(3, 64, torch.bfloat16, device)
    x = torch.randn(2, 3, 45, 43).bfloat16().contiguous(memory_format=torch.channels_last)
    x[0, 1, 20, 21], x[1, 2, 3, 6], x[1, 0, 44, 42] = float("nan"), float("inf"), float("-inf")
    exact = plain(x.double(), weight.double(), bias.double())
    assert exact.isnan().any()
    with without_onednn():
        own = plain(x, weight, bias)
    assert torch.equal(own.isnan(), exact.isnan())
    assert_right(run(plans.stem(x.to(device), prepared)).cpu(), own, exact)


def test_ten_seeds_give_the_same_bits() -> None:
    _, _, prepared = pack(3, 64, torch.float16, torch.device("cpu"))
    x = torch.randn(1, 3, 20, 20).half()
    results = []
    for seed in range(10):
        work = plans.stem(x, prepared)
        emulate(work, seed)
        results.append(work.result)
    assert all(torch.equal(results[0], result) for result in results[1:])


def test_what_does_not_fit_is_refused_by_name() -> None:
    _, _, prepared = pack(3, 64, torch.float16, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"x: expected torch.float16 or uint8"):
        plans.stem(torch.randn(1, 3, 8, 8), prepared)
    with pytest.raises(ValueError, match="scale, shift: expected 3 values each, got 2 and 3"):
        plans.stem(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), prepared, (1.0, 1.0))
    with pytest.raises(ValueError, match="x: expected 3 channels, got"):
        plans.stem(torch.zeros(1, 4, 8, 8, dtype=torch.float16), prepared)
    _, _, odd = pack(3, 20, torch.float16, torch.device("cpu"))
    with pytest.raises(ValueError, match="prepared: expected a 7x7/2 convolution"):
        plans.stem(torch.zeros(1, 3, 8, 8, dtype=torch.float16), odd)
