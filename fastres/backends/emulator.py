"""Backends `emulator` and `emulator_sm90`: the CUDA kernels of backend `cuda`, as compiled, on CPU tensors in the PTX
emulator, as they would be chosen on an A100 and on an H100.

For tests and for reading: every load and store is checked, and a launch that does something wrong raises
`fastres.emulator.Fault`. No GPU is needed; it is some thousand times slower than one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import native
from ..block import ConvBN
from .plans import HOPPER, Planned, Work, missing

if TYPE_CHECKING:
    from ..emulator import Module, Report

# Compute capability -> multiprocessors of an A100 and an H100: kernels and tiles are chosen as they would be there.
_GPUS = {(8, 0): 108, HOPPER: 132}
_SWIZZLE = 128  # bytes: every tensor map's


@cache
def _module(stem: str) -> Module:
    from .. import emulator

    return emulator.load(native.ptx(stem))


def emulate(work: Work, seed: int = 0, modules: Mapping[str, Module] | None = None) -> list[Report]:
    """Runs the launches of `work` and gives a report of each; its result tensor then holds the result.

    `modules`: by the name of its file, PTX to run in the place of this build's. Memory that no launch wrote counts as
    uninitialised. Raises `fastres.emulator.Fault` at the first finding.
    """
    from ..emulator import Fresh

    reads = {tensor.data_ptr(): tensor for tensor in work.reads}
    fresh = {tensor.data_ptr(): tensor for tensor in (work.result, *work.scratch)}
    reports = []
    for plan in work.plans:
        untouched = [Fresh(tensor) for address, tensor in fresh.items() if address not in reads]
        reports.append(
            ((modules or {}).get(plan.ptx) or _module(plan.ptx)).launch(
                plan.symbol,
                plan.grid,
                plan.block,
                [_parameters(plan)],
                shared=plan.shared_bytes,
                cluster=plan.cluster,
                memory=[*reads.values(), *untouched],
                seed=seed,
            )
        )
        reads.update({tensor.data_ptr(): tensor for tensor in work.scratch})
    return reports


def _parameters(plan: Any) -> bytes:
    """The plan's parameters with its tensor maps in the emulator's encoding, which checks what the driver's does."""
    params = bytearray(plan.params)
    for m in plan.maps:
        shape = m.type, m.address, m.sizes, m.strides, m.element_strides, _SWIZZLE, False
        pieces = native.require().pieces
        if m.lower:
            encoded = pieces.encode_im2col(*shape, m.lower, m.upper, *m.box)
        else:
            encoded = pieces.encode_tiled(*shape, m.box)
        params[m.offset : m.offset + len(encoded)] = encoded
    return bytes(params)


class Emulator(Planned):
    note = (
        "the kernels of backend cuda on the CPU, checked at every step: for tests, not for speed; in training, wgrad "
        "and strided dgrad are PyTorch's"
    )

    def __init__(self, name: str = "emulator", capability: tuple[int, int] = (8, 0)) -> None:
        self.name = name
        self._capability = capability

    def unavailable(self) -> str | None:
        if reason := missing():
            return reason
        return None if native.require().build_info()["emulator"] else "this build has no emulator"

    def fingerprint(self) -> str | None:
        return None

    def unsupported(self, x: Tensor, layer: ConvBN) -> str | None:
        if x.device.type != "cpu":
            return f"needs a CPU tensor, got one on {x.device}"
        if x.dtype == torch.float32:
            return "the kernels compute float32 in TF32, which PyTorch does not do on a CPU"
        return super().unsupported(x, layer)

    def capability(self, device: torch.device) -> tuple[int, int]:
        return self._capability

    def multiprocessors(self, device: torch.device) -> int:
        return _GPUS[self._capability]

    def run(self, work: Work) -> Tensor:
        emulate(work)
        return work.result
