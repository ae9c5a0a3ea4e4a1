"""Every convolution of every named model at batch 1, 32 and 256, as the launchers get it: distinct problems, once each.

The tensors are of the CPU and hold nothing: under `offline.target`, a launch compiles and runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import torch
from models import VARIANTS
from torch import Tensor, nn

import fastres
from fastres.block import ConvBN, Geometry
from fastres.kernels.conv import MERGED, conv
from fastres.kernels.head import head
from fastres.kernels.projection import projection
from fastres.kernels.stem import stem, takes_pixels
from fastres.tuning import architecture, arithmetic, conv_tf32

BATCHES = (1, 32, 256)
SIZE = 224

Shape = tuple[int, ...]
Pair = tuple[int, int]


class Conv(NamedTuple):
    """A convolution: input [N, C, H, W], filters, their size, stride, padding, dilation, groups."""

    x: Shape
    filters: int
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    @property
    def out(self) -> Shape:
        return _layer(self).out_size(torch.empty(self.x, device="meta"))


class Problem(NamedTuple):
    """What one launcher is called for: "stem", "conv", "residual", "projection" (then with a shortcut) or "head"."""

    operator: str
    conv: Conv
    shortcut: Conv | None = None


@cache
def problems() -> tuple[Problem, ...]:
    """Of all named models, in a fixed order."""
    return tuple(dict.fromkeys(p for name, _ in VARIANTS for batch in BATCHES for p in _of_model(name, batch)))


def _of_model(name: str, batch: int) -> Iterator[Problem]:
    with torch.device("meta"):
        model = getattr(fastres, name)()
    first = _conv((batch, 3, SIZE, SIZE), model.conv1)
    yield Problem("stem", first)
    n, k, p, q = first.out
    x: Shape = (n, k, (p - 1) // 2 + 1, (q - 1) // 2 + 1)
    for block in (block for stage in (model.layer1, model.layer2, model.layer3, model.layer4) for block in stage):
        parts, y = block.residual_parts(), x
        for module, _ in parts.branch[:-1]:
            yield Problem("conv", _conv(y, module))
            y = _conv(y, module).out
        last = _conv(y, parts.branch[-1][0])
        if parts.shortcut is None:
            yield Problem("residual", last)
        else:
            yield Problem("projection", last, _conv(x, parts.shortcut[0]))
        x = last.out
    yield Problem("head", Conv(x, model.fc.out_features, (1, 1), (1, 1), (0, 0), (1, 1), 1))


def _conv(x: Shape, module: nn.Conv2d) -> Conv:
    geometry = module.kernel_size, module.stride, module.padding, module.dilation
    return Conv(x, module.out_channels, *geometry, module.groups)  # type: ignore[arg-type]


def _layer(conv: Conv) -> ConvBN:
    weight = torch.empty(conv.filters, conv.x[1] // conv.groups, *conv.kernel, device="meta")
    return ConvBN(weight, *[None] * 6, 0.0, Geometry(*conv[3:]))  # type: ignore[arg-type]


def launch(problem: Problem, dtype: torch.dtype) -> None:
    """Calls the launcher as backend `triton` does; of a stem, also that of 8-bit pixels."""
    operator, first, shortcut = problem
    x, weight, bias, groups = _operands(first, dtype)
    geometry = first.stride, first.padding, first.dilation
    if operator == "head":
        head(x, torch.empty(first.filters, first.x[1], dtype=dtype), bias)
    elif operator == "stem":
        stem(x, weight, bias)
        if takes_pixels(arithmetic(dtype, conv_tf32()), architecture(x.device)):
            stem(_nhwc(first.x, torch.uint8), weight, bias, normalize=(torch.empty(3), torch.empty(3)))
    elif shortcut is None:
        residual = _nhwc(first.out, dtype) if operator == "residual" else None
        stride, padding, dilation = geometry
        flags = {"relu": True, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        conv(x, weight, bias, residual, **flags)  # type: ignore[arg-type]
    else:
        x2, weight2, bias2, _ = _operands(shortcut, dtype)
        second = weight2, bias2, shortcut.stride, shortcut.padding, shortcut.dilation
        projection(x, (weight, bias, *geometry), x2, second)


def _operands(conv: Conv, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, int]:
    """x, the weight as `kernels.conv.pack` leaves it, the bias, and the groups left."""
    width, groups = conv.x[1] // conv.groups, conv.groups
    while width < MERGED and groups % 2 == 0:
        width, groups = 2 * width, groups // 2
    weight = torch.empty((conv.filters, *conv.kernel, width), dtype=dtype)
    return _nhwc(conv.x, dtype), weight, torch.empty(conv.filters), groups


def _nhwc(shape: Shape, dtype: torch.dtype) -> Tensor:
    n, c, h, w = shape
    return torch.empty((n, h, w, c), dtype=dtype).permute(0, 3, 1, 2)
