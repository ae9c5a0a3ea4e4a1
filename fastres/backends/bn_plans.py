"""Launches of csrc/kernels/bn_act.cu and bn_merge.cu: BatchNorm with ReLU and residual, forward and backward.

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
from .steps import Affine, Moments, Relu, Running, Shortcut

Named = Mapping[str, Tensor | None]


def statistics(y: Tensor) -> Work:
    """[C, 3] in float32: how many values, their mean, and the sum of their squared deviations from it."""
    return _reduction("statistics", 3, {"x": y}, {})


def merge(partial: Tensor) -> Work:
    """[C, 3]: the statistics of all tiles, of each tile's in `partial`, [tiles, C, 3]; in a fixed order."""
    if partial.dim() != 3 or partial.shape[2] != 3 or partial.dtype != torch.float32 or not partial.is_contiguous():
        raise ValueError(f"partial: expected float32 [tiles, C, 3], got {partial.dtype} {tuple(partial.shape)}")
    module = native.require()
    tiles, channels, _ = partial.shape
    result = torch.empty_like(partial[0])
    kind = module.BnActPass.statistics
    plan = module.bn_merge_plan(kind, tiles, channels, partial.data_ptr(), result.data_ptr())
    return Work([plan], [partial], [], result)


def finalize(
    statistics: Tensor,
    values: int,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    running: Running | None = None,
) -> Work:
    """[4, C]: mean, invstd, scale and shift of `statistics`, [C, 3]; updates the running statistics, float32, in place.

    Else as `Steps.finalize`.
    """
    channels = statistics.shape[0]
    _check_reduced("statistics", statistics, channels, 3)
    result = torch.empty((4, channels), dtype=torch.float32, device=statistics.device)
    mean, var, momentum = running or (None, None, 0.0)
    for kept in running[:2] if running else ():
        if not kept.is_contiguous():
            raise ValueError(f"running: expected contiguous vectors, got one of strides {kept.stride()}")
    given = {"gamma": gamma, "beta": beta, "running_mean": mean, "running_var": var}
    vectors = {name: vector_of(name, v, channels, statistics.device) for name, v in given.items() if v is not None}
    addresses = {name: v.data_ptr() for name, v in {**vectors, "statistics": statistics, "vectors": result}.items()}
    plan = native.require().bn_finalize_plan(channels, values, eps, momentum, **addresses)
    return Work([plan], [statistics, *vectors.values()], [], result)


def apply(y: Tensor, affine: Affine, shortcut: Shortcut | None = None, relu: bool = True) -> Work:
    """act(y * scale + shift [+ shortcut]), like y."""
    result = torch.empty_like(y)
    tensors, vectors = _argument(Relu(affine, shortcut))
    return _work("apply", {"x": y, **tensors}, vectors, {"y": result}, result, relu=relu)


def gradient_sums(y: Tensor, gradient: Tensor, mean: Tensor, relu: Relu | None = None) -> Work:
    """[C, 2] in float32: sums of g and g * (y - mean); g is `gradient` where `relu` passes it, else 0."""
    tensors, vectors = _argument(relu)
    return _reduction("sums", 2, {"x": y, "gradient": gradient, **tensors}, {"mean": mean, **vectors}, relu)


def backward(
    y: Tensor,
    gradient: Tensor,
    moments: Moments,
    sums: Tensor,
    relu: Relu | None = None,
    *,
    overwrite: bool = False,
    masked: Tensor | None = None,
) -> Work:
    """The gradient of y through BatchNorm in training, and a ReLU if given; over `gradient` with `overwrite`.

    `sums` is what `gradient_sums` gave. `masked`, like y, is written if given: the gradient behind the ReLU.
    """
    _check_reduced("sums", sums, y.shape[1], 2)
    result = gradient if overwrite else torch.empty_like(y)
    tensors, vectors = _argument(relu)
    vectors |= {"mean": moments.mean, "invstd": moments.invstd, "gradient_scale": moments.scale}
    return _work(
        "backward",
        {"x": y, "gradient": gradient, **tensors},
        vectors,
        {"y": result, "gradient_residual": masked},
        result,
        relu=relu is not None,
        values=moments.values,
        sums=sums,
    )


