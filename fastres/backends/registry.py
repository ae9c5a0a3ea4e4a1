"""Which backend runs a fused operator.

Asked for by name, innermost first: `use_backend(...)`, `backend=` of the model, the environment's FASTRES_BACKEND; a
named backend runs or raises. Without a name, or by the name "auto", the first in `ranking.order` that can run a problem
runs it, kernels of ours only where they are verified, and `fastres.explain` says why.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference, tuning
from ..block import ConvBN
from ..pixels import Pixels
from . import ranking, verification
from .steps import Steps

AUTO = "auto"
PLAIN = "plain"  # PyTorch's own modules, unfused


class BackendError(RuntimeError):
    """A backend asked for by name is not available here or cannot run the problem."""


class Backend:
    """Runs fused operators. A subclass gives `name`, the two questions, `prepare` and `conv`; the rest is composed.

    Tensors are [N, C, H, W] of one floating dtype, given dense in channels_last; results are new tensors.
    """

    name = ""
    note = ""  # what a user should know: numerics that differ from PyTorch's, hardware it was never run on
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
        """Which of this backend's kernels runs `layer` in `operator`, one of ranking's; "" if there is but one."""
        return ""

    def prepare(self, x: Tensor, layer: ConvBN) -> Any:
        """What `conv` needs of `layer` for inputs like `x`: folded weights in its own layout, geometry. Cached."""
        raise NotImplementedError

    def conv(
        self, x: Tensor, prepared: Any, relu: bool, residual: Tensor | None = None, overwrite: bool = False
    ) -> Tensor:
        """BatchNorm(conv(x)) + residual, then a ReLU that keeps NaN. With `overwrite`, may write over `residual`."""
        raise NotImplementedError

    def steps(self) -> Steps | None:
        """The passes of a training step, or None: then PyTorch's own modules train."""
        return None

    def projection(self, x: Tensor, prepared: Any, block_input: Tensor, shortcut: Any) -> Tensor:
        return self.conv(x, prepared, True, self.conv(block_input, shortcut, False), overwrite=True)

    def stem(self, x: Tensor, prepared: Any, kernel: int, stride: int, padding: int) -> Tensor:
        return F.max_pool2d(self.conv(x, prepared, True), kernel, stride, padding)

    def stem_uint8(
        self, x: Tensor, prepared: Any, kernel: int, stride: int, padding: int, pixels: Pixels, dtype: torch.dtype
    ) -> Tensor:
        """`stem` on 8-bit `x`, of which `pixels` makes numbers of `dtype`; `prepared` is for such numbers."""
        return self.stem(reference.normalize(x, pixels, dtype), prepared, kernel, stride, padding)

    def head(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return reference.head(x, weight, bias)


@dataclass(frozen=True)
class Choice:
    """One decision of the resolver: a convolution, who runs it and why the ones before it do not."""

    address: int  # of the weight, or of the module that ran unfused: how `explain` finds the name
    x_shape: tuple[int, ...]
    backend: str
    reason: str
    operator: str = ""  # one of ranking's, and the layer: "" and None where it ran unfused
    layer: ConvBN | None = None
    kernel: str = ""  # which of the backend's, where it has more than one


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
    return {name: _unavailable(backend) for name, backend in _registered.items()}


def _unavailable(backend: Backend) -> str | None:
    try:
        return backend.unavailable()
    except ImportError as error:  # a broken native module: told in a list, raised where something is to run
        return str(error)


def notes() -> dict[str, str]:
    """What a user should know about each backend: numerics that differ, hardware it was never run on; or ""."""
    return {name: "; ".join(filter(None, (_standing(backend), backend.note))) for name, backend in _registered.items()}


def _standing(backend: Backend) -> str:
    """Where kernels of ours are verified; "" of a library's, and where there are none."""
    try:
        fingerprint = backend.fingerprint()
    except (ImportError, FileNotFoundError):  # a native module that is broken, or without kernels
        return ""
    return "" if fingerprint is None else verification.standing(backend.name, fingerprint)


def check_name(name: str | None, argument: str = "backend") -> str | None:
    """Raises ValueError unless `name` is None, "auto", "plain" or a backend's name."""
    if name is not None and name not in (AUTO, PLAIN) and name not in _registered:
        known = ", ".join(map(repr, (AUTO, PLAIN, *_registered)))
        raise ValueError(f"{argument}: unknown backend {name!r}, expected one of {known}")
    return name


def find(name: str) -> Backend:
    """The backend of this name, available or not. Raises ValueError for an unknown name."""
    check_name(name)
    return _registered[name]


def get(name: str) -> Backend:
    """The backend of this name. Raises BackendError where it is not available."""
    backend = find(name)
    if reason := backend.unavailable():
        raise BackendError(f"backend {name!r} is not available: {reason}")
    return backend


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Runs fused operators on the backend `name` within the `with` block, in this thread (or asyncio task).

    It takes precedence over the model's `backend=` and FASTRES_BACKEND; "auto" lets fastres choose again, "plain" runs
    PyTorch's own modules, unfused. Threads started inside, DataParallel's included, do not inherit it: give the model a
    `backend=` for those.

    Raises ValueError for an unknown name and BackendError for a backend that is not available on this machine.
    """
    if name not in (AUTO, PLAIN):
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


def is_named(model_backend: str) -> bool:
    """Whether any name was asked for, "auto" included."""
    return bool(_scoped.get() or model_backend or os.environ.get("FASTRES_BACKEND"))


def switches() -> tuple[int, ...]:
    """What a choice depends on beside the name that was asked for and the problem: PyTorch's switches, our tables."""
    pytorch = torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled(), tuning.conv_tf32()
    return *pytorch, ranking.changes, verification.changes


def is_recording() -> bool:
    """Whether `explain` is listening."""
    return _log.get() is not None


def resolve(
    x: Tensor,
    layer: ConvBN,
    model_backend: str = "",
    operator: str = ranking.CONV,
    beside: Backend | None = None,
) -> Backend:
    """The backend that runs `layer` on `x` as part of `operator`. Raises BackendError if one was named and cannot.

    `beside` runs the convolution that a shortcut is added to: it comes first, as it may do both as one.
    """
    name = requested(model_backend)
    if name not in (AUTO, PLAIN):
        backend = get(name)
        if reason := backend.unsupported(x, layer):
            raise BackendError(f"backend {name!r} cannot run this convolution: {reason}")
        record(x, layer, backend.name, "asked for by name", operator)
        return backend
    if name == PLAIN:
        return _registered["reference"]
    if beside is not None and not beside.keeps_parameters and _declines(beside, x, layer) is None:
        record(x, layer, beside.name, "as one with the convolution that it is added to", operator)
        return beside
    names = [name for name in ranking.order(operator, x, layer) if name in _registered]
    for name in names:
        backend = _registered[name]
        if _declines(backend, x, layer) is None:
            if _log.get() is not None:
                record(x, layer, name, _why(name, names, x, layer, operator), operator)
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


def record(x: Tensor, layer: ConvBN, name: str, reason: str, operator: str = "") -> None:
    """Notes that `layer` runs on what is called `name`; `operator` is one of ranking's, "" in a training step."""
    if (log := _log.get()) is not None:
        of_ranking = layer if operator else None
        kernel = _registered[name].kernel(x, layer, operator) if operator else ""
        log.append(Choice(layer.weight.data_ptr(), tuple(x.shape), name, reason, operator, of_ranking, kernel))


def _declines(backend: Backend, x: Tensor, layer: ConvBN) -> str | None:
    """Why `auto` passes over `backend`, or None."""
    if why := backend.unavailable() or backend.unsupported(x, layer):
        return why
    fingerprint = backend.fingerprint()
    return None if fingerprint is None else verification.reason_unsupported(backend.name, fingerprint, x.device)


def _why(chosen: str, names: Sequence[str], x: Tensor, layer: ConvBN, operator: str) -> str:
    passed_over = names[: names.index(chosen)]
    reasons = [f"{name}: {_declines(_registered[name], x, layer)}" for name in passed_over]
    if chosen == ranking.fastest(operator, x, layer):
        return "the fastest here when `fastres tune` measured"
    return "; ".join(reasons) or f"first choice for {x.device.type}"
