"""What a training step of a residual block is made of: the passes that a backend gives, each one kernel if it can.

In training, a layer is y = conv(a) and BatchNorm over the batch's own statistics. Only raw convolution outputs y are
kept: the next convolution applies BatchNorm and ReLU as it loads (its prologue, a = relu(y * scale + shift)), and the
statistics of its own output are gathered as it stores (its epilogue). The end of a block is one pass, `apply`.

Activations are [N, C, H, W], dense in channels_last, of one floating dtype; weights are [K, C/groups, R, S] of that
dtype; what belongs to a channel is a vector [C] in float32 (in float64 where activations are).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..block import Geometry, Pool


class Affine(NamedTuple):
    """A BatchNorm with known statistics: x * scale + shift, by channel."""

    scale: Tensor
    shift: Tensor


class Shortcut(NamedTuple):
    """What is added before a block's last ReLU: x, or x * scale + shift where a projection's BatchNorm is due."""

    x: Tensor
    affine: Affine | None = None


class Relu(NamedTuple):
    """A ReLU by its argument, from which backward recomputes where it is positive: y * scale + shift [+ shortcut]."""

    affine: Affine
    shortcut: Shortcut | None = None


class Moments(NamedTuple):
    """What BatchNorm's backward needs of its forward: [C]; `scale` is gamma * invstd, `values` the count of a mean."""

    mean: Tensor
    invstd: Tensor
    scale: Tensor
    values: int


class Running(NamedTuple):
    """A BatchNorm's running statistics, [C] of any floating dtype, and how much the batch's weigh in their update.

    Where a BatchNorm's `momentum` is None, that is 1 / num_batches_tracked, counted with this batch.
    """

    mean: Tensor
    var: Tensor
    momentum: float


class Steps:
    """The passes, forward then backward. Results are new tensors but where `overwrite` says otherwise."""

    def conv(
        self, x: Tensor, weight: Tensor, geometry: Geometry, prologue: Affine | None = None
    ) -> tuple[Tensor, Tensor]:
        """y = conv(x), or conv(relu(x * scale + shift)) with zeros outside the image, and y's statistics.

        The statistics, [K, 3], are of y as stored (rounded to its dtype): count, mean, and m2, the sum of squared
        deviations from the mean, merged in a fixed order.
        """
        raise NotImplementedError

    def conv_alone(self, x: Tensor, weight: Tensor, geometry: Geometry, prologue: Affine | None = None) -> Tensor:
        """`conv` for a BatchNorm that has no use for the batch's statistics."""
        return self.conv(x, weight, geometry, prologue)[0]

    def finalize(
        self,
        statistics: Tensor,
        values: int,
        gamma: Tensor | None,
        beta: Tensor | None,
        eps: float,
        running: Running | None = None,
    ) -> tuple[Moments, Affine]:
        """A BatchNorm's vectors from `conv`'s statistics, and its running statistics updated in place.

        `values` is the statistics' count, in every channel the same, which the host knows without asking the device;
        where `running` is given it is 2 or more, since running variances are unbiased. `gamma` and `beta` are [C] of
        any floating dtype, or None for 1 and 0.
        """
        _, mean, m2 = statistics.t().contiguous()
        invstd = (m2 / values + eps).rsqrt()
        scale = invstd if gamma is None else gamma.to(invstd) * invstd
        shift = -mean * scale if beta is None else torch.addcmul(beta.to(mean), mean, scale, value=-1)
        if running is not None:
            for kept, new in (running.mean, mean), (running.var, m2 / (values - 1)):
                kept.copy_(torch.lerp(kept.to(new), new, running.momentum))
        return Moments(mean, invstd, scale, values), Affine(scale, shift)

    def vectors(self, statistics: Tensor, values: int, gamma: Tensor | None, beta: Tensor | None, eps: float) -> Tensor:
        """[4, C]: `finalize`'s mean, invstd, scale and shift."""
        moments, affine = self.finalize(statistics, values, gamma, beta, eps)
        return torch.stack([moments.mean, moments.invstd, *affine])

    def apply(self, y: Tensor, affine: Affine, shortcut: Shortcut | None = None, relu: bool = True) -> Tensor:
        """act(y * scale + shift [+ shortcut]), like y."""
        raise NotImplementedError

    def apply_pool(self, y: Tensor, affine: Affine, shortcut: Shortcut | None, relu: bool, pool: Pool) -> Tensor:
        """max_pool of what `apply` gives, as rounded to y's dtype; NaN where a window has one."""
        return F.max_pool2d(self.apply(y, affine, shortcut, relu), *pool)

    def pool_backward(
        self, y: Tensor, gradient: Tensor, affine: Affine, shortcut: Shortcut | None, relu: bool, pool: Pool
    ) -> Tensor:
        """The gradient of what `apply` gives, like y, from that of what `apply_pool` gives.

        A window's goes to its first maximum in row-major order, or its last NaN, as PyTorch's.
        """
        out = self.apply(y, affine, shortcut, relu)
        kernel, stride, padding = ([size, size] for size in pool)
        _, indices = F.max_pool2d_with_indices(out, kernel, stride, padding)
        return torch.ops.aten.max_pool2d_with_indices_backward.default(
            gradient, out, kernel, stride, padding, [1, 1], False, indices
        ).contiguous(memory_format=torch.channels_last)

    def gradient_sums(self, y: Tensor, gradient: Tensor, mean: Tensor, relu: Relu | None = None) -> Tensor:
        """[C, 2]: the sums of g and of g * (y - mean), g being `gradient` where `relu` passes it, else 0."""
        raise NotImplementedError

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
        """The gradient of y: scale * (g - sum_g / values - (y - mean) * invstd^2 * sum_gy / values); g as above.

        With `overwrite`, it may be written over `gradient`. With `keep_masked`, g comes second: the shortcut's
        gradient.
        """
        raise NotImplementedError

    def norm_backward(
        self,
        y: Tensor,
        gradient: Tensor,
        moments: Moments,
        relu: Relu | None = None,
        *,
        reduce: Callable[[Tensor], Tensor] | None,
        overwrite: bool = False,
        keep_masked: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """`gradient_sums`, then `bn_backward`: the latter's two results and the sums.

        What enters the gradient of y is `reduce` of the sums: over all processes' batches, or zeros where statistics
        are the running ones.
        """
        sums = self.gradient_sums(y, gradient, moments.mean, relu)
        total = sums if reduce is None else reduce(sums)
        dy, masked = self.bn_backward(y, gradient, moments, total, relu, overwrite=overwrite, keep_masked=keep_masked)
        return dy, masked, sums

    def dgrad(
        self, gradient: Tensor, weight: Tensor, x: Tensor, geometry: Geometry, residual: Tensor | None = None
    ) -> Tensor:
        """The gradient of a convolution's input x, whose values are not read, plus `residual` of its size."""
        raise NotImplementedError

    def wgrad(
        self, gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, prologue: Affine | None = None
    ) -> Tensor:
        """The gradient of a convolution's weight, whose values are not read, in float32 (float64 of float64).

        Its input is x, or relu(x * scale + shift) with zeros outside the image. Sums are split in a fixed order.
        """
        raise NotImplementedError
