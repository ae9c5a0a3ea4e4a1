"""Which passes a training step runs on.

A backend named by the user (see `registry`) trains with its own passes if it has them, and raises where those cannot
run; one that has none, and the name "plain", leave training to PyTorch's own modules. By itself, fastres trains on the
CPU with `native`, or `aten` where the native module was not built, and on a GPU with the first of ORDER whose kernels
are verified there, else with PyTorch's own modules.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..block import ConvBN
from . import cpu_steps, registry, verification
from .aten_steps import AtenSteps
from .cpu_steps import CpuSteps
from .registry import AUTO, PLAIN, BackendError
from .steps import Steps

NATIVE, ATEN = "native", "aten"
OF_CPU: dict[str, Callable[[], Steps]] = {NATIVE: CpuSteps, ATEN: AtenSteps}  # one object a block
# What `auto` trains with. `cuda` leaves wgrad and strided dgrad to cuDNN, and was the faster on an H100.
ORDER: dict[str, tuple[str, ...]] = {"cpu": (NATIVE, ATEN), "cuda": ("cuda", "triton")}


def reason_unsupported(device: torch.device, model_backend: str) -> str | None:
    """Why a step on `device` is PyTorch's own modules' affair, or None."""
    name = registry.requested(model_backend)
    if name == PLAIN:
        return "asked for by name"
    if name != AUTO:
        return None if registry.get(name).steps() is not None else f"backend {name!r} does not train"
    reasons = []
    for name in ORDER.get(device.type, ()):
        if (why := _unverified(name, device)) is None:
            return None
        reasons.append(f"{name}: {why}")
    return "; ".join(reasons) or f"fastres does not train on {device.type}"


def resolve(x: Tensor, layers: tuple[ConvBN, ...], name: str) -> Steps:
    """The passes that run `layers`, of one block, the first on `x`, `name` being what was asked for.

    Raises BackendError where they cannot. `auto` then falls back, at last on the reference's.
    """
    steps = None if name in (AUTO, PLAIN) else registry.get(name).steps()
    if steps is not None:
        reason = "asked for by name"
        if why := registry.get(name).unsupported(x, layers[0]):
            raise BackendError(f"backend {name!r} cannot run this training step: {why}")
    else:
        name, reason = _choice(x, layers[0])
        steps = OF_CPU[name]() if name in OF_CPU else registry.get(name).steps()
        assert steps is not None
    for layer in layers:
        registry.record(x, layer, name, reason)
    return steps


def _choice(x: Tensor, layer: ConvBN) -> tuple[str, str]:
    """What `auto` trains with, and why."""
    passed_over: list[str] = []
    for name in ORDER.get(x.device.type, ()):
        why = _unverified(name, x.device)
        if why is None and name not in OF_CPU:
            why = registry.get(name).unsupported(x, layer)
        if why is None:
            return name, "; ".join(passed_over) or f"first choice for training on {x.device.type}"
        passed_over.append(f"{name}: {why}")
    return "reference", "; ".join(passed_over)


def _unverified(name: str, device: torch.device) -> str | None:
    """Why `auto` may not train with what is called `name` on `device`, or None."""
    if name in OF_CPU:
        return cpu_steps.unavailable() or None if name == NATIVE else None
    backend = registry.find(name)
    try:
        if missing := backend.unavailable():
            return missing
    except ImportError as error:  # a broken native module
        return str(error)
    fingerprint = backend.fingerprint()
    if fingerprint is None:
        return None
    return verification.reason_unsupported(name, fingerprint, device, verification.TRAINING)
