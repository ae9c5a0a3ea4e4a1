"""Runs PTX on the CPU: nvcc's, NVRTC's or Triton's output, on CPU tensors, with the checks of a sanitizer.

>>> module = fastres.emulator.load(ptx)
>>> report = module.launch("scale", grid=(4,), block=(128,), args=[x, y, 1.5, x.numel()])

docs/emulator.md says how to run, trace and debug a kernel, and what an emulator cannot show.
"""

from fastres.emulator.launch import Fault, Fresh, Kernel, Module, PtxError, load
from fastres.emulator.report import Finding, Report, Traffic
from fastres.emulator.tensor_map import TensorMap

__all__ = ["Fault", "Finding", "Fresh", "Kernel", "Module", "PtxError", "Report", "TensorMap", "Traffic", "load"]
