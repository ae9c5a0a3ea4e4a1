"""Operators of one convolution: `conv_bn_act`, `projection`, `stem` and, of 8-bit pixels, `stem_uint8`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..backends import ranking
from ..backends.registry import Backend, resolve
from ..block import ConvBN, Geometry, pooled
from ..layout import empty, nhwc
from ..pixels import Pixels
from .library import define

# `ConvBN.arguments` in a schema, `p` being a prefix.
_CONV_BN = (
    "Tensor {p}weight, Tensor? {p}bias, Tensor? {p}gamma, Tensor? {p}beta, Tensor {p}mean, Tensor {p}var, "
    "Tensor? {p}num_batches_tracked, float {p}eps, "
    "int[2] {p}stride, int[2] {p}padding, int[2] {p}dilation, int {p}groups"
)
_FIELDS = len(ConvBN._fields) - 1 + len(Geometry._fields)
_conv_bn = ConvBN.from_arguments

Prepared = tuple[Backend, Any]


def _conv(x: Tensor, layer: ConvBN, residual: Tensor | None, relu: bool, model_backend: str) -> Tensor:
    layer.check(x)
    if residual is not None and (residual.shape != layer.out_size(x) or residual.dtype != x.dtype):
        expected = f"{tuple(layer.out_size(x))} of {x.dtype}"
        raise ValueError(f"residual: expected {expected}, got {tuple(residual.shape)} of {residual.dtype}")
    backend = resolve(x, layer, model_backend, ranking.CONV if residual is None else ranking.RESIDUAL)
    return nhwc(backend.conv(nhwc(x), backend.prepare(x, layer), relu, None if residual is None else nhwc(residual)))


def _projection(x: Tensor, layer: ConvBN, block_input: Tensor, shortcut: ConvBN, model_backend: str) -> Tensor:
    layer.check(x)
    shortcut.check(block_input)
    if layer.out_size(x) != shortcut.out_size(block_input) or x.dtype != block_input.dtype:
        got = f"{layer.out_size(x)} of {x.dtype} and {shortcut.out_size(block_input)} of {block_input.dtype}"
        raise ValueError(f"x and block_input: expected both to give one output shape and dtype, got {got}")
    main = prepared(x, layer, model_backend, ranking.PROJECTION)
    other = prepared(block_input, shortcut, model_backend, ranking.SHORTCUT, main[0])
    return nhwc(run_projection(nhwc(x), main, nhwc(block_input), other))


def _stem(x: Tensor, layer: ConvBN, kernel: int, stride: int, padding: int, model_backend: str) -> Tensor:
    layer.check(x)
    backend = resolve(x, layer, model_backend, ranking.STEM)
    return nhwc(backend.stem(nhwc(x), backend.prepare(x, layer), kernel, stride, padding))


def _stem_uint8(
    x: Tensor,
    layer: ConvBN,
    kernel: int,
    stride: int,
    padding: int,
    dtype: torch.dtype,
    mean: list[float],
    std: list[float],
    model_backend: str,
) -> Tensor:
    layer.check(x)
    if x.dtype != torch.uint8:
        raise ValueError(f"x: expected torch.uint8, got {x.dtype}")
    if not len(mean) == len(std) == x.shape[1]:
        raise ValueError(f"pixel_mean, pixel_std: expected {x.shape[1]} numbers each, got {len(mean)} and {len(std)}")
    numbers = x.new_empty((), dtype=dtype).expand(x.shape)  # stands for the image normalised, in the two questions
    backend, weights = prepared(numbers, layer, model_backend, ranking.STEM_UINT8)
    pixels = Pixels(tuple(mean), tuple(std))
    return nhwc(backend.stem_uint8(nhwc(x), weights, kernel, stride, padding, pixels, dtype))


def _stem_uint8_reference(x: Tensor, *fields: Any) -> Tensor:
    kernel, stride, padding, dtype, mean, std, _ = fields[_FIELDS:]
    pixels = Pixels(tuple(mean), tuple(std))
    return reference.stem_uint8(x, _conv_bn(fields[:_FIELDS]), kernel, stride, padding, pixels, dtype)


def prepared(
    x: Tensor, layer: ConvBN, model_backend: str, operator: str = ranking.CONV, beside: Backend | None = None
) -> Prepared:
    """The backend that runs `layer` on `x`, and what it needs of it. Arguments as `registry.resolve`."""
    backend = resolve(x, layer, model_backend, operator, beside)
    return backend, backend.prepare(x, layer)


def run_projection(x: Tensor, layer: Prepared, block_input: Tensor, shortcut: Prepared) -> Tensor:
    """A projection block's end, on tensors dense in channels_last."""
    backend, weights = layer
    other, shortcut_weights = shortcut
    if backend is other:
        return backend.projection(x, weights, block_input, shortcut_weights)
    return backend.conv(x, weights, True, nhwc(other.conv(block_input, shortcut_weights, False)), overwrite=True)


