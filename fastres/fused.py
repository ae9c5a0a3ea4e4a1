"""What a ResNet is written in: convolution + BatchNorm + residual + ReLU as one call on PyTorch's own modules.

Each function runs one fused operator where that gives the modules' own result, and otherwise calls the modules one by
one, exactly as torchvision does (the plain path). What may fuse is decided anew on every call by `obstacle`, so a hook
added, a weight pruned or a mode switched between two forwards is respected.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules import module as _module
from torchvision.ops import FrozenBatchNorm2d

from . import ops as _ops  # registers torch.ops.fastres
from .backends import registry
from .layer import Block, ConvBN, flatten

__all__ = ["ResidualParts", "check_input", "conv_bn", "conv_bn_act", "head", "hooked", "projection", "stage", "stem"]

_ = _ops
_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)
# Tensor: DataParallel's replicas, functional_call; FakeTensor: torch.export. Not DTensor, nor a quantised weight.
_WEIGHTS = (nn.Parameter, Tensor, FakeTensor)


class ResidualParts(NamedTuple):
    """A residual block as modules: relu(branch(x) + shortcut(x)); `shortcut` None is the identity."""

    branch: tuple[tuple[nn.Module, nn.Module], ...]
    shortcut: nn.Module | None
    acts: tuple[nn.Module, ...]


# What may fuse ----------------------------------------------------------------------------------------------------


def hooked(module: nn.Module) -> bool:
    """Whether a hook is registered on this very module."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _module_obstacle(module: nn.Module, kinds: tuple[type, ...]) -> str | None:
    if type(module) not in kinds:
        return f"{type(module).__name__} is not exactly {' or '.join(k.__name__ for k in kinds)}"
    if hooked(module):
        return f"a hook is registered on {type(module).__name__}"
    if "forward" in module.__dict__:
        return f"the forward of this {type(module).__name__} was replaced"
    return None


def _conv_bn_obstacle(conv: Any, bn: Any) -> str | None:
    if why := _module_obstacle(conv, (nn.Conv2d,)) or _module_obstacle(bn, _BATCH_NORMS):
        return why
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return f"padding {conv.padding!r} in mode {conv.padding_mode!r}, not zeros of a given width"
    if type(conv.weight) not in _WEIGHTS:
        return f"the weight is a {type(conv.weight).__name__}"
    if bn.running_mean is None or bn.running_var is None:
        return "BatchNorm keeps no running statistics"
    if bn.training and type(bn) is not FrozenBatchNorm2d:
        return "BatchNorm is in training mode"
    return None


def _call_obstacle(tensors: Iterable[Tensor | None]) -> str | None:
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return "gradients are recorded"
    if torch.compiler.is_compiling():
        return None  # what follows are eager states that a compiled graph cannot be in
    if torch.jit.is_tracing():
        return "the call is traced by torch.jit"
    if torch._C._are_functorch_transforms_active():
        return "a torch.func transform is active"
    if _module._has_any_global_hook():
        return "a global module hook is registered"
    return None


def obstacle(x: Tensor, pairs: Iterable[tuple[Any, Any]], acts: Iterable[nn.Module | None]) -> str | None:
    """Why these (convolution, BatchNorm) pairs and activations may not fuse on `x`, or None where they may."""
    if isinstance(x, fx.Proxy):
        return "the call is traced by torch.fx"
    pairs = list(pairs)
    for conv, bn in pairs:
        if why := _conv_bn_obstacle(conv, bn):
            return why
    for act in acts:
        if act is not None and (why := _module_obstacle(act, (nn.ReLU,))):
            return why
    return _call_obstacle((x, *chain.from_iterable((c.weight, c.bias, b.weight, b.bias) for c, b in pairs)))


def _plain(conv: nn.Module, x: Any, why: str) -> None:
    """Tells `explain` that `conv` runs unfused."""
    if not torch.compiler.is_compiling() and not isinstance(x, fx.Proxy):
        registry.record_plain(getattr(conv, "weight", None), x, why)


def _layer(conv: Any, bn: Any) -> ConvBN:
    return ConvBN(
        conv.weight,
        conv.bias,
        bn.weight,
        bn.bias,
        bn.running_mean,
        bn.running_var,
        getattr(bn, "num_batches_tracked", None),
        bn.eps,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
    )


