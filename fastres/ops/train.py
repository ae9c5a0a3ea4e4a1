"""Operator `train_block`: a block's forward in training; and `train_block_backward`, its gradients.

Functional: what a forward keeps for backward is among its results, and so are the batch's statistics, from which
operator `track` updates the running ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..backends import registry, training
from ..block import ConvBN, Norm, TrainBlock, pooled
from ..layout import empty, nhwc
from . import passes
from .library import register
from .passes import Kept

_BLOCK = "int[] spec, float[] eps, int[] options"


def kept_of(results: Sequence[Tensor], norms: Sequence[Norm]) -> Iterator[Kept]:
    """The results of `train_block` after the first, by layer."""
    remaining = iter(results)
    for norm in norms:
        y, vectors = next(remaining), next(remaining)
        yield Kept(y, vectors, None if norm is Norm.RUNNING else next(remaining))


def _forward(x: Tensor, other: Tensor | None, *arguments: Any) -> list[Tensor]:
    *flat, group, backend = arguments
    block = TrainBlock.unflatten(*flat)
    block.branch[0].check(x)
    steps = training.resolve(x, block.layers(), registry.requested(backend))
    out, kept = passes.forward(steps, block, nhwc(x), None if other is None else nhwc(other), group)
    return [nhwc(out), *_flat(kept)]


def _flat(kept: Sequence[Kept]) -> list[Tensor]:
    return [nhwc(t) if t.dim() == 4 else t for layer in kept for t in layer if t is not None]


def _forward_fake(x: Tensor, other: Tensor | None, *arguments: Any) -> list[Tensor]:
    block = TrainBlock.unflatten(*arguments[:4])
    wide = torch.promote_types(x.dtype, torch.float32)
    kept: list[Kept] = []
    for i, (layer, norm) in enumerate(zip(block.layers(), block.norms, strict=True)):
        of = kept[-1].y if kept else x
        if i == len(block.branch):
            of = x if other is None else other
        y = empty(x, layer.out_size(of))
        statistics = None if norm is Norm.RUNNING else x.new_empty((y.shape[1], 3), dtype=wide)
        kept.append(Kept(y, x.new_empty((4, y.shape[1]), dtype=wide), statistics))
    n, channels, *image = kept[len(block.branch) - 1].y.shape
    size = pooled(image, block.pool) if block.pool[0] else image
    return [empty(x, (n, channels, *size)), *_flat(kept)]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, other, *flat, group, backend = inputs
    block = TrainBlock.unflatten(*flat)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    kept = [
        layer if norm is Norm.SYNCHRONISED else layer._replace(statistics=None)
        for norm, layer in zip(block.norms, kept_of(output[1:], block.norms), strict=True)
    ]
    bare = block._replace(
        branch=tuple(map(_bare, block.branch)), shortcut=None if block.shortcut is None else _bare(block.shortcut)
    )
    weights, *ctx.geometry = bare.flatten()
    ctx.counts = other is not None, len(weights)
    ctx.group, ctx.backend = group, registry.requested(backend)  # this thread's; backward may run in another
    # Where each layer's weight, gamma and beta are among the arguments.
    tensors = range(len(flat[0]))
    places = TrainBlock.unflatten(tensors, *flat[1:])  # type: ignore[arg-type]
    ctx.places = [place for layer in places.layers() for place in (layer.weight, layer.gamma, layer.beta)]
    ctx.dtypes = [
        None if t is None else t.dtype for layer in block.layers() for t in (layer.weight, layer.gamma, layer.beta)
    ]
    ctx.save_for_backward(x, *(() if other is None else (other,)), *weights, *_flat(kept))


def _bare(layer: ConvBN) -> ConvBN:
    return layer._replace(bias=None, gamma=None, beta=None, mean=None, var=None, num_batches_tracked=None)  # type: ignore[arg-type]


def _gradient(ctx: Any, gradients: list[Tensor | None]) -> tuple[Any, ...]:
    saved = list(ctx.saved_tensors)
    has_other, weights = ctx.counts
    x, other = saved.pop(0), saved.pop(0) if has_other else None
    x_needed, other_needed, of_tensors, *_ = ctx.needs_input_grad
    found: list[Tensor | None] = [None] * len(of_tensors)
    if gradients[0] is None:
        return None, None, found, *[None] * 5
    needed = [x_needed, has_other and other_needed, *(p is not None and of_tensors[p] for p in ctx.places)]
    results = iter(
        torch.ops.fastres.train_block_backward.default(
            gradients[0], x, other, saved[:weights], saved[weights:], *ctx.geometry, needed, ctx.group, ctx.backend
        )
    )
    dx, dother = (next(results) if needed[i] else None for i in range(2))
    for place, dtype, wanted in zip(ctx.places, ctx.dtypes, needed[2:], strict=True):
        if wanted:
            found[place] = next(results).to(dtype)
    return dx, dother, found, *[None] * 5


def _backward(
    gradient: Tensor, x: Tensor, other: Tensor | None, weights: list[Tensor], kept: list[Tensor], *arguments: Any
) -> list[Tensor]:
    spec, eps, options, needed, group, backend = arguments
    block = TrainBlock.unflatten(weights, spec, eps, options)
    steps = training.resolve(x, block.layers(), backend)
    layers = list(kept_of(kept, [n if n is Norm.SYNCHRONISED else Norm.RUNNING for n in block.norms]))
    other = None if other is None else nhwc(other)
    found = passes.backward(steps, block, nhwc(gradient), nhwc(x), other, layers, needed, group)
    results = [None if t is None else nhwc(t) for t in (found.x, found.other)]
    for layer, (dw, dgamma, dbeta) in zip(block.layers(), found.layers, strict=True):
        results += [None if dw is None else _like(dw, layer.weight), dgamma, dbeta]
    return [t for t in results if t is not None]


def _like(dw: Tensor, weight: Tensor) -> Tensor:
    """`dw` in the weight's dtype and layout, in which its gradients are accumulated."""
    if dw.dtype == weight.dtype:
        if dw.stride() == weight.stride():
            return dw
        if all(t.is_contiguous(memory_format=torch.channels_last) for t in (dw, weight)):
            return dw.as_strided(weight.shape, weight.stride())  # they differ where a dimension has one element
    return torch.empty_like(weight).copy_(dw)


