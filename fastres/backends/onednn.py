"""Backend `onednn`: oneDNN's fused convolution on the CPU, through the operators that torch.compile uses.

Convolution, bias and residual are one primitive, on channels_last activations and weights packed once into the blocked
layout that oneDNN prefers for the first image size seen (another size stays right: oneDNN reorders if it must). A
residual is added in place, and copied first unless the caller owns it and says so.

The ReLU is PyTorch's own, in place: oneDNN's makes 0 of NaN, as do its clip and, for negative infinity, its leaky ReLU
something else. NaN may come from the image, from the weights, or from sums that overflow, so no look at the inputs
would do; and the pass is over memory that was just written.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
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
            y = ops._convolution_pointwise.default(x, *prepared, "none", [], "")
        else:
            # The out-of-place form copies the residual too, and fails on outputs of one pixel or one channel.
            total = residual if overwrite else residual.clone()
            y = ops._convolution_pointwise_.binary(total, x, *prepared, "add", 1.0, None, [], None)
        return y.relu_() if relu else y

    def stem(self, x: Tensor, prepared: Any, kernel: int, stride: int, padding: int) -> Tensor:
        # The largest of a window first: the ReLU then has fewer values to look at, and gives the same.
        return F.max_pool2d(self.conv(x, prepared, False), kernel, stride, padding).relu_()
