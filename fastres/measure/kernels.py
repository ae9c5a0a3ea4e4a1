"""Which kernels a call runs, and when: oneDNN's implementations on a CPU, launches on a GPU."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

Call = Callable[[], Any]


@dataclass(frozen=True)
class Launch:
    """One kernel on a GPU, in microseconds from the first one's start."""

    name: str
    start: float
    duration: float


@dataclass(frozen=True)
class Gaps:
    """Of launches in sequence: how many, microseconds in which one ran, and in which none did between two."""

    launches: int
    busy: float
    idle: float
    longest: float


def names(call: Call, device: torch.device) -> list[str]:
    """The kernels that `call()` runs, in order; of a CPU's, those of oneDNN with what is fused into them."""
    if device.type == "cuda":
        return [launch.name for launch in launches(call, device)]
    with written_to(1) as lines, torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        call()
    return [name for line in lines if (name := _implementation(line))]


def _implementation(line: str) -> str:
    """Of a line of oneDNN's log, the primitive that ran and the operations behind it, or ""."""
    fields = line.split(",")
    if not line.startswith("onednn_verbose") or "primitive" not in fields or "exec" not in fields:
        return ""
    engine = fields.index("exec") + 1
    if len(fields) <= engine + 5:
        return ""
    primitive, implementation = fields[engine + 1 : engine + 3]
    behind = next((f for f in fields[engine + 5].split() if f.startswith("attr-post-ops:")), "")
    operations = [
        part.partition(":")[0].removeprefix("eltwise_")
        for part in behind.removeprefix("attr-post-ops:").split("+")
        if part
    ]
    return "+".join([implementation if primitive == "convolution" else f"{primitive} {implementation}", *operations])


@contextmanager
def written_to(descriptor: int) -> Iterator[list[str]]:
    """Collects the lines that this process writes within to a file descriptor, 1 or 2, libraries in C included."""
    lines: list[str] = []
    stream = sys.stdout if descriptor == 1 else sys.stderr
    flush = ctypes.CDLL(None).fflush
    try:
        before = os.dup(descriptor)
    except OSError:  # there is none
        yield lines
        return
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        stream.flush()
        flush(None)
        os.dup2(file.fileno(), descriptor)
        try:
            yield lines
        finally:
            stream.flush()
            flush(None)
            os.dup2(before, descriptor)
            os.close(before)
            file.seek(0)
            lines += file.read().splitlines()


def launches(call: Call, device: torch.device) -> list[Launch]:
    """The kernels and copies that `call()` runs on a GPU, as the profiler sees them; none on a CPU."""
    if device.type != "cuda":
        return []
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as profiler:
        call()
        torch.cuda.synchronize(device)
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    return in_order(
        (event.name(), event.start_ns(), event.duration_ns())
        for event in profiler.profiler.kineto_results.events()
        if event.device_type() == torch.autograd.DeviceType.CUDA and event.name() != "[memory]" and event.duration_ns()
    )


def in_order(events: Iterator[tuple[str, int, int]]) -> list[Launch]:
    """(name, start, duration) in nanoseconds, as `Launch`es."""
    found = sorted(events, key=lambda event: event[1])
    origin = found[0][1] if found else 0
    return [Launch(name, (start - origin) / 1e3, duration / 1e3) for name, start, duration in found]


def gaps(found: Sequence[Launch]) -> Gaps:
    """Kernels may overlap: time in which any runs is busy."""
    busy = idle = longest = end = 0.0
    for launch in found:
        pause = max(0.0, launch.start - end)
        idle, longest = idle + pause, max(longest, pause)
        finish = launch.start + launch.duration
        busy += max(0.0, finish - max(end, launch.start))
        end = max(end, finish)
    return Gaps(len(found), busy, idle, longest)
