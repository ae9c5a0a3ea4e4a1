"""Launches of csrc/kernels/bn_pool.cu: the end of a stem in training, BatchNorm, ReLU and a max pool, and its backward.

Tensors are as in `bn_plans`. A pool is (kernel, stride, padding) of a square window, dilation 1, sizes rounded down.
Every function raises ValueError, by name, for a tensor that does not fit, and for what is not `runnable`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native
from ..block import Pool, pooled
from .bn_plans import vector_of
from .plans import Work, check_dense, dtype_of
from .steps import Affine

_LARGEST_WINDOW = 15  # csrc/kernels/bn_pool.cu's: its taps are counted in a byte
_VECTOR = 16  # bytes of channels that a thread has


def runnable(y: Tensor, affine: Affine, pool: Pool, gradient: Tensor | None = None) -> bool:
    """Whether the kernels can run it: channels and addresses multiples of 16 bytes, a window of at most 15x15."""
    kernel, _, padding = pool
    given = (y, *affine) if gradient is None else (y, *affine, gradient)
    aligned = all(tensor.data_ptr() % _VECTOR == 0 for tensor in given)
    window = 2 * padding <= kernel <= _LARGEST_WINDOW  # more padding is an error, which PyTorch words
    return aligned and window and y.shape[1] * y.element_size() % _VECTOR == 0 and y.numel() > 0


def apply(y: Tensor, affine: Affine, relu: bool, pool: Pool) -> Work:
    """max_pool(act(y * scale + shift)): [N, C, P, Q] of y's dtype, dense in channels_last."""
    n, channels, *_ = y.shape
    result = torch.empty(
        (n, channels, *pooled(y.shape[2:], pool)), dtype=y.dtype, device=y.device, memory_format=torch.channels_last
    )
    vectors = _checked(y, affine)
    plan = _plan("pool", y, pool, relu=relu, x=y, y=result, **vectors)
    return Work([plan], [y, *vectors.values()], [], result)


def backward(y: Tensor, gradient: Tensor, affine: Affine, relu: bool, pool: Pool) -> Work:
    """The gradient of act(y * scale + shift), like y, from that of what `apply` gives; 0 where nothing is a maximum."""
    vectors = _checked(y, affine)
    check_dense("gradient", gradient, y)
    expected = (*y.shape[:2], *pooled(y.shape[2:], pool))
    if gradient.shape != expected:
        raise ValueError(f"gradient: expected {expected}, got {tuple(gradient.shape)}")
    taps = torch.empty_like(gradient, dtype=torch.uint8)
    result = torch.empty_like(y)
    plans = [
        _plan("taps", y, pool, relu=relu, x=y, taps=taps, **vectors),
        _plan("gather", y, pool, gradient=gradient, taps=taps, y=result),
    ]
    return Work(plans, [y, gradient, *vectors.values()], [taps], result)


def _checked(y: Tensor, affine: Affine) -> dict[str, Tensor]:
    check_dense("y", y, y)
    named = affine._asdict().items()
    return {name: vector_of(f"affine.{name}", vector, y.shape[1], y.device) for name, vector in named}


def _plan(kind: str, like: Tensor, pool: Pool, *, relu: bool = False, **tensors: Tensor) -> object:
    module = native.require()
    addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}
    given = (
        dtype_of(like),
        getattr(module.BnPoolPass, kind),
        tuple(like.shape),
        pooled(like.shape[2:], pool),
        tuple(pool),
    )
    return module.bn_pool_plan(*given, relu=relu, **addresses)
