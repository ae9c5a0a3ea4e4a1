"""Frozen batch norms of other packages (DETR's, Detectron2's), recognised by what they compute rather than by name.

Such a class has four buffers and no parameters. Its own forward is run once on drawn numbers; if that is the formula of
a BatchNorm in evaluation mode, in either mode and with or without gradients, modules of the class fuse as one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_BUFFERS = ("weight", "bias", "running_mean", "running_var")
_PLAIN_STATE = {*nn.Module().__dict__, "num_features", "eps", "momentum", "affine", "track_running_stats"}
_ATTRIBUTE = -1.0  # in place of a constant: the module's attribute `eps` is what its forward uses

_known: dict[
    type, tuple[Any, float | None]
] = {}  # class -> the forward that was run, and its eps; None: another formula


def eps_of(bn: Any) -> float | None:
    """The eps of a frozen batch norm, or None if `bn` is not known to compute one."""
    kind = type(bn)
    if kind not in _known and not _probe(bn):
        return None
    forward, eps = _known[kind]
    if eps is None or kind.forward is not forward:
        return None
    return bn.eps if eps == _ATTRIBUTE else eps


def _probe(bn: nn.Module) -> bool:
    """Looks at the class of `bn` if that can be done now: not while compiled, nor under a mode that changes tensors."""
    if torch.compiler.is_compiling() or not isinstance(bn, nn.Module):
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active():
        return False
    if "forward" in bn.__dict__:  # says nothing of the class
        return False
    _known[type(bn)] = type(bn).forward, _measure(bn) if _has_the_structure(bn) else None
    return True


def _has_the_structure(bn: nn.Module) -> bool:
    buffers = {name: buffer for name, buffer in bn._buffers.items() if buffer is not None}
    return (
        not bn._parameters
        and not bn._modules
        and {*buffers} - {"num_batches_tracked"} == {*_BUFFERS}
        and len({buffers[name].shape for name in _BUFFERS}) == 1
        and buffers["weight"].dim() == 1
        and not bn.__dict__.keys() - _PLAIN_STATE
    )


def _measure(bn: nn.Module) -> float | None:
    try:
        with torch.inference_mode(False), torch.autocast("cpu", enabled=False):
            if hasattr(bn, "eps") and all(_computes(_twin(bn, eps=eps), eps) for eps in (0.25, 1e-3)):
                return _ATTRIBUTE
            eps = _constant(bn)
            return eps if _computes(_twin(bn), eps) else None
    except Exception:  # whatever the forward of a class unknown to us raises: it is not this formula
        return None


def _twin(bn: nn.Module, **state: Any) -> nn.Module:
    """A module of `bn`'s class with four channels of drawn float64 numbers, and without its hooks."""
    draw = torch.Generator("cpu").manual_seed(0)
    twin = type(bn).__new__(type(bn))
    nn.Module.__init__(twin)
    own = {name: value for name, value in bn.__dict__.items() if name not in nn.Module().__dict__}
    twin.__dict__.update(own, **state)
    for name in bn._buffers:
        twin._buffers[name] = None
    for name in _BUFFERS:
        twin._buffers[name] = torch.randn(4, generator=draw, dtype=torch.float64, device="cpu")
    twin._buffers["running_var"] = torch.tensor([0.0, 1e-6, 0.7, 3.0], dtype=torch.float64, device="cpu")
    return twin


def _constant(bn: nn.Module) -> float:
    """The eps that explains the slope in a channel without variance."""
    twin = _twin(bn)
    zero = torch.zeros(1, 4, 1, 1, dtype=torch.float64, device="cpu")
    with torch.no_grad():
        slope = (twin(zero + 1) - twin(zero))[0, 0].item()
    return float(f"{(twin.get_buffer('weight')[0].item() / slope) ** 2:.6g}")


def _computes(twin: nn.Module, eps: float) -> bool:
    buffers: list[Any] = [twin._buffers[name] for name in _BUFFERS]
    weight, bias, mean, var = (buffer[:, None, None] for buffer in buffers)
    draw = torch.Generator("cpu").manual_seed(1)
    x = torch.randn(2, 4, 3, 2, generator=draw, dtype=torch.float64, device="cpu")
    expected = weight * (x - mean) / (var + eps).sqrt() + bias
    for training in (False, True):
        for wanted in (False, True):
            before = [buffer.clone() for buffer in buffers]
            with torch.set_grad_enabled(wanted):
                y = twin.train(training)(x.clone().requires_grad_(wanted))
            if not isinstance(y, Tensor) or not torch.allclose(y, expected, rtol=1e-9, atol=1e-9):
                return False
            if not all(map(torch.equal, before, buffers)):
                return False
    return True
