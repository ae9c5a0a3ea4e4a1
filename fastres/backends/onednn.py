"""Backend `onednn`: oneDNN's fused convolution on the CPU, through the operators that torch.compile uses.

Convolution, bias, residual and ReLU are one primitive, on channels_last activations and weights packed once into the
blocked layout that oneDNN prefers for the first image size seen (another size stays right: oneDNN reorders if it must).
A residual is added in place, and copied first unless the caller owns it and says so.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..block import ConvBN
from ..folding import folded
from .registry import Backend

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def _missing() -> str | None:
    if not torch.backends.mkldnn.is_available():
        return "this build of torch has no oneDNN"
    try:
        # Looked up, not called: an operator that a later torch drops must make the backend unavailable, not break it.
        _ = torch.ops.mkldnn._convolution_pointwise, torch.ops.mkldnn._reorder_convolution_weight
        _ = torch.ops.mkldnn._convolution_pointwise_.binary
    except AttributeError as error:
        return f"this build of torch lacks one of oneDNN's fused operators: {error}"
    return None


@cache
def _runs(dtype: torch.dtype) -> bool:
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if dtype == torch.float16:
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return dtype == torch.float32


class OneDNN(Backend):
    name = "onednn"
    note = "its fused ReLU turns NaN into 0, where PyTorch's keeps NaN"
    relu_keeps_nan = False

    def unavailable(self) -> str | None:
        return _missing()

    def unsupported(self, x: Tensor, layer: ConvBN) -> str | None:
        if x.device.type != "cpu":
            return f"needs a CPU tensor, got one on {x.device}"
        if not _runs(x.dtype):
            why = "not on this processor" if x.dtype in _DTYPES else "expected float32, bfloat16 or float16"
            return f"does not run {x.dtype}: {why}"
        if not torch.backends.mkldnn.enabled:
            return "switched off by torch.backends.mkldnn.enabled"
        if x.numel() == 0:
            return "an empty batch"
        return None

    def prepare(self, x: Tensor, layer: ConvBN) -> tuple[Any, ...]:
        stride, padding, dilation, groups = layer.geometry
        geometry = padding, stride, dilation, groups

        def pack(weight: Tensor, bias: Tensor) -> tuple[Any, ...]:
            weight = weight.contiguous(memory_format=torch.channels_last)
            packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, x.shape)
            return packed, bias.to(weight.dtype), *geometry

        return folded(layer, x.dtype, (self.name, *geometry), pack)

    def conv(
        self, x: Tensor, prepared: Any, relu: bool, residual: Tensor | None = None, overwrite: bool = False
    ) -> Tensor:
        ops = torch.ops.mkldnn
        if residual is None:
            return ops._convolution_pointwise.default(x, *prepared, "relu" if relu else "none", [], "")
        unary = "relu" if relu else None
        # The out-of-place form copies the residual too, and fails on outputs of one pixel or one channel.
        total = residual if overwrite else residual.clone()
        return ops._convolution_pointwise_.binary(total, x, *prepared, "add", 1.0, unary, [], None)
