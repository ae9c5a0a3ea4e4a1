"""The passes of a training step on the CPU, in PyTorch's own operators: few passes over memory, few new tensors."""

from __future__ import annotations

from .reference_steps import ReferenceSteps


class AtenSteps(ReferenceSteps):
    """For now those of the reference."""
