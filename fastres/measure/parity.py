"""The one tolerance rule: a result may err twice as much as PyTorch's own in the same dtype, plus one ulp.

The oracle is a float64 computation on the CPU. The rule holds for two measures of error: the largest absolute
difference from the oracle, with the ulp of its largest value, and the norm of all differences, with an ulp of each
value. NaN and infinities must stand where PyTorch's stand. There is no constant to tune or loosen. The factor of two
over the framework's own error is the rule of FlashAttention's tests.

PyTorch's error is a measure only if it is no matter of luck, so `pytorchs_own` fixes what is PyTorch's own:

- The layout is channels_last, in which fastres computes. In NCHW, PyTorch takes other algorithms, whose errors are
  twice as large on one processor and half as large on the next.
- Where PyTorch may compute float32 convolutions in TF32, cuDNN does so or not as its heuristics choose, and its error
  is one or a thousand: there every convolution is one of operands rounded to TF32.

Among a few values the largest error is luck too. It counts at least as the largest that so many normally distributed
errors of that norm are expected to show.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .. import tf32
from ..tuning import conv_tf32

FACTOR = 2.0


class ParityError(AssertionError):
    """A result that is further from the oracle than the rule allows, or differs in shape, dtype, NaN or infinities."""


@dataclass(frozen=True)
class Parity:
    """The figures of a check, in the result's unit: both largest errors, the bound, and the oracle's largest value."""

    error: float
    baseline_error: float
    bound: float
    largest: float

    def __str__(self) -> str:
        return f"error {self.error:.3g}, allowed {self.bound:.3g} (PyTorch's own {self.baseline_error:.3g})"


# How many leading arguments are a convolution's operands, and how many of those are activations.
_OPERANDS = {torch.ops.aten.convolution.default: (2, 1), torch.ops.aten.convolution_backward.default: (3, 2)}


class _AsFastresComputes(TorchDispatchMode):
    """Within it, convolutions and their gradients take activations in channels_last.

    With `tf32`, float32 operands on a type of device are rounded to TF32 as well.
    """

    def __init__(self, tf32: str | None = None) -> None:
        super().__init__()
        self._tf32 = tf32

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operands, activations = _OPERANDS.get(func, (0, 0))
        made = [self._operand(t, i < activations) for i, t in enumerate(args[:operands])]
        return func(*made, *args[operands:], **(kwargs or {}))

    def _operand(self, t: Tensor, activation: bool) -> Tensor:
        if self._tf32 == t.device.type and t.dtype == torch.float32:
            t = tf32.rounded(t)
        return t.contiguous(memory_format=torch.channels_last) if activation and t.dim() == 4 else t


@contextmanager
def pytorchs_own() -> Iterator[None]:
    """Within it, PyTorch's convolutions are those that its own error is taken from: a baseline.

    They run in channels_last. Where PyTorch's switch allows TF32, every float32 one on a GPU is of operands rounded to
    TF32 and else exact, whatever cuDNN's heuristics would choose; where it does not, and on a CPU, all are exact.
    """
    rounds = conv_tf32() and torch.cuda.is_available()
    with _AsFastresComputes("cuda" if rounds else None), tf32.allowed(False):
        yield


def check(actual: Tensor, expected64: Tensor, baseline: Tensor, factor: float = FACTOR) -> Parity:
    """Holds `actual` against the float64 oracle `expected64`, by the measure of `baseline`, PyTorch's own result.

    All three have one shape; `actual` and `baseline` have one dtype, in which both were computed, the latter within
    `pytorchs_own`. `factor` is FACTOR for everything of fastres; another is for those who only have to be shown to
    compute the same function.

    Raises:
        ParityError: `actual` breaks the rule; the message has the figures.
        ValueError: `expected64` is not float64, or `baseline` is of another shape.
    """
    if expected64.dtype != torch.float64:
        raise ValueError(f"expected64: expected float64, got {expected64.dtype}")
    if baseline.shape != expected64.shape:
        raise ValueError(f"baseline: expected shape {tuple(expected64.shape)}, got {tuple(baseline.shape)}")
    if actual.shape != expected64.shape or actual.dtype != baseline.dtype:
        wanted = f"{tuple(expected64.shape)} of {baseline.dtype}"
        raise ParityError(f"expected a result {wanted}, got {tuple(actual.shape)} of {actual.dtype}")
    exact, ours, theirs = (t.detach().cpu().double() for t in (expected64, actual, baseline))
    settled = theirs.isfinite()
    if not torch.equal(_marks(ours), _marks(theirs)):
        counts = f"{int((~ours.isfinite()).sum())} elements, PyTorch's in {int((~settled).sum())}"
        raise ParityError(f"NaN or infinities stand elsewhere than PyTorch's: in {counts}")
    settled &= exact.isfinite()
    if not settled.any():
        return Parity(0.0, 0.0, 0.0, 0.0)
    exact = exact[settled]
    off, own = ours[settled] - exact, theirs[settled] - exact
    ulp = torch.finfo(baseline.dtype).eps
    largest = exact.abs().max().item()
    baseline_error = max(own.abs().max().item(), _expected_largest(own))
    parity = Parity(off.abs().max().item(), baseline_error, factor * baseline_error + ulp * largest, largest)
    if parity.error > parity.bound:
        raise ParityError(str(parity))
    norms = Parity(off.norm().item(), own.norm().item(), (factor * own.norm() + ulp * exact.norm()).item(), largest)
    if norms.error > norms.bound:
        raise ParityError(f"in norm, {norms}")
    return parity


def _expected_largest(errors: Tensor) -> float:
    """What the largest of so many normally distributed errors of this norm is, about: their rms * sqrt(2 ln n)."""
    n = errors.numel()
    return errors.norm().item() * math.sqrt(2 * math.log(n) / n)


def _marks(values: Tensor) -> Tensor:
    """0 where finite, else 1 for NaN, 2 and 3 for the infinities."""
    return values.isnan() + 2 * values.isposinf() + 3 * values.isneginf()