def check_input(x: Any, conv: Any) -> None:
    """Raises TypeError or ValueError, naming `x`, unless it is an image batch that `conv`, the first layer, accepts.

    Outside autocast its dtype must be the weights'. A first layer that is no plain Conv2d judges for itself.
    """
    if isinstance(x, fx.Proxy) or type(conv) is not nn.Conv2d:
        return
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a torch.Tensor [N, {conv.in_channels}, H, W], got {type(x).__name__}")
    if x.dim() != 4 or x.shape[1] != conv.in_channels:
        raise ValueError(f"x: expected [N, {conv.in_channels}, H, W], got {tuple(x.shape)}")
    if x.shape[2] == 0 or x.shape[3] == 0:
        raise ValueError(f"x: expected an image of at least 1 x 1, got {tuple(x.shape)}")
    if conv.weight.device.type != "meta" and x.device != conv.weight.device and not conv._forward_pre_hooks:
        raise ValueError(f"x: expected device {conv.weight.device}, that of the weights, got {x.device}")
    _check_dtype(x, conv)


def _check_dtype(x: Tensor, conv: Any) -> None:
    if x.dtype != conv.weight.dtype and not (
        x.dtype.is_floating_point and x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type)
    ):
        raise TypeError(f"x: expected {conv.weight.dtype}, the dtype of the weights, got {x.dtype}")


# The calls --------------------------------------------------------------------------------------------------------


def conv_bn(x: Tensor, conv: nn.Module, bn: nn.Module, *, backend: str = "") -> Tensor:
    """bn(conv(x)): the projection shortcut. Arguments as `conv_bn_act`."""
    if why := obstacle(x, [(conv, bn)], ()):
        _plain(conv, x, why)
        return bn(conv(x))
    _check_dtype(x, conv)
    return torch.ops.fastres.conv_bn_act(x, *_layer(conv, bn), None, False, backend)


def conv_bn_act(
    x: Tensor,
    conv: nn.Module,
    bn: nn.Module,
    residual: Tensor | None = None,
    *,
    act: nn.Module | None = None,
    backend: str = "",
) -> Tensor:
    """relu(bn(conv(x)) + residual).

    `x` is [N, Cin, H, W] and `residual` [N, Cout, P, Q], of one dtype, in any layout; so is the result, in
    channels_last where the call fuses. `act` is the block's own ReLU module, called on the plain path. `backend` is the
    one that the model carries, "" for none. The residual is not modified where the call fuses.

    Raises TypeError for a dtype other than the weights' outside autocast, ValueError for a shape or device that does
    not fit, BackendError where a backend asked for by name cannot run.
    """
    if why := obstacle(x, [(conv, bn)], (act,)):
        _plain(conv, x, why)
        y = bn(conv(x))
        if residual is not None:
            y += residual
        return F.relu(y) if act is None else act(y)
    _check_dtype(x, conv)
    return torch.ops.fastres.conv_bn_act(x, *_layer(conv, bn), residual, True, backend)


def projection(
    x: Tensor,
    conv: nn.Module,
    bn: nn.Module,
    block_input: Tensor,
    downsample: nn.Module,
    *,
    act: nn.Module | None = None,
    backend: str = "",
) -> Tensor:
    """relu(bn(conv(x)) + downsample(block_input)): the end of a block with a projection shortcut, as one operator.

    `downsample` fuses if it is an nn.Sequential of convolution and BatchNorm, after a pooling of its own or not.
    """
    pool, shortcut = _shortcut(downsample)
    why: str | None = "the downsample path is not exactly convolution and BatchNorm"
    if shortcut is not None:
        why = obstacle(x, [(conv, bn), shortcut], (act,)) or _call_obstacle((block_input,))
        if why is None:
            _check_dtype(x, conv)
            block_input = block_input if pool is None else pool(block_input)
            return torch.ops.fastres.projection(x, *_layer(conv, bn), block_input, *_layer(*shortcut), backend)
    if obstacle(x, [(conv, bn)], (act,)) is None:
        return conv_bn_act(x, conv, bn, downsample(block_input), act=act, backend=backend)
    _plain(conv, x, str(why))
    if shortcut is not None:
        _plain(shortcut[0], block_input, str(why))
    y = bn(conv(x))
    y += downsample(block_input)
    return F.relu(y) if act is None else act(y)


