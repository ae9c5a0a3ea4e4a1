"""Backend `triton`: the Triton kernels of `fastres.kernels`, on NVIDIA GPUs from Ampere on.

With TRITON_INTERPRET=1 in the environment when Triton is first imported, it runs CPU tensors in Triton's interpreter,
and under a Triton driver made for CPU tensors on that: slow, for tests. Triton is imported when the backend is first
asked for.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..block import STEM_POOL, ConvBN, Geometry
from ..folding import folded
from ..pixels import Pixels
from .registry import Backend, BackendError
from .steps import Steps

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_OLDEST = 80
_STEM_ROW = 64  # the longest filter row, width times channels, that the fused stem takes in one step


class _Prepared(NamedTuple):
    weight: Tensor  # KRSC
    bias: Tensor  # float32
    geometry: Geometry  # with the groups left by packing


@lru_cache(maxsize=64)
def _normalization(pixels: Pixels, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and shift on `device`, made once: a CUDA graph cannot record a copy from the host."""
    with torch.inference_mode(False):
        scale, shift = (torch.tensor(values, device=device) for values in (pixels.scale, pixels.shift))
    return scale, shift


def _fuses_stem(prepared: _Prepared, pool: tuple[int, int, int]) -> bool:
    row = prepared.weight.shape[2] * prepared.weight.shape[3]
    return pool == STEM_POOL and prepared.geometry[2:] == ((1, 1), 1) and row <= _STEM_ROW


def _interprets() -> bool:
    from triton import knobs

    return bool(knobs.runtime.interpret)


def _device() -> str | None:
    """The type of tensors that kernels run on here: "cuda", or "cpu" where something stands in for a GPU, or None."""
    if _interprets():
        return "cpu"
    from triton.runtime import driver

    try:
        return driver.active.get_active_torch_device().type
    except RuntimeError:  # no GPU
        return None


class Triton(Backend):
    name = "triton"

    def unavailable(self) -> str | None:
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed"
        return "no CUDA device, and TRITON_INTERPRET=1 is not set" if _device() is None else None

    def fingerprint(self) -> str:
        from ..tuning import kernels_digest

        return kernels_digest()

    def unsupported(self, x: Tensor, layer: ConvBN) -> str | None:
        return self._refusal(x)

    def _refusal(self, x: Tensor) -> str | None:
        if x.dtype not in _DTYPES:
            return f"does not run {x.dtype}: expected float32, bfloat16 or float16"
        if x.device.type != (wanted := _device()):
            return f"needs a {'CPU' if wanted == 'cpu' else 'CUDA'} tensor, got one on {x.device}"
        if _interprets():
            return "Triton's interpreter does not compute in bfloat16" if x.dtype == torch.bfloat16 else None
        from ..tuning import architecture

        if architecture(x.device) < _OLDEST:
            return f"needs compute capability 8.0 or later, {x.device} has {architecture(x.device) / 10}"
        return None

    def steps(self) -> Steps:
        from .triton_steps import TritonSteps

        return TritonSteps()

    def prepare(self, x: Tensor, layer: ConvBN) -> _Prepared:
        from ..kernels.conv import pack
        from ..tuning import conv_tf32

        geometry = layer.geometry

        def make(weight: Tensor, bias: Tensor) -> _Prepared:
            packed, groups = pack(weight, geometry.groups)
            return _Prepared(packed, bias.float(), geometry._replace(groups=groups))

        return folded(layer, x.dtype, (self.name, *geometry, conv_tf32()), make)

    def conv(
        self, x: Tensor, prepared: _Prepared, relu: bool, residual: Tensor | None = None, overwrite: bool = False
    ) -> Tensor:
        from ..kernels.conv import conv

        weight, bias, geometry = prepared
        out = residual if overwrite else None
        return conv(x, weight, bias, residual, relu=relu, **geometry._asdict(), out=out)

    def projection(self, x: Tensor, prepared: _Prepared, block_input: Tensor, shortcut: _Prepared) -> Tensor:
        from ..kernels.projection import projection

        if prepared.geometry.groups != 1 or shortcut.geometry.groups != 1:
            return super().projection(x, prepared, block_input, shortcut)
        first, second = ((weight, bias, *geometry[:3]) for weight, bias, geometry in (prepared, shortcut))
        return projection(x, first, block_input, second)

    def stem(self, x: Tensor, prepared: _Prepared, kernel: int, stride: int, padding: int) -> Tensor:
        from ..kernels.stem import stem

        if not _fuses_stem(prepared, (kernel, stride, padding)):
            return super().stem(x, prepared, kernel, stride, padding)
        weight, bias, geometry = prepared
        return stem(x, weight, bias, stride=geometry.stride, padding=geometry.padding)

    def stem_uint8(
        self, x: Tensor, prepared: _Prepared, kernel: int, stride: int, padding: int, pixels: Pixels, dtype: torch.dtype
    ) -> Tensor:
        from ..kernels.stem import stem, takes_pixels
        from ..tuning import architecture, arithmetic, conv_tf32

        inside = takes_pixels(arithmetic(dtype, conv_tf32()), architecture(x.device))
        if not inside or not _fuses_stem(prepared, (kernel, stride, padding)):
            return super().stem_uint8(x, prepared, kernel, stride, padding, pixels, dtype)
        weight, bias, geometry = prepared
        normalize = _normalization(pixels, x.device)
        return stem(x, weight, bias, stride=geometry.stride, padding=geometry.padding, normalize=normalize)

    def head(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        from ..kernels.head import head

        if reason := self._refusal(x):
            raise BackendError(f"backend {self.name!r} cannot run the classifier: {reason}")
        x = x.contiguous(memory_format=torch.channels_last)
        return head(x, weight.to(x.dtype).contiguous(), bias)
