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
from .steps import Affine, Moments, Relu, Shortcut

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
    if sums.shape != (y.shape[1], 2) or sums.dtype != torch.float32 or not sums.is_contiguous():
        raise ValueError(f"sums: expected float32 [{y.shape[1]}, 2], got {sums.dtype} {tuple(sums.shape)}")
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
    given = {}
    for name, tensor in vectors.items():
        if tensor is None:
            continue
        if tensor.shape != (channels,) or tensor.dtype != torch.float32 or tensor.device != y.device:
            got = f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
            said = _SAID.get(name, name)
            raise ValueError(f"{said}: expected float32 [{channels}] on {y.device}, got {got}")
        given[name] = tensor.contiguous()
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
