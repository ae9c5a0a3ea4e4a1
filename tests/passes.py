"""Problems for `fastres.backends.steps.Steps`, and what each pass must give: autograd's results in float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tolerance import assert_right, to_oracle
from torch import Tensor

from fastres import tuning
from fastres.backends.steps import Affine, Relu, Running, Shortcut, Steps
from fastres.block import Geometry
from fastres.measure.parity import pytorchs_own
from fastres.tuning import Tile

EPS = 1e-5


def nhwc(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def channel(vector: Tensor) -> Tensor:
    return vector.view(-1, 1, 1)


def affine(channels: int) -> Affine:
    """With shifts that a border of relu(shift) would show, scales of both signs, and a zero."""
    scale, shift = torch.randn(channels), torch.randn(channels) + 0.5
    scale[0] = 0
    return Affine(scale, shift)


@contextmanager
def tiles(tile: Tile | None) -> Iterator[None]:
    """Within it, Triton's kernels take `tile`; for None, the table's or the heuristic's."""
    if tile is None:
        yield
    else:
        with tuning.asking(lambda *problem: tile):
            yield


@dataclass(frozen=True)
class Layer:
    """A convolution of [n, c, *image] to k channels, after a BatchNorm and ReLU where `prologue`."""

    n: int = 2
    c: int = 16
    image: tuple[int, int] = (6, 5)
    k: int = 24
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    prologue: bool = True

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.stride, self.padding, self.dilation, self.groups)

    def weight(self, dtype: torch.dtype) -> Tensor:
        return torch.randn(self.k, self.c // self.groups, *self.kernel).div(self.c**0.5).to(dtype)

    def input(self, dtype: torch.dtype) -> tuple[Tensor, Affine | None]:
        x = nhwc(torch.randn(self.n, self.c, *self.image).to(dtype))
        return x, affine(self.c) if self.prologue else None

    def gradient(self, dtype: torch.dtype) -> Tensor:
        shape = self.plain(torch.zeros(self.n, self.c, *self.image), self.weight(torch.float32), None).shape
        return nhwc(torch.randn(shape).to(dtype))

    def plain(self, x: Tensor, weight: Tensor, prologue: Affine | None) -> Tensor:
        return F.conv2d(activated(x, prologue), weight, None, *self.geometry)

    def check_conv(self, steps: Steps, dtype: torch.dtype) -> None:
        (x, prologue), weight = self.input(dtype), self.weight(dtype)
        y, statistics = steps.conv(x, weight, self.geometry, prologue)
        assert y.is_contiguous(memory_format=torch.channels_last)
        oracle = self.plain(*to_oracle((x, weight, prologue)))
        with pytorchs_own():
            assert_right(y, self.plain(x, weight, prologue), oracle, f"y of {self}")
        assert statistics.shape == (self.k, 3)
        count = y.numel() // self.k
        assert (statistics[:, 0] == count).all()
        mean = y.float().mean((0, 2, 3))  # not var_mean, which sums in float64 on the CPU
        var = (y.float() - channel(mean)).square().mean((0, 2, 3))
        var64, mean64 = torch.var_mean(y.double(), (0, 2, 3), correction=0)
        assert_right(statistics[:, 1], mean, mean64, f"mean of {self}")
        assert_right(statistics[:, 2] / count, var, var64, f"variance of {self}")

    def check_conv_alone(self, steps: Steps, dtype: torch.dtype) -> None:
        """That it is `check_conv`'s y, bit for bit."""
        (x, prologue), weight = self.input(dtype), self.weight(dtype)
        y = steps.conv_alone(x, weight, self.geometry, prologue)
        assert torch.equal(y, steps.conv(x, weight, self.geometry, prologue)[0])

    def check_dgrad(self, steps: Steps, dtype: torch.dtype, residual: bool = False) -> None:
        gradient, weight = self.gradient(dtype), self.weight(dtype)
        size = torch.Size((self.n, self.c, *self.image))
        added = nhwc(torch.randn(size).to(dtype)) if residual else None

        def plain(gradient: Tensor, weight: Tensor, added: Tensor | None) -> Tensor:
            dx = torch.nn.grad.conv2d_input(size, weight, gradient, *self.geometry)
            return dx if added is None else dx + added

        dx = steps.dgrad(gradient, weight, nhwc(torch.empty(size, dtype=dtype)), self.geometry, added)
        assert dx.is_contiguous(memory_format=torch.channels_last)
        given = gradient, weight, added
        with pytorchs_own():
            assert_right(dx, plain(*given), plain(*to_oracle(given)), f"dx of {self}")

    def check_wgrad(self, steps: Steps, dtype: torch.dtype, narrow: bool = False) -> None:
        """`narrow`: the sums, in float32, are rounded to `dtype`, as PyTorch's own are then."""
        (x, prologue), gradient = self.input(dtype), self.gradient(dtype)
        weight = self.weight(dtype)
        dw = steps.wgrad(gradient, x, weight, self.geometry, prologue)

        def plain(a: Tensor, gradient: Tensor) -> Tensor:
            return torch.nn.grad.conv2d_weight(a, weight.shape, gradient, *self.geometry)

        oracle = plain(activated(*to_oracle((x, prologue))), to_oracle(gradient))
        own = (t if narrow else t.float() for t in (activated(x, prologue), gradient))
        with pytorchs_own():
            assert_right(dw, plain(*own).float(), oracle, f"dw of {self}")


def activated(x: Tensor, prologue: Affine | None) -> Tensor:
    """relu(x * scale + shift) rounded once to x's dtype, or x."""
    if prologue is None:
        return x
    return F.relu(x.to(prologue.scale.dtype) * channel(prologue.scale) + channel(prologue.shift)).to(x.dtype)


@dataclass(frozen=True)
class Norm:
    """A BatchNorm over the batch's own statistics with ReLU and a shortcut, as they are present."""

    n: int = 2
    c: int = 24
    image: tuple[int, int] = (6, 5)
    relu: bool = True
    shortcut: bool = False
    projected: bool = False  # the shortcut has a scale and a shift of its own

    def inputs(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Shortcut | None, Tensor]:
        """y, gamma, beta, shortcut, gradient; the last channel has a tiny variance."""
        y = torch.randn(self.n, self.c, *self.image) * 2 + channel(torch.randn(self.c))
        y[:, -1] *= 1e-3
        like_y = [nhwc(torch.randn(y.shape).to(dtype)) for _ in range(2)]
        gamma, beta = affine(self.c)
        shortcut = Shortcut(like_y[0], affine(self.c) if self.projected else None) if self.shortcut else None
        return nhwc(y.to(dtype)), gamma, beta, shortcut, like_y[1]

    def plain(self, y: Tensor, gamma: Tensor, beta: Tensor, shortcut: Shortcut | None) -> Tensor:
        """As PyTorch has it: statistics in float32 or more, and each operator's result rounded."""
        out = F.batch_norm(y, None, None, gamma, beta, True, 0.0, EPS)
        if shortcut is not None:
            x, scaled = shortcut
            if scaled is not None:
                x = (x.to(scaled.scale.dtype) * channel(scaled.scale) + channel(scaled.shift)).to(x.dtype)
            out = out + x
        return F.relu(out) if self.relu else out

    def gradients(
        self, y: Tensor, gamma: Tensor, beta: Tensor, shortcut: Shortcut | None, gradient: Tensor
    ) -> tuple[Tensor, ...]:
        """Of y, gamma, beta, and of what is added to the normalised y."""
        leaves = [t.detach().clone().requires_grad_() for t in (y, gamma, beta)]
        added = torch.zeros_like(y).requires_grad_()
        whole = Shortcut(added) if shortcut is None else Shortcut(shortcut.x + added, shortcut.affine)
        if shortcut is not None and shortcut.affine is not None:  # `added` beside it
            x, (scale, shift) = shortcut
            whole = Shortcut((x.to(scale.dtype) * channel(scale) + channel(shift)).to(x.dtype) + added)
        return torch.autograd.grad(self.plain(*leaves, whole), [*leaves, added], gradient)

    def check(self, steps: Steps, dtype: torch.dtype, not_finite: bool = False) -> None:
        """Every pass after the convolution, one's results the next one's inputs.

        With `not_finite`, NaN and infinities come with the shortcut: a gradient passes NaN.
        """
        y, gamma, beta, shortcut, gradient = given = self.inputs(dtype)
        if not_finite:
            assert shortcut is not None
            for place, value in enumerate(("nan", "inf", "-inf")):
                shortcut.x[:, place::5, 1, 1] = float(value)
        values = y.numel() // self.c
        var, mean = torch.var_mean(y.double(), (0, 2, 3), correction=0)
        statistics = torch.stack([torch.full_like(mean, values), mean, var * values], 1).float()
        moments, known = steps.finalize(statistics, values, gamma, beta, EPS)
        oracle = to_oracle(given)
        out = steps.apply(y, known, shortcut, self.relu)
        assert_right(out, self.plain(*given[:4]), self.plain(*oracle[:4]), f"apply of {self}")

        relu = Relu(known, shortcut) if self.relu else None
        dy, dgamma, dbeta, dadded = self.gradients(*given)
        dy64, dgamma64, dbeta64, dadded64 = self.gradients(*oracle)
        kept = gradient.clone()
        ours, masked, sums = steps.norm_backward(y, gradient, moments, relu, reduce=None)
        assert_right(sums[:, 0].clone(), dbeta, dbeta64, f"sum_g of {self}")
        assert_right(sums[:, 1] * moments.invstd, dgamma, dgamma64, f"sum_gy of {self}")
        assert masked is None
        assert torch.equal(gradient, kept)
        assert_right(ours, dy, dy64, f"dy of {self}")
        over, masked, _ = steps.norm_backward(y, kept, moments, relu, reduce=None, overwrite=True, keep_masked=True)
        assert torch.equal(over, ours)
        assert masked is not None
        assert_right(masked, dadded, dadded64, f"g of {self}")


def check_finalize(steps: Steps, channels: int, running_dtype: torch.dtype | None, affine_: bool) -> None:
    """Against F.batch_norm, whose running statistics are float32; others are rounded from those."""
    values = 36
    y = torch.randn(4, channels, 3, 3) * 3 + channel(torch.randn(channels) * 10)
    gamma, beta = affine(channels) if affine_ else (None, None)
    var, mean = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    statistics = torch.stack([torch.full_like(mean, values), mean, var * values], 1).float()
    running = before = None
    if running_dtype is not None:
        before = torch.randn(channels).to(running_dtype), torch.rand(channels).to(running_dtype)
        running = Running(before[0].clone(), before[1].clone(), 0.3)
    moments, known = steps.finalize(statistics, values, gamma, beta, EPS, running)
    assert moments.values == values
    assert torch.equal(moments.mean, statistics[:, 1])
    invstd = (var + EPS).rsqrt()
    scale = invstd if gamma is None else invstd * gamma
    shift = -mean * scale if beta is None else beta - mean * scale
    for name, ours, exact in (
        ("invstd", moments.invstd, invstd),
        ("scale", moments.scale, scale),
        ("shift", known.shift, shift),
    ):
        assert_right(ours, exact.float(), exact, name)
    assert torch.equal(known.scale, moments.scale)
    if running is not None and before is not None:
        expected = [t.double() for t in before]
        F.batch_norm(y.double(), *expected, None, None, True, 0.3, EPS)
        for ours, exact in zip(running[:2], expected, strict=True):
            assert_right(ours, exact.to(ours.dtype), exact, "running statistics")
