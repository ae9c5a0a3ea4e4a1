"""A Triton driver for a GPU that isn't there: kernels are compiled for it and looked at, and a launch does nothing.

What is compiled is thus what the launchers ask for: their tiles, flags and specialisations, on tensors of the CPU.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from fastres import tuning
from fastres.emulator.triton import active
from fastres.kernels.bn_act import apply_kernel, backward_kernel, sums_kernel
from fastres.kernels.conv import conv_kernel
from fastres.kernels.dgrad import dgrad_kernel
from fastres.kernels.gemm import gemm_kernel
from fastres.kernels.head import average_pool_kernel
from fastres.kernels.ordered import ordered_sum_kernel
from fastres.kernels.projection import projection_kernel
from fastres.kernels.statistics import finalize_kernel, merge_kernel
from fastres.kernels.stem import stem_kernel
from fastres.kernels.wgrad import wgrad_kernel

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
MATRIX_INSTRUCTION = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma", 120: "mma.sync"}

MATRIX_KERNELS = (conv_kernel, gemm_kernel, projection_kernel, stem_kernel, dgrad_kernel, wgrad_kernel)
PLAIN_KERNELS = (
    average_pool_kernel,
    apply_kernel,
    sums_kernel,
    backward_kernel,
    merge_kernel,
    finalize_kernel,
    ordered_sum_kernel,
)
KERNELS = MATRIX_KERNELS + PLAIN_KERNELS
Launch = Callable[..., None]  # (compiled kernel's source, its metadata, grid, arguments)


@dataclass(frozen=True)
class Compiled:
    """One compiled kernel: its name, tile and flags, PTX and machine code."""

    name: str
    constants: dict[str, Any]
    ptx: str
    cubin: bytes
    shared: int

    def uses_local_memory(self, folder: Path) -> bool:
        """Whether the machine code stores to local memory: spilled registers, or arrays indexed at run time."""
        path = folder / "kernel.cubin"
        path.write_bytes(self.cubin)
        listing = subprocess.run([CUOBJDUMP, "-sass", path], capture_output=True, text=True, check=True).stdout
        assert "EXIT" in listing
        return re.search(r"\bSTL\b", listing) is not None

    def __str__(self) -> str:
        sizes = {key.lower(): value for key, value in self.constants.items() if value is not None}
        return f"{self.name} {sizes}"


class OfflineDriver:
    """Stands in for `triton.backends.nvidia.driver.CudaDriver`: what JITFunction.run and CompiledKernel ask of it."""

    def __init__(self, arch: int) -> None:
        self.arch = arch
        self.compiled: list[Compiled] = []
        self.utils = self

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch  # Triton keeps compiled kernels by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_properties(self, device: int) -> dict[str, int]:
        multiprocessors = {80: 108, 90: 132, 100: 148, 120: 170}[self.arch]  # A100, H100, B200, RTX 5090
        return {"max_shared_mem": tuning.shared_memory(self.arch), "multiprocessor_count": multiprocessors}

    def load_binary(self, name: str, cubin: bytes, shared: int, device: int) -> tuple[None, int, int, int, int]:
        return None, 1, 0, 0, 1024  # module, function, registers, spills, most threads

    def launcher_cls(self, source: Any, metadata: Any) -> Launch:
        return lambda *arguments: None


@contextmanager
def target(arch: int) -> Iterator[OfflineDriver]:
    """Within it, Triton compiles for `arch`, afresh; the driver given lists what."""
    offline = OfflineDriver(arch)
    try:
        with active(offline):
            yield offline
    finally:
        for kernel in KERNELS:
            for compiled in kernel.device_caches.pop(arch, ({},))[0].values():
                names = kernel.arg_names
                constants = {names[path[0]]: value for path, value in compiled.src.constants.items()}
                offline.compiled.append(
                    Compiled(
                        compiled.name, constants, compiled.asm["ptx"], compiled.asm["cubin"], compiled.metadata.shared
                    )
                )
