"""Backend `cudnn`: cuDNN's convolution with bias, on folded weights; residual and ReLU are PyTorch's own, in place.

cuDNN's fused ReLU (`cudnn_convolution_relu`, `cudnn_convolution_add_relu`) is not used: PyTorch asks it not to
propagate NaN.
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


@cache
def _missing() -> str | None:
    if not torch.backends.cuda.is_built():
        return "this build of torch has no CUDA"
    if not torch.cuda.is_available():
        return "no CUDA device"
    if not torch.backends.cudnn.is_available():
        return "this build of torch has no cuDNN"
    return None


class CuDNN(Backend):
    name = "cudnn"

    def unavailable(self) -> str | None:
        return _missing()

    def unsupported(self, x: Tensor, layer: ConvBN) -> str | None:
        if x.device.type != "cuda":
            return f"needs a CUDA tensor, got one on {x.device}"
        if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"does not run {x.dtype}: expected float32, bfloat16 or float16"
        if not torch.backends.cudnn.enabled:
            return "switched off by torch.backends.cudnn.enabled"
        if x.numel() == 0:
            return "an empty batch"
        return None

    def prepare(self, x: Tensor, layer: ConvBN) -> tuple[Any, ...]:
        geometry = layer.geometry

        def pack(weight: Tensor, bias: Tensor) -> tuple[Any, ...]:
            return weight.contiguous(memory_format=torch.channels_last), bias.to(weight.dtype), *geometry

        return folded(layer, x.dtype, (self.name, *geometry), pack)

    def conv(
        self, x: Tensor, prepared: Any, relu: bool, residual: Tensor | None = None, overwrite: bool = False
    ) -> Tensor:
        y = F.conv2d(x, *prepared)
        if residual is not None:
            y += residual
        return y.relu_() if relu else y
