"""The one tolerance rule: a result may err twice as much as PyTorch's own in the same dtype, plus one ulp.

The oracle is a float64 computation on the CPU. An error is the largest absolute difference from it; the ulp is that
of its largest value. NaN and infinities must stand where PyTorch's stand. There is no constant to tune or loosen.
The factor of two over the framework's own error is the rule of FlashAttention's tests.

Where PyTorch may compute float32 convolutions in TF32, cuDNN does so or not as its heuristics choose, and its error is
one or a thousand: `pytorchs_own` makes a measure of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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
    """The figures of a check, in the result's unit: both errors, the bound, and the oracle's largest value."""

    error: float
    baseline_error: float
    bound: float
    largest: float

    def __str__(self) -> str:
        return f"error {self.error:.3g}, allowed {self.bound:.3g} (PyTorch's own {self.baseline_error:.3g})"


_OPERANDS = {torch.ops.aten.convolution.default: 2, torch.ops.aten.convolution_backward.default: 3}  # how many


class _OperandsInTf32(TorchDispatchMode):
    """Within it, float32 operands of convolutions on a type of device, and of their gradients, are rounded to TF32."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        n = _OPERANDS.get(func, 0)
        return func(*map(self._operand, args[:n]), *args[n:], **(kwargs or {}))

    def _operand(self, t: Tensor) -> Tensor:
        return tf32.rounded(t) if t.device.type == self._device and t.dtype == torch.float32 else t


@contextmanager
def pytorchs_own() -> Iterator[None]:
    """Within it, PyTorch's float32 convolutions are those that its own error is taken from: a baseline.

    Where its switch allows TF32, every convolution on a GPU is of operands rounded to TF32 and else exact, whatever
    cuDNN's heuristics would choose; where it does not, and on a CPU, all are exact.
    """
    rounds = conv_tf32() and torch.cuda.is_available()
    with _OperandsInTf32("cuda") if rounds else nullcontext(), tf32.allowed(False):
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
    largest = exact.abs().max().item()
    error = (ours[settled] - exact).abs().max().item()
    baseline_error = (theirs[settled] - exact).abs().max().item()
    parity = Parity(error, baseline_error, factor * baseline_error + torch.finfo(baseline.dtype).eps * largest, largest)
    if error > parity.bound:
        raise ParityError(str(parity))
    return parity


def _marks(values: Tensor) -> Tensor:
    """0 where finite, else 1 for NaN, 2 and 3 for the infinities."""
    return values.isnan() + 2 * values.isposinf() + 3 * values.isneginf()
