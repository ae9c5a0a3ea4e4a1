"""A block's training step over the passes of a backend: forward, and backward from what forward kept.

Kept, beside the block's input, are each layer's raw convolution output and its vectors [4, K]: mean, invstd, scale and
shift, as BatchNorm applied them. Normalised activations and ReLU masks are made again from these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..backends.steps import Affine, Moments, Relu, Shortcut, Steps
from ..block import ConvBN, Norm, TrainBlock
from ..layout import nhwc
from .statistics import merged, summed


class Kept(NamedTuple):
    """Of one layer: y [N, K, P, Q], the vectors, and where statistics are of batches, those, [K, 3], of all batches."""

    y: Tensor
    vectors: Tensor
    statistics: Tensor | None


def affine(vectors: Tensor) -> Affine:
    _, _, scale, shift = vectors.unbind()
    return Affine(scale, shift)


def _weight(layer: ConvBN, x: Tensor) -> Tensor:
    """As a convolution of x takes it."""
    return nhwc(layer.weight if layer.weight.dtype == x.dtype else layer.weight.to(x.dtype))


def forward(steps: Steps, block: TrainBlock, x: Tensor, other: Tensor | None, group: str) -> tuple[Tensor, list[Kept]]:
    """The block's output, and what is kept of each layer, the shortcut's last. Tensors are dense in channels_last.

    Raises ValueError where a statistic would be of one value, as PyTorch does, and for a shortcut of another shape.
    """
    source = x if other is None else other
    kept: list[Kept] = []
    y, normalise = x, None
    for layer, norm in zip(block.branch, block.norms, strict=False):
        kept.append(_layer(steps, layer, norm, y, normalise, group))
        y, normalise = kept[-1].y, affine(kept[-1].vectors)
    assert normalise is not None
    shortcut = Shortcut(source) if block.identity else None
    if block.shortcut is not None:
        kept.append(_layer(steps, block.shortcut, block.norms[-1], source, None, group))
        shortcut = Shortcut(kept[-1].y, affine(kept[-1].vectors))
    if shortcut is not None and shortcut.x.shape != y.shape:
        raise ValueError(f"shortcut: expected {tuple(y.shape)}, got {tuple(shortcut.x.shape)}")
    end = y, normalise, shortcut, block.relu
    return steps.apply_pool(*end, block.pool) if block.pool[0] else steps.apply(*end), kept


def _layer(steps: Steps, layer: ConvBN, norm: Norm, x: Tensor, prologue: Affine | None, group: str) -> Kept:
    weight = _weight(layer, x)
    if norm is Norm.RUNNING:
        y = steps.conv_alone(x, weight, layer.geometry, prologue)
        wide = torch.promote_types(y.dtype, torch.float32)
        mean, invstd = layer.mean.to(wide), (layer.var.to(wide) + layer.eps).rsqrt()
        scale = invstd if layer.gamma is None else layer.gamma.to(wide) * invstd
        shift = -mean * scale if layer.beta is None else torch.addcmul(layer.beta.to(wide), mean, scale, value=-1)
        return Kept(y, torch.stack([mean, invstd, scale, shift]), None)
    values = _values(x, layer)
    if values == 1 and norm is Norm.BATCH:
        size = torch.Size(layer.out_size(x))
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {size}")
    y, statistics = steps.conv(x, weight, layer.geometry, prologue)
    local = statistics
    if norm is Norm.SYNCHRONISED:
        statistics = merged(statistics, group)
        # As if this process had all the deviations: m2 / values is the variance, and the host need not know the count.
        local = torch.stack([*statistics.unbind(1)[:2], statistics[:, 2] * (values / statistics[:, 0])], 1)
    return Kept(y, steps.vectors(local, values, layer.gamma, layer.beta, layer.eps), statistics)


def _values(x: Tensor, layer: ConvBN) -> int:
    n, _, height, width = layer.out_size(x)
    return n * height * width


class Gradients(NamedTuple):
    """Of x and the second activation, and of each layer's weight, gamma and beta; None where not asked for."""

    x: Tensor | None
    other: Tensor | None
    layers: list[tuple[Tensor | None, Tensor | None, Tensor | None]]


