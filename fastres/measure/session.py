"""One contender on one workload, in this process: build, output, warm-up, samples, memory."""

from __future__ import annotations

import gc
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from . import contenders, memory, training
from .graph import captured
from .timing import timer_for, warm_up
from .workload import DISTINCT, Material


class Session:
    """A contender that is built and ready. `processes.RemoteSession` is the same in a process of its own.

    Raises what the contender raises.
    """

    def __init__(self, contender: str, material: Material) -> None:
        self.contender = contenders.get(contender)
        self.device = material.workload.device
        self.calls = 0
        contenders.use_best_settings()
        self.material = material
        self.model = material.model()
        with self._mode():
            self.forward = self.contender.build(self.model, material.x.to(self.device))
            if material.workload.train:
                target = training.targets(material.workload.batch, DISTINCT).to(self.device)
                self.forward = training.step(self.model, self.forward, target, material.workload.dtype)
                if self.contender.graph:
                    self.forward = captured(self.forward, self.device)
        self.timer = timer_for(self.device)

    def _mode(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.material.workload.train else torch.inference_mode()

    def output(self) -> Tensor:
        """The output of one forward, or of one training step, on the CPU."""
        with self._mode():
            out = self.forward().detach().cpu().clone()
        return training.summary(out, self.model, self.material.scales) if self.material.workload.train else out

    def warm_up(self) -> int:
        """Returns how many calls a sample will have."""
        with self._mode():
            self.calls = warm_up(self.forward, self.timer, self.device)
        return self.calls

    def sample(self) -> float:
        """Seconds per call, the mean of a sample's calls."""
        gc.collect()
        gc.disable()
        try:
            with self._mode():
                return self.timer(self.forward, self.calls)
        finally:
            gc.enable()

    def memory(self) -> dict[str, Any]:
        """Peaks of one call, None where they cannot be seen: of live tensors, and of the resident process."""
        with self._mode():
            resident = memory.peak_resident_bytes(self.forward) if self.device.type == "cpu" else None
            tensors = memory.peak_bytes(self.forward, self.device) if self.contender.sees_tensors else None
        return {"tensor_bytes": tensors, "resident_bytes": resident}

    def close(self) -> None:
        """Lets go of the model and its memory."""
        del self.forward, self.model, self.material
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
