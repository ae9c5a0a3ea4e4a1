"""The passes of a training step in PyTorch's own operators: the specification, and the oracle in float64.

Every pass computes in float32 or wider and rounds once, when it stores.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..block import Geometry
from ..layout import empty
from .steps import Affine, Moments, Relu, Shortcut, Steps


class ReferenceSteps(Steps):
    def conv(
        self, x: Tensor, weight: Tensor, geometry: Geometry, prologue: Affine | None = None
    ) -> tuple[Tensor, Tensor]:
        y = self.conv_alone(x, weight, geometry, prologue)
        var, mean = torch.var_mean(_wide(y), (0, 2, 3), correction=0)
        values = y.numel() // y.shape[1]
        return y, torch.stack([torch.full_like(mean, values), mean, var * values], 1)

    def conv_alone(self, x: Tensor, weight: Tensor, geometry: Geometry, prologue: Affine | None = None) -> Tensor:
        x = x if prologue is None else self.apply(x, prologue)
        return F.conv2d(x, weight, None, *geometry)

    def apply(self, y: Tensor, affine: Affine, shortcut: Shortcut | None = None, relu: bool = True) -> Tensor:
        out = _argument(y, affine, shortcut)
        return (F.relu(out) if relu else out).to(y.dtype)

    def gradient_sums(self, y: Tensor, gradient: Tensor, mean: Tensor, relu: Relu | None = None) -> Tensor:
        g = _masked(y, gradient, relu)
        return torch.stack([g.sum((0, 2, 3)), (g * (_wide(y) - _per_channel(mean))).sum((0, 2, 3))], 1)

    def bn_backward(
        self,
        y: Tensor,
        gradient: Tensor,
        moments: Moments,
        sums: Tensor,
        relu: Relu | None = None,
        *,
        overwrite: bool = False,
        keep_masked: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        g = _masked(y, gradient, relu)
        mean, invstd, scale, values = moments
        slope = sums[:, 1] / values * invstd.square()
        dy = g - _per_channel(sums[:, 0] / values) - (_wide(y) - _per_channel(mean)) * _per_channel(slope)
        return (dy * _per_channel(scale)).to(y.dtype), g.to(y.dtype) if keep_masked else None

    def dgrad(
        self, gradient: Tensor, weight: Tensor, x: Tensor, geometry: Geometry, residual: Tensor | None = None
    ) -> Tensor:
        dx = conv_backward(gradient, x, weight, geometry, (True, False))[0]
        return dx if residual is None else dx + residual

    def wgrad(
        self, gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, prologue: Affine | None = None
    ) -> Tensor:
        gradient, x = _wide(gradient), _wide(x if prologue is None else self.apply(x, prologue))
        return conv_backward(gradient, x, stand_in(weight, x), geometry, (False, True))[1]


def conv_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: tuple[bool, bool]
) -> tuple[Any, Any]:
    """A convolution's gradients of x and of its weight, each where `wanted`, by PyTorch's own operator."""
    stride, padding, dilation, groups = geometry
    return torch.ops.aten.convolution_backward.default(
        gradient, x, weight, None, stride, padding, dilation, False, (0, 0), groups, (*wanted, False)
    )[:2]


def stand_in(weight: Tensor, x: Tensor) -> Tensor:
    """`weight`, or where it is not of x's dtype a tensor of its size: for an operator that does not read it."""
    return weight if weight.dtype == x.dtype else empty(x, weight.shape)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _per_channel(vector: Tensor) -> Tensor:
    return vector.view(-1, 1, 1)


def _argument(y: Tensor, affine: Affine, shortcut: Shortcut | None) -> Tensor:
    """y * scale + shift [+ shortcut]: what a ReLU is applied to."""
    out = _wide(y) * _per_channel(affine.scale) + _per_channel(affine.shift)
    if shortcut is None:
        return out
    return out + (_wide(shortcut.x) if shortcut.affine is None else _argument(shortcut.x, shortcut.affine, None))


def _masked(y: Tensor, gradient: Tensor, relu: Relu | None) -> Tensor:
    g = _wide(gradient)
    return g if relu is None else torch.where(_argument(y, relu.affine, relu.shortcut) <= 0, 0.0, g)
