"""Samples of how long a call takes, and the rounds in which contenders take turns.

On the CPU a sample is a loop under `perf_counter`, long enough for the clock and the scheduler. On a GPU a sample is a
train of calls, each between two CUDA events after the L2 cache was overwritten, queued at once: the time of a call is
the device's own, with the host's part in it only where the host is too slow to keep the device busy.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

ROUNDS = 15
FEWEST_ROUNDS = 5
SAMPLE_SECONDS = {"cpu": 0.1, "cuda": 0.02}
MOST_CALLS = {"cpu": 10_000, "cuda": 100}  # a call on a GPU costs a flush of its L2 cache, too
WARM_UP_SECONDS = {"cpu": 0.2, "cuda": 0.2}
WARM_UP_CALLS = 3

Call = Callable[[], Any]


class Timer(Protocol):
    """Times `calls` calls of a function and returns the mean, in seconds."""

    def __call__(self, function: Call, calls: int) -> float: ...


def cpu_timer(function: Call, calls: int) -> float:
    begin = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - begin) / calls


class CudaTimer:
    """Times by CUDA events on the current stream of `device`, before each call overwriting the L2 cache."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        self.flush = torch.empty(2 * cache, dtype=torch.uint8, device=device)

    def __call__(self, function: Call, calls: int) -> float:
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(calls)]
        with torch.cuda.device(self.device):
            for begin, end in events:
                self.flush.zero_()
                begin.record()
                function()
                end.record()
            torch.cuda.synchronize()
        return sum(begin.elapsed_time(end) for begin, end in events) / calls / 1e3


def timer_for(device: torch.device) -> Timer:
    return CudaTimer(device) if device.type == "cuda" else cpu_timer


def warm_up(function: Call, timer: Timer, device: torch.device, seconds: float | None = None) -> int:
    """Calls `function` until it has settled and returns how many calls make a sample that is long enough.

    That is `seconds`, by default SAMPLE_SECONDS of the device; settling takes WARM_UP_SECONDS, or twice `seconds`.
    """
    settling = WARM_UP_SECONDS[device.type] if seconds is None else 2 * seconds
    seconds = SAMPLE_SECONDS[device.type] if seconds is None else seconds
    begin = time.perf_counter()
    fastest = math.inf
    calls = 0
    while calls < WARM_UP_CALLS or time.perf_counter() - begin < settling:
        fastest = min(fastest, timer(function, 1))
        calls += 1
    return min(MOST_CALLS[device.type], max(1, math.ceil(seconds / fastest)))


def alternate(
    samplers: Mapping[str, Callable[[], float]],
    rounds: int,
    until: float = math.inf,
    done: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """One sample of each in turn, `rounds` times over; every other round runs backwards, so that none always follows
    the same neighbour. Past `until` (of `time.monotonic`) it stops at FEWEST_ROUNDS. `done` is called after a sample.
    """
    samples: dict[str, list[float]] = {name: [] for name in samplers}
    for i in range(rounds):
        if i >= FEWEST_ROUNDS and time.monotonic() > until:
            break
        for name in list(samplers)[:: -1 if i % 2 else 1]:
            samples[name].append(samplers[name]())
            done()
    return samples
