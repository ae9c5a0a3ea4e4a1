"""Training's convolutions for the tests of the CUDA kernels: raw outputs and statistics against the float64 oracle."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from convolutions import Conv, Place
from tolerance import assert_right
from torch import Tensor

from fastres.backends import bn_plans, plans
from fastres.backends.steps import Affine


def tensors(conv: Conv, dtype: torch.dtype) -> tuple[Tensor, Tensor, Affine]:
    """x, weight and prologue: a grid of values, whose results under the prologue no dtype rounds, TF32 included."""
    x = (torch.randn(conv.n, conv.c, conv.h, conv.w) * 8).round().clamp(-32, 32) / 8
    weight = (torch.randn(conv.k, conv.c // conv.groups, conv.r, conv.r) * 16).round().clamp(-64, 64) / 128
    scale = torch.tensor([-1, -0.5, 0, 0.5, 1])[torch.randint(5, (conv.c,))]
    shift = (torch.randn(conv.c) * 4 + 2).round() / 4  # mostly positive: a border of relu(shift) would show
    return x.to(dtype).contiguous(memory_format=torch.channels_last), weight.to(dtype), Affine(scale, shift)


def plain(conv: Conv, x: Tensor, weight: Tensor, prologue: Affine | None) -> Tensor:
    if prologue is not None:
        scale, shift = (v.to(x.dtype).view(-1, 1, 1) for v in prologue)
        x = F.relu(x * scale + shift)
    return F.conv2d(x, weight, None, *conv.geometry)


def check(
    place: Place,
    conv: Conv,
    dtype: torch.dtype,
    tile: Sequence[int] = (),
    prologue: bool = True,
    x: Tensor | None = None,
    kernel: str = "conv_sm80",
    sms: int = 108,
) -> plans.Work:
    device, run = place
    random_x, weight, affine = tensors(conv, dtype)
    x = random_x if x is None else x
    given = Affine(*(v.to(device) for v in affine)) if prologue else None
    operands = [(x.to(device), plans.pack(weight.to(device), None, conv.geometry))]
    work = plans.convolution(operands, False, prologue=given, moments=True, sms=sms, kernel=kernel, tile=tile)
    for tensor in (work.result, *work.scratch):
        tensor.fill_(float("nan"))
    y = run(work).cpu()
    used = affine if prologue else None
    exact = plain(conv, x.double(), weight.double(), Affine(*(v.double() for v in affine)) if prologue else None)
    assert_right(y, plain(conv, x, weight, used), exact)
    if work.moments is not None and x.isfinite().all():
        merge = bn_plans.merge(work.moments)
        merge.result.fill_(float("nan"))
        count, mean, m2 = run(merge).cpu().unbind(1)
        values = y.numel() // conv.k
        assert (count == values).all()
        var, center = torch.var_mean(y.double(), (0, 2, 3), correction=0)
        plain_var, plain_mean = torch.var_mean(y.float(), (0, 2, 3), correction=0)
        assert_right(mean, plain_mean, center)
        assert_right(m2, plain_var * values, var * values)
    return work
