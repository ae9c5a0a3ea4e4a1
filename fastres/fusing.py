"""What may fuse: modules are read into `ConvBN`s, or the reason why they must be called one by one is given.

Asked anew on every call, so that a hook added, a weight pruned or a mode switched between two forwards is respected.
That is 53 times in a ResNet-50, so `read` looks at each attribute once, past nn.Module's attribute protocol.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules import module as _module
from torchvision.ops import FrozenBatchNorm2d

from .block import ConvBN, Geometry

BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)
# Tensor: DataParallel's replicas, functional_call; FakeTensor: torch.export. Not DTensor, nor a quantised weight.
_WEIGHTS = (nn.Parameter, Tensor, FakeTensor)


def read(
    x: Any,
    pairs: Iterable[tuple[nn.Module, nn.Module]],
    acts: Iterable[nn.Module | None] = (),
    other: Tensor | None = None,
) -> list[ConvBN] | str:
    """The (convolution, BatchNorm) pairs as tensors and geometry, or a string: why they may not fuse on `x`.

    `other` is a second activation that the call takes: a residual or a block's input.
    """
    if isinstance(x, fx.Proxy):
        return "the call is traced by torch.fx"
    layers: list[ConvBN] = []
    for conv, bn in pairs:
        layer = _read_pair(conv, bn)
        if isinstance(layer, str):
            return layer
        layers.append(layer)
    for act in acts:
        if act is not None and (why := module_obstacle(act, nn.ReLU)):
            return why
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, other, *(t for layer in layers for t in layer.tensors()))
    ):
        return "gradients are recorded"
    return call_obstacle() or layers


def read_training(
    x: Any, pairs: Iterable[tuple[nn.Module, nn.Module]], acts: Iterable[nn.Module | None] = ()
) -> list[ConvBN] | str:
    """As `read`, for a step of training: BatchNorms in either mode, gradients recorded or not."""
    if isinstance(x, fx.Proxy):
        return "the call is traced by torch.fx"
    layers: list[ConvBN] = []
    for conv, bn in pairs:
        layer = _read_pair(conv, bn, training=True)
        if isinstance(layer, str):
            return layer
        if layer.bias is not None:
            return "the convolution has a bias, and is trained"
        if bn.training and layer.num_batches_tracked is None and type(bn) is not FrozenBatchNorm2d:
            return "BatchNorm does not count its batches"
        layers.append(layer)
    for act in acts:
        if act is not None and (why := module_obstacle(act, nn.ReLU)):
            return why
    if torch.compiler._is_exporting_flag:  # Dynamo holds is_exporting() to be true wherever it compiles
        return "a training step is exported as PyTorch's own operators"
    if why := call_obstacle():
        return why
    return "an empty batch" if x.numel() == 0 else layers


def call_obstacle() -> str | None:
    """Why nothing may fuse at present, whatever the modules, or None."""
    if torch.compiler.is_compiling():
        return None  # what follows are eager states that a compiled graph cannot be in
    if torch.jit.is_tracing():
        return "the call is traced by torch.jit"
    if torch._C._are_functorch_transforms_active():
        return "a torch.func transform is active"
    if _module._has_any_global_hook():
        return "a global module hook is registered"
    return None


def module_obstacle(module: nn.Module, kind: type[nn.Module]) -> str | None:
    """Why `module` must be called rather than read, or None: another type than `kind`, a hook, a replaced forward."""
    if type(module) is not kind:
        return f"{type(module).__name__} is not exactly {kind.__name__}"
    if hooked(module):
        return f"a hook is registered on {type(module).__name__}"
    if "forward" in module.__dict__:
        return f"the forward of this {type(module).__name__} was replaced"
    return None


def must_be_called(module: nn.Module) -> bool:
    """Whether reading `module`'s children instead of calling it would miss a hook or a replaced forward."""
    return module_obstacle(module, type(module)) is not None


def hooked(module: nn.Module) -> bool:
    """Whether a hook is registered on this very module."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def plain_weight(weight: Any) -> bool:
    """Whether a parameter is an ordinary tensor, whose memory a kernel may read."""
    return type(weight) in _WEIGHTS


def _read_pair(conv: Any, bn: Any, training: bool = False) -> ConvBN | str:
    kind = type(bn)
    if (
        kind not in BATCH_NORMS
        or type(conv) is not nn.Conv2d
        or conv._forward_hooks
        or conv._forward_pre_hooks
        or bn._forward_hooks
        or bn._forward_pre_hooks
        or (bn.training and not training and kind is not FrozenBatchNorm2d)
        or conv.padding_mode != "zeros"
        or isinstance(conv.padding, str)
        or "forward" in conv.__dict__
        or "forward" in bn.__dict__
        or conv._backward_hooks
        or conv._backward_pre_hooks
        or bn._backward_hooks
        or bn._backward_pre_hooks
    ):
        return _why_not(conv, bn, training)
    of_conv: dict[str, Any] = conv._parameters
    of_bn: dict[str, Any] = bn._buffers
    try:
        weight, bias = of_conv["weight"], of_conv["bias"]
        mean, var = of_bn["running_mean"], of_bn["running_var"]
        count = of_bn.get("num_batches_tracked")
        of_bn = of_bn if kind is FrozenBatchNorm2d else bn._parameters
        gamma, beta = of_bn["weight"], of_bn["bias"]
    except KeyError:  # DataParallel's replicas have attributes instead
        weight, bias, gamma, beta = conv.weight, conv.bias, bn.weight, bn.bias
        mean, var, count = bn.running_mean, bn.running_var, getattr(bn, "num_batches_tracked", None)
    if type(weight) not in _WEIGHTS:
        return f"the weight is a {type(weight).__name__}"
    if mean is None or var is None:
        return "BatchNorm keeps no running statistics"
    geometry = Geometry._make((conv.stride, conv.padding, conv.dilation, conv.groups))
    return ConvBN(weight, bias, gamma, beta, mean, var, count, bn.eps, geometry)


def _why_not(conv: Any, bn: Any, training: bool) -> str:
    if type(bn) not in BATCH_NORMS:
        return f"{type(bn).__name__} is not exactly one of {', '.join(k.__name__ for k in BATCH_NORMS)}"
    if why := module_obstacle(conv, nn.Conv2d) or module_obstacle(bn, type(bn)):
        return why
    if bn.training and not training and type(bn) is not FrozenBatchNorm2d:
        return "BatchNorm is in training mode"
    return f"padding {conv.padding!r} in mode {conv.padding_mode!r}, not zeros of a given width"
