"""Launches of csrc/kernels/bn_act.cu: BatchNorm with ReLU and residual, forward and backward.

Tensors are [N, C, H, W], dense in channels_last, of bfloat16, float16 or float32; what belongs to a channel is a
float32 vector [C]. Every function raises ValueError, by name, for a tensor that does not fit. Running the launches is
the part of a backend of `plans.Planned`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import native
from .plans import Work, check_dense, dtype_of


def statistics(x: Tensor) -> Work:
    """[C, 3] in float32: how many values, their mean, and the sum of their squared deviations from it."""
    return _reduction("statistics", 3, x=x)


def apply(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    relu: bool,
    residual: Tensor | None = None,
    residual_scale: Tensor | None = None,
    residual_shift: Tensor | None = None,
) -> Work:
    """act(x * scale + shift [+ residual, itself scaled and shifted where those are given]), like x."""
    if (residual_scale is None) != (residual_shift is None) or (residual_scale is not None and residual is None):
        raise ValueError("residual_scale, residual_shift: expected both, with a residual, or neither")
    channels = {"scale": scale, "shift": shift, "scale2": residual_scale, "shift2": residual_shift}
    y = torch.empty_like(x)
    return _work("apply", y, [], relu, {"x": x, "residual": residual}, channels, {"y": y})


def gradient_sums(x: Tensor, gradient: Tensor, mean: Tensor, output: Tensor | None = None) -> Work:
    """[C, 2] in float32: sums of g and g * (x - mean); g is `gradient`, or 0 where a given `output` is not over 0."""
    return _reduction("sums", 2, x=x, gradient=gradient, output=output, mean=mean)


def backward(
    x: Tensor,
    gradient: Tensor,
    mean: Tensor,
    invstd: Tensor,
    scale: Tensor,
    sums: Tensor,
    output: Tensor | None = None,
    gradient_residual: Tensor | None = None,
) -> Work:
    """The gradient of x through BatchNorm in training, and `output`'s ReLU if given.

    `sums` is what `gradient_sums` gave, `scale` is gamma * invstd. `gradient_residual`, like x, is written if given:
    the gradient behind the ReLU.
    """
    if sums.shape != (x.shape[1], 2) or sums.dtype != torch.float32 or not sums.is_contiguous():
        raise ValueError(f"sums: expected float32 [{x.shape[1]}, 2], got {sums.dtype} {tuple(sums.shape)}")
    dx = torch.empty_like(x)
    tensors = {"x": x, "gradient": gradient, "output": output}
    channels = {"mean": mean, "invstd": invstd, "scale": scale}
    written = {"y": dx, "gradient_residual": gradient_residual}
    return _work("backward", dx, [], output is not None, tensors, channels, written, sums)


def _reduction(kind: str, values: int, mean: Tensor | None = None, **tensors: Tensor | None) -> Work:
    x = tensors["x"]
    assert x is not None
    channels = x.shape[1]
    slabs = native.require().bn_act_slabs(dtype_of(x), x.numel() // max(channels, 1), channels)
    partial = torch.empty((slabs, channels, values), dtype=torch.float32, device=x.device)
    result = torch.empty((channels, values), dtype=torch.float32, device=x.device)
    relu = tensors.get("output") is not None
    return _work(kind, result, [partial], relu, tensors, {"mean": mean}, {}, result)


def _work(
    kind: str,
    result: Tensor,
    scratch: list[Tensor],
    relu: bool,
    tensors: Mapping[str, Tensor | None],
    vectors: Mapping[str, Tensor | None],
    written: Mapping[str, Tensor | None],
    sums: Tensor | None = None,
) -> Work:
    module = native.require()
    x = tensors["x"]
    assert x is not None
    channels = x.shape[1]
    for name, tensor in {**tensors, **written}.items():
        if tensor is not None:
            check_dense(name, tensor, x)
            if tensor.shape != x.shape:
                raise ValueError(f"{name}: expected {tuple(x.shape)}, that of x, got {tuple(tensor.shape)}")
    for name, tensor in vectors.items():
        if tensor is not None and (
            tensor.shape != (channels,) or tensor.dtype != torch.float32 or tensor.device != x.device
        ):
            got = f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
            raise ValueError(f"{name}: expected float32 [{channels}] on {x.device}, got {got}")
    vectors = {name: None if tensor is None else tensor.contiguous() for name, tensor in vectors.items()}
    addresses: dict[str, Any] = {
        name: tensor.data_ptr() for name, tensor in {**tensors, **vectors, **written}.items() if tensor is not None
    }
    if scratch:
        addresses["partial"] = scratch[0].data_ptr()
    if sums is not None:
        addresses["result"] = sums.data_ptr()
    rows = x.numel() // channels
    plans = module.bn_act_plan(dtype_of(x), getattr(module.BnActPass, kind), rows, channels, relu=relu, **addresses)
    reads = [tensor for tensor in (*tensors.values(), *vectors.values()) if tensor is not None]
    if sums is not None and sums is not result:
        reads.append(sums)
    others = [tensor for tensor in written.values() if tensor is not None and tensor is not result]
    return Work(plans, reads, [*scratch, *others], result)
