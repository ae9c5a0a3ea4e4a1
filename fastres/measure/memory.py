"""Peak memory of a forward."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def peak_bytes(function: Callable[[], Any], device: torch.device) -> int:
    """The most bytes of tensors that live at once during `function()`, beyond those that lived before it.

    Exact, and blind to what does not come from PyTorch's allocator (a library's own scratch memory). On CUDA it counts
    the allocator's blocks; on the CPU, every allocation and release that the profiler sees, in operators included.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        result = function()
    del result
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def peak_resident_bytes(function: Callable[[], Any]) -> int | None:
    """The most memory that this whole process has resident during `function()`, or None where Linux does not tell.

    Sees every library's memory, and the interpreter's and the code's: what a container must have.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        function()
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found.group(1)) * 1024 if found else None
