"""Operator `stage`: residual blocks in sequence, one call for one of the paper's conv2_x to conv5_x.

One operator instead of a dozen saves dispatch; and since every block's output but the last is known to no one else,
the next block may accumulate into it, which the operators of one convolution must not do with their residual.
"""

from __future__ import annotations

from torch import Tensor

from .. import reference
from ..layer import unflatten
from .conv import run_conv, run_projection
from .library import channels_last_like, define


def _run(x: Tensor, tensors: list[Tensor], spec: list[int], eps: list[float], backend: str) -> Tensor:
    owned = False  # whether `x` was made in this call
    for branch, shortcut in unflatten(tensors, spec, eps):
        y = x
        for layer in branch[:-1]:
            y = run_conv(y, layer, None, True, backend)
        if shortcut is None:
            x = run_conv(y, branch[-1], x, True, backend, overwrite=owned)
        else:
            x = run_projection(y, branch[-1], x, shortcut, backend)
        owned = True
    return x


def _fake(x: Tensor, tensors: list[Tensor], spec: list[int], eps: list[float], backend: str) -> Tensor:
    for branch, _ in unflatten(tensors, spec, eps):
        for layer in branch:
            x = channels_last_like(x, layer.out_size(x))
    return x


define(
    "stage(Tensor x, Tensor[] tensors, int[] spec, float[] eps, str backend) -> Tensor",
    implementation=_run,
    fake=_fake,
    reference=lambda x, tensors, spec, eps, backend: reference.stage(x, unflatten(tensors, spec, eps)),
    activations=(0,),
)
