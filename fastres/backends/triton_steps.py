"""The passes of a training step by the Triton kernels.

Tensors are float32, bfloat16 or float16. Weights are packed at each call: they change at each step.
"""

from __future__ import annotations

from torch import Tensor

from ..block import Geometry
from ..kernels import bn_act
from ..kernels.conv import conv_train, pack
from ..kernels.dgrad import dgrad
from ..kernels.statistics import finalize
from ..kernels.wgrad import wgrad
from .steps import Affine, Moments, Relu, Running, Shortcut, Steps


class TritonSteps(Steps):
    def conv(
        self, x: Tensor, weight: Tensor, geometry: Geometry, prologue: Affine | None = None
    ) -> tuple[Tensor, Tensor]:
        packed, groups = pack(weight, geometry.groups)
        y, statistics = conv_train(x, packed, prologue, **geometry._replace(groups=groups)._asdict())
        assert statistics is not None
        return y, statistics

    def conv_alone(self, x: Tensor, weight: Tensor, geometry: Geometry, prologue: Affine | None = None) -> Tensor:
        packed, groups = pack(weight, geometry.groups)
        return conv_train(x, packed, prologue, **geometry._replace(groups=groups)._asdict(), statistics=False)[0]

    def finalize(
        self,
        statistics: Tensor,
        values: int,
        gamma: Tensor | None,
        beta: Tensor | None,
        eps: float,
        running: Running | None = None,
    ) -> tuple[Moments, Affine]:
        mean, invstd, scale, shift = finalize(statistics, values, gamma, beta, eps, running)
        return Moments(mean, invstd, scale, values), Affine(scale, shift)

    def apply(self, y: Tensor, affine: Affine, shortcut: Shortcut | None = None, relu: bool = True) -> Tensor:
        return bn_act.apply(y, affine, shortcut, relu)

    def gradient_sums(self, y: Tensor, gradient: Tensor, mean: Tensor, relu: Relu | None = None) -> Tensor:
        return bn_act.gradient_sums(y, gradient, mean, relu)

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
        return bn_act.backward(y, gradient, *moments, sums, relu, overwrite=overwrite, keep_masked=keep_masked)

    def dgrad(
        self, gradient: Tensor, weight: Tensor, x: Tensor, geometry: Geometry, residual: Tensor | None = None
    ) -> Tensor:
        return dgrad(gradient, weight, x.shape, residual, **geometry._asdict())

    def wgrad(
        self, gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, prologue: Affine | None = None
    ) -> Tensor:
        return wgrad(gradient, x, weight.shape, prologue, **geometry._asdict())