def _pooled(
    x: Tensor, layer: ConvBN, kernel: int, stride: int, padding: int, dtype: torch.dtype | None = None
) -> Tensor:
    n, channels, *image = layer.out_size(x)
    return empty(x, (n, channels, *pooled(image, (kernel, stride, padding))), dtype)


define(
    f"conv_bn_act(Tensor x, {_CONV_BN.format(p='')}, Tensor? residual, bool relu, str backend) -> Tensor",
    implementation=lambda x, *a: _conv(x, _conv_bn(a[:_FIELDS]), *a[_FIELDS:]),
    fake=lambda x, *a: empty(x, _conv_bn(a[:_FIELDS]).out_size(x)),
    reference=lambda x, *a: reference.conv_bn_act(x, _conv_bn(a[:_FIELDS]), *a[_FIELDS:-1]),
    activations=(0, 1 + _FIELDS),
)
define(
    f"projection(Tensor x, {_CONV_BN.format(p='')}, "
    f"Tensor block_input, {_CONV_BN.format(p='shortcut_')}, str backend) -> Tensor",
    implementation=lambda x, *a: _projection(
        x, _conv_bn(a[:_FIELDS]), a[_FIELDS], _conv_bn(a[_FIELDS + 1 : -1]), a[-1]
    ),
    fake=lambda x, *a: empty(x, _conv_bn(a[:_FIELDS]).out_size(x)),
    reference=lambda x, *a: reference.projection(x, _conv_bn(a[:_FIELDS]), a[_FIELDS], _conv_bn(a[_FIELDS + 1 : -1])),
    activations=(0, 1 + _FIELDS),
)
define(
    f"stem(Tensor x, {_CONV_BN.format(p='')}, "
    "int pool_kernel, int pool_stride, int pool_padding, str backend) -> Tensor",
    implementation=lambda x, *a: _stem(x, _conv_bn(a[:_FIELDS]), *a[_FIELDS:]),
    fake=lambda x, *a: _pooled(x, _conv_bn(a[:_FIELDS]), *a[_FIELDS:-1]),
    reference=lambda x, *a: reference.stem(x, _conv_bn(a[:_FIELDS]), *a[_FIELDS:-1]),
    activations=(0,),
)
define(
    f"stem_uint8(Tensor x, {_CONV_BN.format(p='')}, int pool_kernel, int pool_stride, int pool_padding, "
    "ScalarType dtype, float[] pixel_mean, float[] pixel_std, str backend) -> Tensor",
    implementation=lambda x, *a: _stem_uint8(x, _conv_bn(a[:_FIELDS]), *a[_FIELDS:]),
    fake=lambda x, *a: _pooled(x, _conv_bn(a[:_FIELDS]), *a[_FIELDS:-3]),
    reference=_stem_uint8_reference,
    activations=(),
    dtypes=(1 + _FIELDS + 3,),
)