def _backward_fake(
    gradient: Tensor, x: Tensor, other: Tensor | None, weights: list[Tensor], kept: list[Tensor], *arguments: Any
) -> list[Tensor]:
    spec, eps, options, needed, *_ = arguments
    block = TrainBlock.unflatten(weights, spec, eps, options)
    wide = torch.promote_types(x.dtype, torch.float32)
    made = [empty(t, t.shape) if t is not None else None for t in (x, other)]
    for layer in block.layers():
        vector = (layer.weight.shape[0],)
        made += [torch.empty_like(layer.weight), x.new_empty(vector, dtype=wide), x.new_empty(vector, dtype=wide)]
    return [t for t, wanted in zip(made, needed, strict=True) if wanted and t is not None]


def _no_second_derivative(ctx: Any, *gradients: Any) -> NoReturn:
    raise RuntimeError(
        "fastres's fused training step has no second derivative: run the forward of what is differentiated twice "
        'within `with fastres.use_backend("plain"):`'
    )


register(
    f"train_block(Tensor x, Tensor? other, Tensor[] tensors, {_BLOCK}, str group, str backend) -> Tensor[]",
    _forward,
    _forward_fake,
    (_gradient, _setup),
    activations=(0, 1),
)
register(
    f"train_block_backward(Tensor gradient, Tensor x, Tensor? other, Tensor[] weights, Tensor[] kept, {_BLOCK}, "
    "bool[] needed, str group, str backend) -> Tensor[]",
    _backward,
    _backward_fake,
    (_no_second_derivative, None),
)
