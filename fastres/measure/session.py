"""One contender on one workload, in this process: build, output, warm-up, samples, memory."""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import Tensor

from . import contenders, memory
from .timing import timer_for, warm_up
from .workload import Material


class Session:
    """A contender that is built and ready. `processes.RemoteSession` is the same in a process of its own.

    Raises what the contender raises.
    """

    def __init__(self, contender: str, material: Material) -> None:
        self.contender = contenders.get(contender)
        self.device = material.workload.device
        self.calls = 0
        contenders.use_best_settings()
        with torch.inference_mode():
            self.forward = self.contender.build(material.model(), material.x.to(self.device))
        self.timer = timer_for(self.device)

    def output(self) -> Tensor:
        """The output of one forward, on the CPU."""
        with torch.inference_mode():
            return self.forward().detach().cpu().clone()

    def warm_up(self) -> int:
        """Returns how many calls a sample will have."""
        with torch.inference_mode():
            self.calls = warm_up(self.forward, self.timer, self.device)
        return self.calls

    def sample(self) -> float:
        """Seconds per forward, the mean of a sample's calls."""
        gc.collect()
        gc.disable()
        try:
            with torch.inference_mode():
                return self.timer(self.forward, self.calls)
        finally:
            gc.enable()

    def memory(self) -> dict[str, Any]:
        """Peaks of one forward, None where they cannot be seen: of live tensors, and of the resident process."""
        with torch.inference_mode():
            resident = memory.peak_resident_bytes(self.forward) if self.device.type == "cpu" else None
            tensors = memory.peak_bytes(self.forward, self.device) if self.contender.sees_tensors else None
        return {"tensor_bytes": tensors, "resident_bytes": resident}

    def close(self) -> None:
        """Lets go of the model and its memory."""
        del self.forward
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
