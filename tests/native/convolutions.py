"""Convolution problems for the tests of the CUDA kernels, and what holds their results against the oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tolerance import assert_right
from torch import Tensor

from fastres.backends import plans
from fastres.block import ConvBN, Geometry

HALVES = (torch.bfloat16, torch.float16)
Place = tuple[torch.device, Callable[[plans.Work], Tensor]]


class Conv(NamedTuple):
    n: int
    c: int
    h: int
    w: int
    k: int
    r: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1

    @property
    def geometry(self) -> Geometry:
        stride, padding, dilation = ((size, size) for size in (self.stride, self.padding, self.dilation))
        return Geometry(stride, padding, dilation, self.groups)


def operand(conv: Conv, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, ConvBN]:
    """x in channels_last, weight, bias and layer. float32 values are rounded to TF32, so that products are exact."""
    x = _tf32(torch.randn(conv.n, conv.c, conv.h, conv.w)).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = _tf32(torch.randn(conv.k, conv.c // conv.groups, conv.r, conv.r) / 8).to(dtype)
    ones = torch.ones(conv.k)
    layer = ConvBN(weight, None, None, None, ones, ones, None, 0.0, conv.geometry)
    return x, weight, torch.randn(conv.k), layer


def _tf32(x: Tensor) -> Tensor:
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def plain(x: Tensor, weight: Tensor, bias: Tensor, layer: ConvBN, residual: Tensor | None, relu: bool) -> Tensor:
    y = F.conv2d(x, weight, bias.to(x.dtype), *layer.geometry)
    y = y if residual is None else y + residual
    return F.relu(y) if relu else y


def check_operands(
    place: Place,
    convs: Sequence[Conv],
    dtype: torch.dtype,
    tile: Sequence[int],
    kernel: str = "conv_sm80",
    sms: int = 108,
) -> plans.Work:
    """The same for two convolutions, summed, and ReLU."""
    device, run = place
    problems = [operand(conv, dtype) for conv in convs]
    prepared = [
        (x.to(device), plans.pack(weight.to(device), bias.to(device), layer.geometry))
        for x, weight, bias, layer in problems
    ]
    work = plans.convolution(prepared, True, sms=sms, kernel=kernel, tile=tile)
    work.result.fill_(float("nan"))

    def both(dtype: torch.dtype) -> Tensor:
        first, second = ((*(t.to(dtype) for t in tensors), layer) for *tensors, layer in problems)
        return plain(*first, plain(*second, None, False), True)

    assert_right(run(work).cpu(), both(dtype), both(torch.float64))
    return work


def check(
    place: Place,
    conv: Conv,
    dtype: torch.dtype,
    relu: bool = True,
    with_residual: bool = False,
    tile: Sequence[int] = (),
    x: Tensor | None = None,
    kernel: str = "conv_sm80",
    sms: int = 108,
) -> plans.Work:
    """Runs one convolution on NaN-poisoned memory and holds it against the float64 oracle."""
    device, run = place
    random_x, weight, bias, layer = operand(conv, dtype)
    x = random_x if x is None else x
    size = layer.out_size(x)
    residual = torch.randn(size).to(dtype).contiguous(memory_format=torch.channels_last) if with_residual else None
    prepared = plans.pack(weight.to(device), bias.to(device), layer.geometry)
    on_device = None if residual is None else residual.to(device)
    work = plans.convolution([(x.to(device), prepared)], relu, on_device, sms=sms, kernel=kernel, tile=tile)
    work.result.fill_(float("nan"))
    parameters = (x, weight, bias)
    exact = plain(*(t.double() for t in parameters), layer, None if residual is None else residual.double(), relu)
    assert_right(run(work).cpu(), plain(*parameters, layer, residual, relu), exact)
    return work
