"""The passes of a training step on the CPU in native code, csrc/cpu: each one pass over memory, in float32 and float64.

Convolutions are PyTorch's own operators. For other dtypes, and where the native module was not built, `aten_steps`
has the passes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from .. import native
from ..block import Geometry, Pool, pooled
from ..layout import empty
from .aten_steps import FULL, AtenSteps, workspace
from .reference_steps import conv_backward, stand_in
from .steps import Affine, Moments, Relu, Shortcut

_LARGEST = 2**31 - 1  # of a pool's numbers, as PyTorch has it


def unavailable() -> str:
    """Why the native module is not there or does not load, or ''."""
    try:
        return native.why_missing()
    except ImportError as error:
        return str(error)


class CpuSteps(AtenSteps):
    """The passes; every one raises ValueError, by name, for a tensor that does not fit."""

    def __init__(self) -> None:
        """Raises ImportError where the native module was not built."""
        super().__init__()
        self._native = native.require()
        _keep_freed_memory()

    def conv(
        self, x: Tensor, weight: Tensor, geometry: Geometry, prologue: Affine | None = None
    ) -> tuple[Tensor, Tensor]:
        if x.dtype not in FULL:
            return super().conv(x, weight, geometry, prologue)
        y = self.conv_alone(x, weight, geometry, prologue).contiguous(memory_format=torch.channels_last)
        statistics = y.new_empty((y.shape[1], 3))
        self._native.cpu_statistics(*_problem(y), y.data_ptr(), statistics.data_ptr())
        return y, statistics

    def vectors(self, statistics: Tensor, values: int, gamma: Tensor | None, beta: Tensor | None, eps: float) -> Tensor:
        channels = len(statistics)
        given = [t for t in (statistics, gamma, beta) if t is not None]
        if not all(t.dtype in FULL and t.dtype == statistics.dtype and t.is_contiguous() for t in given):
            return super().vectors(statistics, values, gamma, beta, eps)
        if statistics.shape != (channels, 3) or any(t.shape != (channels,) for t in given[1:]):
            raise ValueError(f"statistics, gamma, beta: expected [C, 3] and [C], got {[tuple(t.shape) for t in given]}")
        vectors = statistics.new_empty((4, channels))
        self._native.cpu_vectors(
            statistics.dtype == torch.float64, channels, statistics.data_ptr(), values,
            0 if gamma is None else gamma.data_ptr(), 0 if beta is None else beta.data_ptr(), eps, vectors.data_ptr(),
        )  # fmt: skip
        return vectors

    def apply(self, y: Tensor, affine: Affine, shortcut: Shortcut | None = None, relu: bool = True) -> Tensor:
        if y.dtype not in FULL:
            return super().apply(y, affine, shortcut, relu)
        return self._apply(torch.empty_like(y, memory_format=torch.channels_last), y, affine, shortcut, relu)

    def _apply(self, out: Tensor, y: Tensor, affine: Affine, shortcut: Shortcut | None, relu: bool) -> Tensor:
        y = _activation("y", y, y)
        argument = _argument(y, Relu(affine, shortcut))
        self._native.cpu_apply(*_problem(y), y.data_ptr(), _addresses(argument), relu, out.data_ptr())
        return out

    def apply_pool(self, y: Tensor, affine: Affine, shortcut: Shortcut | None, relu: bool, pool: Pool) -> Tensor:
        """Without a shortcut, one pass that writes nothing but the maxima."""
        if y.dtype not in FULL or shortcut is not None:
            return super().apply_pool(y, affine, shortcut, relu, pool)
        return self._pool(empty(y, _pooled(y, pool)), y, affine, relu, pool, None)

    def pool_backward(
        self, y: Tensor, gradient: Tensor, affine: Affine, shortcut: Shortcut | None, relu: bool, pool: Pool
    ) -> Tensor:
        """Without a shortcut, one pass, which finds the maxima again; its result is good until the block's end."""
        if y.dtype not in FULL or shortcut is not None:
            return super().pool_backward(y, gradient, affine, shortcut, relu, pool)
        gradient = _activation("gradient", gradient, empty(y, _pooled(y, pool)))
        return self._pool(workspace.like(y, "pooled"), y, affine, relu, pool, gradient)

    def _pool(self, out: Tensor, y: Tensor, affine: Affine, relu: bool, pool: Pool, gradient: Tensor | None) -> Tensor:
        y = _activation("y", y, y)
        scale, shift = _vector("scale", affine.scale, y), _vector("shift", affine.shift, y)
        self._native.cpu_max_pool(
            y.dtype == torch.float64, torch.get_num_threads(), tuple(y.shape), _pooled(y, pool)[2:], tuple(pool),
            y.data_ptr(), scale.data_ptr(), shift.data_ptr(), relu,
            0 if gradient is None else gradient.data_ptr(), out.data_ptr(),
        )  # fmt: skip
        return out

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
        if y.dtype not in FULL:
            return super().norm_backward(
                y, gradient, moments, relu, reduce=reduce, overwrite=overwrite, keep_masked=keep_masked
            )
        y, gradient = _activation("y", y, y), _activation("gradient", gradient, y)
        mean, invstd, scale = (
            _vector(name, vector, y) for name, vector in zip(("mean", "invstd", "scale"), moments[:3], strict=True)
        )
        problem, argument = _problem(y), _argument(y, relu)
        addresses, masks = _addresses(argument), relu is not None
        masked = gradient
        if keep_masked and masks and not overwrite:
            masked = workspace.like(y, "kept")
        sums = y.new_empty((y.shape[1], 2))
        self._native.cpu_sums(
            *problem, y.data_ptr(), gradient.data_ptr(), mean.data_ptr(), addresses, masks,
            masked.data_ptr() if keep_masked and masks else 0, sums.data_ptr(),
        )  # fmt: skip
        total = sums if reduce is None else _sums(reduce(sums), y)
        if overwrite and not keep_masked:
            out = gradient
        elif relu is None:  # the workspace may have the gradient of the branch beside this shortcut
            out = torch.empty_like(y, memory_format=torch.channels_last)
        else:
            out = workspace.like(y, "dy")
        if keep_masked:
            addresses, masks = _addresses(()), False
        self._native.cpu_backward(
            *problem, y.data_ptr(), masked.data_ptr(), mean.data_ptr(), invstd.data_ptr(), scale.data_ptr(),
            total.data_ptr(), moments.values, addresses, masks, out.data_ptr(),
        )  # fmt: skip
        return out, masked if keep_masked else None, sums

    def wgrad(
        self, gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, prologue: Affine | None = None
    ) -> Tensor:
        if x.dtype not in FULL:
            return super().wgrad(gradient, x, weight, geometry, prologue)
        a = x if prologue is None else self._apply(workspace.like(x, "input"), x, prologue, None, True)
        return conv_backward(gradient, a, stand_in(weight, x), geometry, (False, True))[1]


