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
    return max((live for _, live in timeline(function, device)), default=0)


def timeline(function: Callable[[], Any], device: torch.device) -> list[tuple[float, int]]:
    """(microseconds, bytes of tensors alive since the start) at each allocation and release of `function()`.

    In the profiler's time, which is slower than without. Where the sum falls below zero, what lived before was freed.
    """
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities, profile_memory=True, acc_events=True) as profiler:
        result = function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    del result
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    kind = torch.autograd.DeviceType.CUDA if device.type == "cuda" else torch.autograd.DeviceType.CPU
    found = [
        event
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]" and event.device_type() == kind
    ]
    live = 0
    points = []
    for event in sorted(found, key=lambda event: event.start_ns()):
        live += event.nbytes()
        points.append(((event.start_ns() - found[0].start_ns()) / 1e3, live))
    return points


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
