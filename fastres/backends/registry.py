"""Which backend runs a fused operator.

Asked for by name, innermost first: `use_backend(...)`, `backend=` of the model, the environment's FASTRES_BACKEND; a
named backend runs or raises. Without a name, or by the name "auto", the first of `AUTO_ORDER` that can run a problem
runs it, and `fastres.explain` says why.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from ..layer import ConvBN
from . import verification

AUTO = "auto"
PLAIN = "plain"  # what `explain` shows where nothing fuses
AUTO_ORDER = ("onednn", "cudnn", "reference")


class BackendError(RuntimeError):
    """A backend asked for by name is not available here or cannot run the problem."""


class Backend:
    """Runs fused operators. A subclass gives `name`, the two questions, `prepare` and `conv`; the rest is composed.

    Tensors are [N, C, H, W] of one floating dtype, given dense in channels_last; results are new tensors.
    """

    name = ""
    note = ""  # what a user should know: numerics that differ from PyTorch's, hardware it was never run on
    relu_keeps_nan = True  # as PyTorch's does; a library's that does not says so in its note
    keeps_parameters = False  # whether what `prepare` returns refers to the model's own tensors, and so is not cached

    def unavailable(self) -> str | None:
        """Why this backend cannot run on this machine, or None."""
        return None

    def fingerprint(self) -> str | None:
        """A hash of the sources of our own kernels, or None for a library's, which need no verification."""
        return None

    def unsupported(self, x: Tensor, layer: ConvBN) -> str | None:
        """Why this backend cannot run `layer` on `x`, or None."""
        raise NotImplementedError

    def kernel(self, x: Tensor, layer: ConvBN, operator: str) -> str:
        """Which of this backend's kernels runs `layer` in `operator` ("conv", "stem"), or "" where there is one."""
        return ""

    def prepare(self, x: Tensor, layer: ConvBN) -> Any:
        """What `conv` needs of `layer` for inputs like `x`: folded weights in its own layout, geometry. Cached."""
        raise NotImplementedError

    def conv(
        self, x: Tensor, prepared: Any, relu: bool, residual: Tensor | None = None, overwrite: bool = False
    ) -> Tensor:
        """BatchNorm(conv(x)) + residual, then ReLU. With `overwrite`, the result may be written over `residual`."""
        raise NotImplementedError

    def projection(self, x: Tensor, prepared: Any, block_input: Tensor, shortcut: Any) -> Tensor:
        return self.conv(x, prepared, True, self.conv(block_input, shortcut, False), overwrite=True)

    def stem(self, x: Tensor, prepared: Any, kernel: int, stride: int, padding: int) -> Tensor:
        return F.max_pool2d(self.conv(x, prepared, True), kernel, stride, padding)

    def head(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return reference.head(x, weight, bias)


@dataclass(frozen=True)
class Choice:
    """One decision of the resolver: a convolution, who runs it and why the ones before it do not."""

    address: int  # of the weight, or of the module that ran unfused: how `explain` finds the name
    x_shape: tuple[int, ...]
    backend: str
    reason: str
    kernel: str = ""


_registered: dict[str, Backend] = {}
_scoped: ContextVar[str | None] = ContextVar("fastres_backend", default=None)
_log: ContextVar[list[Choice] | None] = ContextVar("fastres_choices", default=None)


def register(backend: Backend) -> Backend:
    _registered[backend.name] = backend
    return backend


def names() -> list[str]:
    """Every backend's name, those that cannot run here included."""
    return list(_registered)


def backends() -> dict[str, str | None]:
    """Every backend of this build, with the reason why it cannot run on this machine, or None where it can."""
    return {name: backend.unavailable() for name, backend in _registered.items()}


def notes() -> dict[str, str]:
    """What a user should know about each backend: numerics that differ, hardware it was never run on; or ""."""
    return {name: backend.note for name, backend in _registered.items()}


def check_name(name: str | None, argument: str = "backend") -> str | None:
    """Raises ValueError unless `name` is None, "auto" or a backend's name."""
    if name is not None and name != AUTO and name not in _registered:
        known = ", ".join(map(repr, (AUTO, *_registered)))
        raise ValueError(f"{argument}: unknown backend {name!r}, expected one of {known}")
    return name


def get(name: str) -> Backend:
    """The backend of this name. Raises BackendError where it is not available."""
    check_name(name)
    backend = _registered[name]
    if reason := backend.unavailable():
        raise BackendError(f"backend {name!r} is not available: {reason}")
    return backend


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Runs fused operators on the backend `name` within the `with` block, in this thread (or asyncio task).

    It takes precedence over the model's `backend=` and FASTRES_BACKEND; "auto" lets fastres choose again. Threads
    started inside, DataParallel's included, do not inherit it: give the model a `backend=` for those.

    Raises ValueError for an unknown name and BackendError for a backend that is not available on this machine.
    """
    if name != AUTO:
        get(name)
    token = _scoped.set(name)
    try:
        yield
    finally:
        _scoped.reset(token)


def requested(model_backend: str) -> str:
    """The name asked for, given the one that the model carries ("" for none)."""
    name = _scoped.get() or model_backend
    if not name and (name := os.environ.get("FASTRES_BACKEND", "")):
        check_name(name, "FASTRES_BACKEND")
    return name or AUTO


def switches() -> tuple[bool, bool]:
    """PyTorch's own switches that a choice depends on, beside the name that was asked for and the problem."""
    return torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()


def is_recording() -> bool:
    """Whether `explain` is listening."""
    return _log.get() is not None


def resolve(x: Tensor, layer: ConvBN, model_backend: str = "", operator: str = "conv") -> Backend:
    """The backend that runs `layer` in `operator` on `x`. Raises BackendError if one was named and cannot."""
    name = requested(model_backend)
    if name != AUTO:
        backend = get(name)
        if reason := backend.unsupported(x, layer):
            raise BackendError(f"backend {name!r} cannot run this convolution: {reason}")
        _record(x, layer, backend, "asked for by name", operator)
        return backend
    for name in AUTO_ORDER:
        backend = _registered[name]
        if _declines(backend, x, layer) is None:
            if _log.get() is not None:
                _record(x, layer, backend, _why_not_before(name, x, layer), operator)
            return backend
    raise AssertionError("the reference backend runs everything")


@contextmanager
def recording() -> Iterator[list[Choice]]:
    """Collects the resolver's choices made in this thread within the `with` block."""
    choices: list[Choice] = []
    token = _log.set(choices)
    try:
        yield choices
    finally:
        _log.reset(token)


def record_plain(conv: object, x: Tensor, reason: str) -> None:
    """Notes that the module `conv` ran unfused, as PyTorch's own."""
    if (log := _log.get()) is not None:
        log.append(Choice(id(conv), tuple(x.shape), PLAIN, reason))


def _record(x: Tensor, layer: ConvBN, backend: Backend, reason: str, operator: str) -> None:
    if (log := _log.get()) is not None:
        kernel = backend.kernel(x, layer, operator)
        log.append(Choice(layer.weight.data_ptr(), tuple(x.shape), backend.name, reason, kernel))


def _declines(backend: Backend, x: Tensor, layer: ConvBN) -> str | None:
    """Why `auto` passes over `backend`, or None."""
    if why := backend.unavailable() or backend.unsupported(x, layer):
        return why
    fingerprint = backend.fingerprint()
    return None if fingerprint is None else verification.obstacle(backend.name, fingerprint, x.device)


def _why_not_before(chosen: str, x: Tensor, layer: ConvBN) -> str:
    passed_over = AUTO_ORDER[: AUTO_ORDER.index(chosen)]
    reasons = [f"{name}: {_declines(_registered[name], x, layer)}" for name in passed_over]
    return "; ".join(reasons) or f"first choice for {x.device.type}"
