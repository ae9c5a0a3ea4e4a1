"""Backend `onednn`: oneDNN's fused convolution on the CPU, through the operators that torch.compile uses.

Convolution, bias, residual and ReLU are one primitive, on channels_last activations and weights packed once into the
blocked layout that oneDNN prefers for the first image size seen (another size stays right: oneDNN reorders if it must).
Of a residual only the in-place form is fused; the other copies the residual first, so a caller that owns it says so.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..folding import folded
from ..layer import ConvBN
from .registry import Backend

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def _missing() -> str | None:
    if not torch.backends.mkldnn.is_available():
        return "this build of torch has no oneDNN"
    try:
        # Looked up, not called: an operator that a later torch drops must make the backend unavailable, not break it.
        _ = torch.ops.mkldnn._convolution_pointwise, torch.ops.mkldnn._reorder_convolution_weight
        _ = torch.ops.mkldnn._convolution_pointwise_.binary, torch.ops.mkldnn._convolution_pointwise.binary
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
        geometry = layer.padding, layer.stride, layer.dilation, layer.groups

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
        if not overwrite and residual.shape[2:] == (1, 1):
            residual, overwrite = residual.clone(), True  # torch's out-of-place call raises on images of 1 x 1
        if overwrite:
            return ops._convolution_pointwise_.binary(residual, x, *prepared, "add", 1.0, unary, [], None)
        return ops._convolution_pointwise.binary(x, residual, *prepared, "add", 1.0, unary, [], None)