def _argument(relu: Relu | None) -> tuple[dict[str, Tensor | None], dict[str, Tensor | None]]:
    """What makes the argument of a ReLU beside y: tensors, and vectors of the channels."""
    if relu is None:
        return {}, {}
    (scale, shift), shortcut = relu
    if shortcut is None:
        return {}, {"scale": scale, "shift": shift}
    scale2, shift2 = shortcut.affine or (None, None)
    return {"residual": shortcut.x}, {"scale": scale, "shift": shift, "scale2": scale2, "shift2": shift2}


def _reduction(kind: str, values: int, tensors: Named, vectors: Named, relu: Relu | None = None) -> Work:
    y = tensors["x"]
    assert y is not None
    channels = y.shape[1]
    slabs = native.require().bn_act_slabs(dtype_of(y), y.numel() // max(channels, 1), channels)
    slabs += kind == "statistics"  # a row for what the slabs' means are relative to
    partial = torch.empty((slabs, channels, values), dtype=torch.float32, device=y.device)
    result = torch.empty((channels, values), dtype=torch.float32, device=y.device)
    return _work(kind, tensors, vectors, {}, result, relu=relu is not None, partial=partial, sums=result)


# What the kernels call the arguments of this module.
_SAID = {
    "x": "y",
    "residual": "shortcut.x",
    "gradient_residual": "masked",
    "scale": "affine.scale",
    "shift": "affine.shift",
    "scale2": "shortcut.affine.scale",
    "shift2": "shortcut.affine.shift",
    "gradient_scale": "moments.scale",
    "invstd": "moments.invstd",
}


def _work(
    kind: str,
    tensors: Named,
    vectors: Named,
    written: Named,
    result: Tensor,
    *,
    relu: bool,
    values: int = 0,
    partial: Tensor | None = None,
    sums: Tensor | None = None,
) -> Work:
    """One pass over `tensors`, of which "x" is the first, that writes `written`, or `partial` and then `sums`."""
    module = native.require()
    y = tensors["x"]
    assert y is not None
    channels = y.shape[1]
    for name, tensor in [*tensors.items(), *written.items()]:
        if tensor is not None:
            said = _SAID.get(name, name)
            check_dense(said, tensor, y)
            if tensor.shape != y.shape:
                raise ValueError(f"{said}: expected {tuple(y.shape)}, that of y, got {tuple(tensor.shape)}")
    given = {
        name: vector_of(_SAID.get(name, name), vector, channels, y.device)
        for name, vector in vectors.items()
        if vector is not None
    }
    named = {**tensors, **given, **written, "partial": partial, "result": sums}
    addresses: dict[str, Any] = {name: tensor.data_ptr() for name, tensor in named.items() if tensor is not None}
    rows = y.numel() // channels
    kind = getattr(module.BnActPass, kind)
    plans = module.bn_act_plan(dtype_of(y), kind, rows, channels, relu=relu, values=values, **addresses)
    reads = [tensor for tensor in (*tensors.values(), *given.values()) if tensor is not None]
    if sums is not None and sums is not result:
        reads.append(sums)
    scratch = [tensor for tensor in (*written.values(), partial) if tensor is not None and tensor is not result]
    return Work(plans, reads, scratch, result)


def vector_of(name: str, vector: Tensor, channels: int, device: torch.device) -> Tensor:
    """`vector`, contiguous; ValueError, by `name`, for one that does not belong to `channels` on `device`."""
    if vector.shape != (channels,) or vector.dtype != torch.float32 or vector.device != device:
        got = f"{vector.dtype} {tuple(vector.shape)} on {vector.device}"
        raise ValueError(f"{name}: expected float32 [{channels}] on {device}, got {got}")
    return vector.contiguous()


def _check_reduced(name: str, reduced: Tensor, channels: int, values: int) -> None:
    if reduced.shape != (channels, values) or reduced.dtype != torch.float32 or not reduced.is_contiguous():
        got = f"{reduced.dtype} {tuple(reduced.shape)}"
        raise ValueError(f"{name}: expected float32 [{channels}, {values}], dense, got {got}")