def _shortcut(downsample: Any) -> tuple[nn.Module | None, tuple[nn.Module, nn.Module] | None]:
    """(pooling or None, (conv, bn)) of a downsample path, or (None, None) where it is something else."""
    if _module_obstacle(downsample, (nn.Sequential,)):
        return None, None
    match list(downsample):
        case [conv, bn]:
            return None, (conv, bn)
        case [nn.AvgPool2d() | nn.Identity() as pool, conv, bn]:
            return pool, (conv, bn)
    return None, None


def stem(x: Tensor, conv: nn.Module, bn: nn.Module, act: nn.Module, maxpool: Any, *, backend: str = "") -> Tensor:
    """maxpool(act(bn(conv(x)))): the network's first layers, as one operator."""
    why = obstacle(x, [(conv, bn)], (act,)) or _pool_obstacle(maxpool)
    if why is not None:
        return maxpool(conv_bn_act(x, conv, bn, act=act, backend=backend))
    _check_dtype(x, conv)
    pool = maxpool.kernel_size, maxpool.stride, maxpool.padding
    return torch.ops.fastres.stem(x, *_layer(conv, bn), *pool, backend)


def _pool_obstacle(pool: Any) -> str | None:
    if why := _module_obstacle(pool, (nn.MaxPool2d,)):
        return why
    square = all(isinstance(size, int) for size in (pool.kernel_size, pool.stride, pool.padding))
    if not square or pool.dilation != 1 or pool.ceil_mode or pool.return_indices:
        return f"not a plain square max pooling: {pool}"
    return None


def head(x: Tensor, avgpool: Any, fc: Any, *, backend: str = "") -> Tensor:
    """fc(flatten(avgpool(x))): global average pooling and the classifier, as one operator."""
    fusable = (
        not isinstance(x, fx.Proxy)
        and _module_obstacle(avgpool, (nn.AdaptiveAvgPool2d,)) is None
        and avgpool.output_size in (1, (1, 1))
        and _module_obstacle(fc, (nn.Linear,)) is None
        and type(fc.weight) in _WEIGHTS
        and _call_obstacle((x, fc.weight, fc.bias)) is None
        and (x.dtype == fc.weight.dtype or torch.is_autocast_enabled(x.device.type))
    )
    if fusable:
        return torch.ops.fastres.head(x, fc.weight, fc.bias, backend)
    return fc(torch.flatten(avgpool(x), 1))


def stage(x: Tensor, blocks: Iterable[nn.Module], *, backend: str = "") -> Tensor:
    """The blocks in sequence; each run of blocks that may fuse is one operator, any other block is called.

    A block may fuse if it has `residual_parts()`, no hook of its own, and all its modules may.
    """
    for run in _runs(x, blocks):
        if isinstance(run, nn.Module):
            x = run(x)
        else:
            _check_dtype(x, run[0].branch[0][0])
            x = torch.ops.fastres.stage(x, *flatten(map(_block, run)), backend)
    return x


def _block(parts: ResidualParts) -> Block:
    shortcut = None if parts.shortcut is None else _shortcut(parts.shortcut)[1]
    return Block(
        tuple(_layer(conv, bn) for conv, bn in parts.branch),
        None if shortcut is None else _layer(*shortcut),
    )


def _runs(x: Any, blocks: Iterable[nn.Module]) -> Iterator[nn.Module | list[ResidualParts]]:
    """Blocks that must be called, and lists of neighbours that fuse."""
    run: list[ResidualParts] = []
    for block in blocks:
        parts = _fusable_parts(x, block)
        if parts is not None:
            run.append(parts)
            continue
        if run:
            yield run
            run = []
        yield block
    if run:
        yield run


def _fusable_parts(x: Any, block: nn.Module) -> ResidualParts | None:
    describe = getattr(block, "residual_parts", None)
    if describe is None or _module_obstacle(block, (type(block),)):
        return None
    parts: ResidualParts | None = describe()
    if parts is None:
        return None
    pairs = list(parts.branch)
    if parts.shortcut is not None:
        pool, shortcut = _shortcut(parts.shortcut)
        if shortcut is None or type(pool) not in (type(None), nn.Identity):
            return None
        pairs.append(shortcut)
    return None if obstacle(x, pairs, parts.acts) else parts
