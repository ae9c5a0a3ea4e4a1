"""Bytes of tensors on the CPU, compared to find writes that PyTorch does not record.

Vectors and scalars are compared in full. Of a weight [K, C, R, S] with K filters, a diagonal is: of every filter at
least one piece of up to 64 bytes, and every position within a filter at least once in some filter. A write that changes
all of one filter, or one position in all filters, is therefore always found, and one that changes a share p of the
elements, drawn at random, is missed with probability (1 - p)^n, n being the elements compared: 8,224 of the 2,359,296
of a [512, 512, 3, 3] weight in float32. A write to a few elements may be missed.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable

from torch import Tensor

_LINE = 64  # bytes that the processor fetches together


class Sample:
    """What some tensors held when this was made; tensors on other devices are left out.

    It neither holds nor checks their memory: ask `same` only while each tensor is known to be where it was.

    Raises:
        RuntimeError: A tensor reaches beyond its storage, which was freed or resized.
    """

    __slots__ = ("_bytes", "_views")

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._views = [_view(t) for t in tensors if t.device.type == "cpu" and t.numel()]
        self._bytes = self._read()

    def same(self) -> bool:
        """Whether every sampled byte still is what it was."""
        return self._read() == self._bytes

    @property
    def nbytes(self) -> int:
        """How much is compared."""
        return sum(map(len, self._bytes))

    def _read(self) -> list[bytes]:
        return list(map(memoryview.tobytes, self._views))


def _view(tensor: Tensor) -> memoryview:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    nbytes = (last + 1) * tensor.element_size()
    room = tensor.untyped_storage().nbytes() - tensor.storage_offset() * tensor.element_size()
    if nbytes > room:
        raise RuntimeError(f"parameter {tuple(tensor.shape)}: expected {nbytes} bytes in its storage, got {room}")
    if tensor.dim() < 2:
        return memoryview((ctypes.c_ubyte * nbytes).from_address(tensor.data_ptr()))
    filters = tensor.shape[0]
    filter_bytes = nbytes // filters
    unit = math.gcd(filter_bytes, _LINE)
    units = filter_bytes // unit  # of one filter
    # A step of at most `units` enters every filter; one that has no factor in common with `units` visits every position
    # in as many samples as a filter has units, and a step of at most `filters` leaves room for those.
    step = min(units, filters)
    while math.gcd(step, units) != 1:
        step -= 1
    return memoryview((ctypes.c_ubyte * unit * (filters * units)).from_address(tensor.data_ptr()))[::step]
