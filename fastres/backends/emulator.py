"""Backend `emulator`: the CUDA kernels of backend `cuda`, as compiled, on CPU tensors in the PTX emulator.

For tests and for reading: every load and store is checked, and a launch that does something wrong raises
`fastres.emulator.Fault`. No GPU is needed; it is some thousand times slower than one.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import native
from ..layer import ConvBN
from .plans import Planned, Work, missing

if TYPE_CHECKING:
    from ..emulator import Module, Report

_MULTIPROCESSORS = 108  # an A100's: tiles are chosen as they would be there


@cache
def _module(stem: str) -> Module:
    from .. import emulator

    return emulator.load(native.ptx(stem))


def emulate(work: Work, seed: int = 0) -> list[Report]:
    """Runs the launches of `work` and gives a report of each; its result tensor then holds the result.

    Memory that no launch wrote counts as uninitialised. Raises `fastres.emulator.Fault` at the first finding.
    """
    from ..emulator import Fresh

    reads = {tensor.data_ptr(): tensor for tensor in work.reads}
    fresh = {tensor.data_ptr(): tensor for tensor in (work.result, *work.scratch)}
    reports = []
    for plan in work.plans:
        untouched = [Fresh(tensor) for address, tensor in fresh.items() if address not in reads]
        reports.append(
            _module(plan.ptx).launch(
                plan.symbol,
                plan.grid,
                plan.block,
                [plan.params],
                shared=plan.shared_bytes,
                cluster=plan.cluster,
                memory=[*reads.values(), *untouched],
                seed=seed,
            )
        )
        reads.update({tensor.data_ptr(): tensor for tensor in work.scratch})
    return reports


class Emulator(Planned):
    name = "emulator"
    note = (
        "the kernels of backend cuda on the CPU, checked at every step: for tests, not for speed; in training, wgrad "
        "and strided dgrad are PyTorch's"
    )

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

    def multiprocessors(self, device: torch.device) -> int:
        return _MULTIPROCESSORS

    def run(self, work: Work) -> Tensor:
        emulate(work)
        return work.result
