"""Which passes a training step runs on.

A backend named by the user (see `registry`) trains with its own passes if it has them, and raises where those cannot
run; one that has none, and the name "plain", leave training to PyTorch's own modules. By itself, fastres trains on the
CPU with `aten`, and elsewhere with PyTorch's own modules: no GPU kernel of a training step is verified yet.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native
from ..layer import ConvBN
from . import registry
from .aten_steps import AtenSteps
from .cpu_steps import CpuSteps
from .registry import AUTO, PLAIN, BackendError
from .steps import Steps

ATEN = "aten"
NATIVE = "native"


def obstacle(device: torch.device, model_backend: str) -> str | None:
    """Why a step on `device` is PyTorch's own modules' affair, or None."""
    name = registry.requested(model_backend)
    if name == PLAIN:
        return "asked for by name"
    if name != AUTO:
        return None if registry.get(name).steps() is not None else f"backend {name!r} does not train"
    if device.type == "cpu":
        return None
    # A record of `fastres selftest` says nothing of training: it has no cases of these kernels yet.
    return f"no kernels of a training step are verified on {device.type}: name a backend that has them"


def resolve(x: Tensor, layers: tuple[ConvBN, ...], name: str) -> Steps:
    """The passes that run `layers`, of one block, the first on `x`, `name` being what was asked for.

    Raises BackendError where they cannot.
    """
    reason = "asked for by name"
    steps: Steps | None = None
    if name not in (AUTO, PLAIN):
        steps = registry.get(name).steps()
    if steps is None:
        if x.device.type != "cpu":
            raise BackendError(f"{name!r} has no passes of a training step on {x.device.type}")
        name, reason, steps = _of_cpu()
    if name not in (ATEN, NATIVE) and (why := registry.get(name).unsupported(x, layers[0])):
        raise BackendError(f"backend {name!r} cannot run this training step: {why}")
    for layer in layers:
        registry.record(x, layer, name, reason)
    return steps


def _of_cpu() -> tuple[str, str, Steps]:
    """What the CPU trains with: a name, why, and the passes of one block."""
    if native.load() is None:
        return ATEN, native.why_missing(), AtenSteps()
    return NATIVE, "first choice for training on cpu", CpuSteps()