def track(mean: Tensor, var: Tensor, statistics: Tensor, weight: float) -> bool:
    """Moves running statistics, [C], towards a batch's, [C, 3], as BatchNorm does; or False: not by native code."""
    if unavailable() or mean.device.type != "cpu" or mean.dtype not in FULL:
        return False
    for t in (mean, var, statistics):
        if t.dtype != mean.dtype or not t.is_contiguous() or len(t) != len(mean):
            return False
    address, *others = statistics.data_ptr(), mean.data_ptr(), var.data_ptr()
    native.require().cpu_track(mean.dtype == torch.float64, len(mean), address, weight, *others)
    torch.autograd.graph.increment_version((mean, var))
    return True


@cache
def _keep_freed_memory() -> None:
    """At the process's first step; see csrc/cpu/memory.h."""
    native.require().cpu_keep_freed_memory()


def _problem(y: Tensor) -> tuple[bool, int, int, int]:
    """float64, rows, channels, threads."""
    channels = y.shape[1]
    return y.dtype == torch.float64, y.numel() // channels, channels, torch.get_num_threads()


def _activation(name: str, x: Tensor, y: Tensor) -> Tensor:
    """`x` dense in channels_last."""
    if x.shape != y.shape or x.dtype != y.dtype or x.device.type != "cpu":
        raise ValueError(
            f"{name}: expected {y.dtype} {tuple(y.shape)} on cpu, got {x.dtype} {tuple(x.shape)} on {x.device}"
        )
    return x.contiguous(memory_format=torch.channels_last)


def _pooled(y: Tensor, pool: Pool) -> tuple[int, int, int, int]:
    n, channels, height, width = y.shape
    if max(pool) > _LARGEST:
        raise ValueError(f"pool: expected kernel, stride and padding of at most {_LARGEST}, got {tuple(pool)}")
    rows, columns = pooled((height, width), pool)
    if min(rows, columns) < 1:
        raise ValueError(f"pool: {pool} has no window in an image {height, width}")
    return n, channels, rows, columns


def _vector(name: str, vector: Tensor, y: Tensor) -> Tensor:
    if vector.shape != y.shape[1:2] or vector.dtype != y.dtype:
        raise ValueError(f"{name}: expected {y.dtype} [{y.shape[1]}], got {vector.dtype} {tuple(vector.shape)}")
    return vector.contiguous()


def _sums(sums: Tensor, y: Tensor) -> Tensor:
    if sums.shape != (y.shape[1], 2) or sums.dtype != y.dtype:
        raise ValueError(f"sums: expected {y.dtype} [{y.shape[1]}, 2], got {sums.dtype} {tuple(sums.shape)}")
    return sums.contiguous()


def _argument(y: Tensor, relu: Relu | None) -> tuple[Tensor, ...]:
    """scale, shift, shortcut, scale2 and shift2, as they are there."""
    if relu is None:
        return ()
    affine, shortcut = relu
    own = _vector("scale", affine.scale, y), _vector("shift", affine.shift, y)
    if shortcut is None:
        return own
    x = _activation("shortcut", shortcut.x, y)
    if shortcut.affine is None:
        return *own, x
    scale2, shift2 = shortcut.affine
    return *own, x, _vector("shortcut's scale", scale2, y), _vector("shortcut's shift", shift2, y)


def _addresses(argument: tuple[Tensor, ...]) -> tuple[int, ...]:
    addresses = [t.data_ptr() for t in argument]
    return *addresses, *[0] * (5 - len(addresses))