def backward(
    steps: Steps,
    block: TrainBlock,
    gradient: Tensor,
    x: Tensor,
    other: Tensor | None,
    kept: Sequence[Kept],
    needed: Sequence[bool],
    group: str,
) -> Gradients:
    """The gradients from that of the output, where `needed`: x, other, then weight, gamma and beta of each layer.

    Weights are all that `block`'s layers need to have. `gradient` is not written to.
    """
    x_needed, other_needed, *of_layers = needed
    wanted = [tuple(of_layers[i : i + 3]) for i in range(0, len(of_layers), 3)]
    found: list[tuple[Tensor | None, Tensor | None, Tensor | None]] = [(None, None, None)] * len(kept)
    source = x if other is None else other
    source_needed = x_needed if other is None else other_needed
    depth = len(block.branch)
    # How far back a gradient is of use: to the first layer that needs one, or through it to x.
    first = next((i for i in range(depth) if x_needed or any(wanted[i])), depth)

    vectors = [layer.vectors.unbind() for layer in kept]  # mean, invstd, scale, shift
    affines = [Affine(scale, shift) for _, _, scale, shift in vectors]
    shortcut = Shortcut(source) if block.identity else None
    if block.shortcut is not None:
        shortcut = Shortcut(kept[-1].y, affines[-1])
    last = kept[depth - 1].y
    relu = Relu(affines[depth - 1], shortcut) if block.relu else None
    owned = False
    if block.pool[0]:
        if shortcut is not None and shortcut.x.shape != last.shape:
            raise ValueError(f"shortcut: expected {tuple(last.shape)}, got {tuple(shortcut.x.shape)}")
        gradient = steps.pool_backward(last, gradient, affines[depth - 1], shortcut, block.relu, block.pool)
        owned = True

    def through_norm(i: int, g: Tensor, relu: Relu | None, overwrite: bool, keep: bool = False) -> list[Tensor | None]:
        y, _, statistics = kept[i]
        mean, invstd, scale, _ = vectors[i]
        values = y.numel() // y.shape[1]
        reduce = _reduction(block.norms[i], statistics, values, group)
        dy, masked, sums = steps.norm_backward(
            y, g, Moments(mean, invstd, scale, values), relu, reduce=reduce, overwrite=overwrite, keep_masked=keep
        )
        _, gamma, beta = wanted[i]
        found[i] = (None, sums[:, 1] * invstd if gamma else None, sums[:, 0].clone() if beta else None)
        return [dy, masked]

    def weight_gradient(i: int, dy: Tensor, of: Tensor, prologue: Affine | None, layer: ConvBN) -> None:
        if wanted[i][0]:
            dw = steps.wgrad(dy, of, layer.weight, layer.geometry, prologue)
            found[i] = (dw, *found[i][1:])

    dy, masked = through_norm(depth - 1, gradient, relu, owned, shortcut is not None)
    dsource: Tensor | None = None
    if block.identity:
        # A backend's workspace, perhaps, until the block's end.
        dsource = masked if other is None or masked is None else masked.clone()
    elif block.shortcut is not None and (source_needed or any(wanted[-1])):
        assert masked is not None
        projected, _ = through_norm(depth, masked, None, masked is not gradient)
        assert projected is not None
        weight_gradient(depth, projected, source, None, block.shortcut)
        if source_needed:
            dsource = steps.dgrad(projected, _weight(block.shortcut, x), source, block.shortcut.geometry)

    dx: Tensor | None = None
    for i in reversed(range(first, depth)):
        layer = block.branch[i]
        assert dy is not None
        of, prologue = (kept[i - 1].y, affines[i - 1]) if i else (x, None)
        weight_gradient(i, dy, of, prologue, layer)
        if i > first or x_needed:
            residual = dsource if i == 0 and other is None else None
            g = steps.dgrad(dy, _weight(layer, x), of, layer.geometry, residual)
            if prologue is None:
                dx = g
            else:
                dy, _ = through_norm(i - 1, g, Relu(prologue), True)
    return Gradients(dx, dsource if other is not None and other_needed else None, found)


def _reduction(norm: Norm, statistics: Tensor | None, values: int, group: str) -> Callable[[Tensor], Tensor] | None:
    """What a layer's sums become before they enter its gradient."""
    if norm is Norm.RUNNING:
        return torch.zeros_like
    if norm is Norm.BATCH:
        return None
    assert statistics is not None
    share = values / statistics[:, :1]
    return lambda sums: summed(sums, group) * share
