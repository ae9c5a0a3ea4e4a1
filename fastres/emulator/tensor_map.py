"""Tensor maps (``CUtensorMap``) for emulated kernels: what TMA knows of a tensor and of the box that a copy moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fastres import native

_TYPES = {
    torch.uint8: "u8",
    torch.int8: "u8",
    torch.float8_e4m3fn: "u8",
    torch.float8_e5m2: "u8",
    torch.int16: "u16",
    torch.int32: "s32",
    torch.int64: "s64",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float32: "f32",
    torch.float64: "f64",
}


@dataclass(frozen=True)
class TensorMap:
    """A kernel argument: the 128 bytes of a ``const __grid_constant__ CUtensorMap``, in the emulator's own encoding.

    Sizes, boxes and strides are in the tensor's own order, outermost dimension first; the driver's API has them
    innermost first. The encoders check what ``cuTensorMapEncodeTiled`` and ``cuTensorMapEncodeIm2col`` check (CUDA
    Driver API, "Tensor Map Object Management"), for tensors without interleaving.

    Attributes:
        tensor: What the map describes; the kernel may use its memory.
        blob: The encoding.
    """

    tensor: torch.Tensor
    blob: bytes

    @classmethod
    def tiled(
        cls,
        tensor: torch.Tensor,
        box: Sequence[int],
        strides: Sequence[int] | None = None,
        *,
        swizzle: int = 0,
        fill_nan: bool = False,
    ) -> TensorMap:
        """Boxes of a tensor of one to five dimensions, the last of them contiguous.

        Args:
            tensor: On the CPU, 16-byte aligned, its strides multiples of 16 bytes except the last, which is 1.
            box: Elements that a copy spans, 1 to 256 in each dimension; the last dimension a multiple of 16 bytes.
            strides: Steps between the elements taken, 1 to 8; of the last dimension 1. A copy takes
                ceil(box / stride) elements.
            swizzle: 0, or the span of 32, 64 or 128 bytes, which the box's last dimension must fit.
            fill_nan: Out of bounds reads NaN instead of 0.

        Raises:
            ValueError: What the driver would refuse, with the argument, its value and what was expected.
        """
        shape = _describe(tensor, strides)
        encode = native.require().pieces.encode_tiled
        return cls(tensor, encode(*shape, swizzle, fill_nan, list(reversed(box))))

    @classmethod
    def im2col(
        cls,
        tensor: torch.Tensor,
        lower: Sequence[int],
        upper: Sequence[int],
        channels: int,
        pixels: int,
        strides: Sequence[int] | None = None,
        *,
        swizzle: int = 0,
        fill_nan: bool = False,
    ) -> TensorMap:
        """Columns of pixels of an (N, [[D,] H,] W, C) tensor, C contiguous, as a convolution reads them.

        Args:
            tensor: As for ``tiled``, of three to five dimensions.
            lower: First corner of the pixels' bounding box relative to the first pixel, in the order of the tensor's
                spatial dimensions: -padding.
            upper: Last corner relative to the last pixel: padding - dilation * (kernel - 1).
            channels: Channels of a pixel that a copy takes, at most 256.
            pixels: Pixels that a copy takes, at most 1024.
            strides: Of all dimensions: the convolution's in the spatial ones, else 1.
            swizzle: As for ``tiled``.
            fill_nan: As for ``tiled``.

        Raises:
            ValueError: What the driver would refuse, with the argument, its value and what was expected.
        """
        shape = _describe(tensor, strides)
        encode = native.require().pieces.encode_im2col
        corners = list(reversed(lower)), list(reversed(upper))
        return cls(tensor, encode(*shape, swizzle, fill_nan, *corners, channels, pixels))


def _describe(tensor: torch.Tensor, strides: Sequence[int] | None) -> tuple[str, int, list[int], list[int], list[int]]:
    if tensor.device.type != "cpu":
        raise ValueError(f"tensor is on {tensor.device}, expected a CPU tensor")
    if tensor.dtype not in _TYPES:
        raise ValueError(f"tensor is of {tensor.dtype}, expected one of {', '.join(map(str, _TYPES))}")
    if not 1 <= tensor.dim() <= 5:
        raise ValueError(f"tensor has {tensor.dim()} dimensions, expected 1 to 5")
    if tensor.stride(-1) != 1:
        raise ValueError(f"the stride of tensor's last dimension is {tensor.stride(-1)}, expected 1")
    size = tensor.element_size()
    sizes = list(reversed(tensor.shape))
    pitches = [stride * size for stride in reversed(tensor.stride()[:-1])]
    steps = list(reversed(strides)) if strides is not None else [1] * tensor.dim()
    return _TYPES[tensor.dtype], tensor.data_ptr(), sizes, pitches, steps
