"""Backend `cuda`: the CUDA C++ kernels of csrc/kernels, on NVIDIA GPUs from Ampere on."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from .. import native
from ..block import ConvBN
from ..tuning import conv_tf32
from .plans import Planned, Work, missing

_OLDEST = (8, 0)


@cache
def _properties(index: int) -> tuple[tuple[int, int], int]:
    properties = torch.cuda.get_device_properties(index)
    return (properties.major, properties.minor), properties.multi_processor_count


class Cuda(Planned):
    name = "cuda"
    note = "float32 is computed in TF32, where PyTorch allows it; in training, wgrad and strided dgrad are cuDNN's"

    def unavailable(self) -> str | None:
        if reason := missing():
            return reason
        return None if torch.cuda.is_available() else "no CUDA device"

    def unsupported(self, x: Tensor, layer: ConvBN) -> str | None:
        if x.device.type != "cuda":
            return f"needs a CUDA tensor, got one on {x.device}"
        capability, _ = _properties(x.device.index)
        if capability < _OLDEST:
            return f"needs compute capability 8.0 or later, {x.device} has {capability[0]}.{capability[1]}"
        if x.dtype == torch.float32 and not conv_tf32():
            return "computes float32 in TF32, which torch.backends.cudnn.allow_tf32 forbids"
        return super().unsupported(x, layer)

    def capability(self, device: torch.device) -> tuple[int, int]:
        return _properties(device.index)[0]

    def multiprocessors(self, device: torch.device) -> int:
        return _properties(device.index)[1]

    def run(self, work: Work) -> Tensor:
        device = work.result.device
        stream = torch.cuda.current_stream(device).cuda_stream
        launch = native.require().launch
        with torch.cuda.device(device):
            for plan in work.plans:
                launch(plan, stream)
        return work.result
