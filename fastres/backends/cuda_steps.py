"""The passes of a training step on the kernels of csrc/kernels: on a GPU, or in the PTX emulator on CPU tensors.

Forward passes, BatchNorm's backward and dgrad at stride 1 (a forward convolution with flipped weights) are ours.
wgrad and strided dgrad are the library's: cuDNN's on a GPU, PyTorch's own in float32 on CPU tensors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..block import Geometry, Pool
from ..layout import empty
from . import bn_plans, plans, pool_plans
from .reference_steps import conv_backward
from .steps import Affine, Moments, Relu, Running, Shortcut, Steps

_IMAGE = 3  # channels, which are given a fourth of zeros: the kernel copies a pixel's 8 bytes at a time, not 2


class CudaSteps(Steps):
    """The passes, run by `backend`. Activations are bfloat16, float16 or float32 (convolved in TF32).

    Every pass raises ValueError, by name, for a tensor that does not fit.
    """

    def __init__(self, backend: plans.Planned) -> None:
        self._backend = backend

    def conv(
        self, x: Tensor, weight: Tensor, geometry: Geometry, prologue: Affine | None = None
    ) -> tuple[Tensor, Tensor]:
        """Prologue and statistics are conv_sm80's: x is read once a column of tiles and y written once.

        The prologue is a pass of its own, which reads x and writes as much, where conv_sm90 runs the convolution, whose
        operands go from memory to the tensor cores untouched, and where a group's channels are no multiple of 16 bytes.
        So are the statistics, which read y, where the depth is split: an output is too small to fill the GPU.
        """
        work = self._conv(x, weight, geometry, prologue, moments=True)
        y = self._backend.run(work)
        of_tiles = work.moments
        return y, self._backend.run(bn_plans.statistics(y) if of_tiles is None else bn_plans.merge(of_tiles))

    def conv_alone(self, x: Tensor, weight: Tensor, geometry: Geometry, prologue: Affine | None = None) -> Tensor:
        return self._backend.run(self._conv(x, weight, geometry, prologue, moments=False))

    def _conv(
        self, x: Tensor, weight: Tensor, geometry: Geometry, prologue: Affine | None, moments: bool
    ) -> plans.Work:
        if prologue is None and x.shape[1] == _IMAGE:
            x, weight = (F.pad(t, (0, 0, 0, 0, 0, 1)) for t in (x, weight))
        prepared = plans.pack(weight, None, geometry)
        kernel = self._backend.convolution_kernel(x, prepared.filter)
        if prologue is not None and (kernel == "conv_sm90" or not plans.takes_prologue(x, geometry.groups)):
            x, prologue = self.apply(x, prologue), None
        sms = self._backend.multiprocessors(x.device)
        return plans.convolution([(x, prepared)], False, prologue=prologue, moments=moments, sms=sms, kernel=kernel)

    def finalize(
        self,
        statistics: Tensor,
        values: int,
        gamma: Tensor | None,
        beta: Tensor | None,
        eps: float,
        running: Running | None = None,
    ) -> tuple[Moments, Affine]:
        """One launch, where running statistics are contiguous and float32; else in PyTorch's operators."""
        for kept in running[:2] if running else ():
            if kept.dtype != torch.float32 or not kept.is_contiguous():
                return super().finalize(statistics, values, gamma, beta, eps, running)
        gamma, beta = (None if vector is None else vector.float() for vector in (gamma, beta))
        work = bn_plans.finalize(statistics, values, gamma, beta, eps, running)
        mean, invstd, scale, shift = self._backend.run(work)
        return Moments(mean, invstd, scale, values), Affine(scale, shift)

    def apply(self, y: Tensor, affine: Affine, shortcut: Shortcut | None = None, relu: bool = True) -> Tensor:
        return self._backend.run(bn_plans.apply(y, affine, shortcut, relu))

    def apply_pool(self, y: Tensor, affine: Affine, shortcut: Shortcut | None, relu: bool, pool: Pool) -> Tensor:
        """One launch; `apply` and the library's pool after a shortcut, and where not `pool_plans.runnable`."""
        if shortcut is not None or not pool_plans.runnable(y, affine, pool):
            return super().apply_pool(y, affine, shortcut, relu, pool)
        return self._backend.run(pool_plans.apply(y, affine, relu, pool))

    def pool_backward(
        self, y: Tensor, gradient: Tensor, affine: Affine, shortcut: Shortcut | None, relu: bool, pool: Pool
    ) -> Tensor:
        """Two launches, which find the maxima and gather their gradients; else as `apply_pool`, by the library's."""
        if shortcut is not None or not pool_plans.runnable(y, affine, pool, gradient):
            return super().pool_backward(y, gradient, affine, shortcut, relu, pool)
        return self._backend.run(pool_plans.backward(y, gradient, affine, relu, pool))

    def gradient_sums(self, y: Tensor, gradient: Tensor, mean: Tensor, relu: Relu | None = None) -> Tensor:
        return self._backend.run(bn_plans.gradient_sums(y, gradient, mean, relu))

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
        masked = torch.empty_like(y) if keep_masked else None
        work = bn_plans.backward(y, gradient, moments, sums, relu, overwrite=overwrite, masked=masked)
        return self._backend.run(work), masked

    def dgrad(
        self, gradient: Tensor, weight: Tensor, x: Tensor, geometry: Geometry, residual: Tensor | None = None
    ) -> Tensor:
        """At stride 1 a forward convolution of `gradient`, `residual` added in its epilogue; else the library's.

        So is it where an image is padded by more than its filters reach: the forward's padding would be negative.
        """
        convolution = transposed(weight, geometry)
        if convolution is None:
            # By the strides of this weight, even of one of 1x1, cuDNN takes the gradient as it is, in channels_last; by
            # those of x, it gives dx so.
            dy, w = _of_library(gradient), _of_library(weight).clone(memory_format=torch.channels_last)
            dx = conv_backward(dy, _of_library(x), w, geometry, (True, False))[0]
            dx = dx.to(gradient.dtype, memory_format=torch.channels_last)
            return dx if residual is None else dx.add_(residual)
        turned, forward = convolution
        prepared = plans.pack(turned, None, forward)
        kernel = self._backend.convolution_kernel(gradient, prepared.filter)
        sms = self._backend.multiprocessors(gradient.device)
        return self._backend.run(plans.convolution([(gradient, prepared)], False, residual, sms=sms, kernel=kernel))

    def wgrad(
        self, gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, prologue: Affine | None = None
    ) -> Tensor:
        """The library's; a prologue is a pass of its own, which reads x and writes as much.

        On a GPU the library rounds its float32 sums to the activations' dtype, as PyTorch's autograd does.
        """
        if prologue is not None:
            x = self.apply(x, prologue)
        dy, x = _of_library(gradient), _of_library(x)
        return conv_backward(dy, x, empty(x, weight.shape), geometry, (False, True))[1].float()


def transposed(weight: Tensor, geometry: Geometry) -> tuple[Tensor, Geometry] | None:
    """The convolution that is dgrad: weights [C, K/groups, R, S], turned by half a turn, and geometry; or None.

    None where it is no forward convolution: at strides, and where an image is padded by more than its filters reach.
    """
    reach = [dilation * (size - 1) for dilation, size in zip(geometry.dilation, weight.shape[2:], strict=True)]
    padding = reach[0] - geometry.padding[0], reach[1] - geometry.padding[1]
    if geometry.stride != (1, 1) or min(padding) < 0:
        return None
    turned = weight.flip(2, 3) if max(weight.shape[2:]) > 1 else weight
    turned = turned.unflatten(0, (geometry.groups, -1)).transpose(1, 2).flatten(0, 1)
    return turned, Geometry((1, 1), padding, geometry.dilation, geometry.groups)


def _of_library(gradient: Tensor) -> Tensor:
    """What PyTorch's own operator is given: on a CPU float32, which it computes faster and rounds less often."""
    return gradient.float() if gradient.device.type == "cpu" else gradient
