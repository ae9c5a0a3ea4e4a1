"""Which passes a training step runs on.

A backend named by the user (see `registry`) trains with its own passes if it has them, and raises where those cannot
run; one that has none, and the name "plain", leave training to PyTorch's own modules. By itself, fastres trains on the
CPU with `aten`, and on a GPU with the Triton kernels where they are verified, else with PyTorch's own modules.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..layer import ConvBN
from . import registry, verification
from .aten_steps import AtenSteps
from .registry import AUTO, PLAIN, BackendError
from .steps import Steps

ATEN = "aten"
_ON_GPU = "triton"


def obstacle(device: torch.device, model_backend: str) -> str | None:
    """Why a step on `device` is PyTorch's own modules' affair, or None."""
    name = registry.requested(model_backend)
    if name == PLAIN:
        return "asked for by name"
    if name != AUTO:
        return None if registry.get(name).steps() is not None else f"backend {name!r} does not train"
    if device.type == "cpu":
        return None
    if device.type != "cuda":
        return f"fastres does not train on {device.type}"
    if missing := registry.backends()[_ON_GPU]:
        return f"{_ON_GPU}: {missing}"
    fingerprint = registry.get(_ON_GPU).fingerprint()
    why = None if fingerprint is None else verification.obstacle(_ON_GPU, fingerprint, device)
    return None if why is None else f"{_ON_GPU}: {why}"


def resolve(x: Tensor, layers: tuple[ConvBN, ...], name: str) -> Steps:
    """The passes that run `layers`, of one block, the first on `x`, `name` being what was asked for.

    Raises BackendError where they cannot.
    """
    reason = "asked for by name"
    steps: Steps | None = None
    if name not in (AUTO, PLAIN):
        steps = registry.get(name).steps()
    if steps is None:
        name, reason = (ATEN if x.device.type == "cpu" else _ON_GPU), f"first choice for training on {x.device.type}"
        steps = AtenSteps() if name == ATEN else registry.get(name).steps()
    if name != ATEN and (why := registry.get(name).unsupported(x, layers[0])):
        raise BackendError(f"backend {name!r} cannot run this training step: {why}")
    assert steps is not None
    for layer in layers:
        registry.record(x, layer, name, reason)
    return steps
