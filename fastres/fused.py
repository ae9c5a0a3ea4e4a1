"""What a ResNet is written in: convolution + BatchNorm + residual + ReLU as one call on PyTorch's own modules.

Each function runs one fused operator where that gives the modules' own result, and otherwise calls the modules one by
one, exactly as torchvision does (the plain path). `fusing` decides which.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from . import (
    fusing,
    ops,  # noqa: F401  registers torch.ops.fastres
    reference,
    train_step,
)
from .backends import registry
from .block import Block, ConvBN, flatten
from .fusing import call_obstacle, hooked, module_obstacle, must_be_called, plain_weight
from .pixels import Pixels

__all__ = [
    "ResidualParts",
    "check_input",
    "conv_bn",
    "conv_bn_act",
    "head",
    "hooked",
    "must_be_called",
    "normalize",
    "projection",
    "residual_block",
    "stage",
    "stem",
]


class ResidualParts(NamedTuple):
    """A residual block as modules: act(branch(x) + shortcut(x)).

    `branch` has each convolution with its BatchNorm, `shortcut` None is the identity, and `acts` is one activation for
    all layers of the branch or one for each.
    """

    branch: tuple[tuple[nn.Module, nn.Module], ...]
    shortcut: nn.Module | None
    acts: tuple[nn.Module, ...]


def _call(operator: Any, *args: Any) -> Tensor:
    """The operator, past its autograd rule: the fused path is taken only where no gradient is recorded."""
    if torch.compiler.is_compiling():
        return operator(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*args)


def read(
    x: Any,
    pairs: Iterable[tuple[nn.Module, nn.Module]],
    acts: Iterable[nn.Module | None] = (),
    other: Tensor | None = None,
    backend: str = "",
) -> list[ConvBN] | str:
    """`fusing.read`, or why not where the plain path was asked for by name."""
    return "asked for by name" if _wants_plain(backend) else fusing.read(x, pairs, acts, other)


def _wants_plain(backend: str) -> bool:
    # In a compiled graph the operator is told by its resolver: to compute the same without fusing.
    return not torch.compiler.is_compiling() and registry.requested(backend) == registry.PLAIN


def _train(
    x: Any,
    pair: train_step.Pair,
    act: nn.Module | None,
    backend: str,
    other: Tensor | None = None,
    projection: train_step.Pair | None = None,
    **options: Any,
) -> Tensor | str:
    """The layer's training step as one operator, or why not. Asked where inference may not fuse."""
    step = train_step.read(x, [pair], (act,), projection, backend)
    if isinstance(step, str):
        return step
    _check_dtype(x, pair[0])
    return step.run(x, other, **options)


def _plain(conv: nn.Module, x: Any, why: str) -> None:
    """Tells `explain` that `conv` runs unfused."""
    if not torch.compiler.is_compiling() and not isinstance(x, fx.Proxy):
        registry.record_plain(conv, x, why)


def check_input(x: Any, conv: Any, pixels: Pixels | None = None) -> None:
    """Raises TypeError or ValueError, naming `x`, unless it is an image batch that `conv`, the first layer, accepts.

    Outside autocast its dtype must be the weights'; with `pixels`, uint8. A first layer that is no plain Conv2d judges
    for itself.
    """
    if isinstance(x, fx.Proxy) or type(conv) is not nn.Conv2d:
        return
    if not torch.compiler.is_compiling() and torch.jit.is_tracing():
        return  # which would warn that the questions below are not part of the trace
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a torch.Tensor [N, {conv.in_channels}, H, W], got {type(x).__name__}")
    if x.dim() != 4 or x.shape[1] != conv.in_channels:
        raise ValueError(f"x: expected [N, {conv.in_channels}, H, W], got {tuple(x.shape)}")
    if x.shape[2] == 0 or x.shape[3] == 0:
        raise ValueError(f"x: expected an image of at least 1 x 1, got {tuple(x.shape)}")
    if conv.weight.device.type != "meta" and x.device != conv.weight.device and not conv._forward_pre_hooks:
        raise ValueError(f"x: expected device {conv.weight.device}, that of the weights, got {x.device}")
    if pixels is None:
        _check_dtype(x, conv)
    elif x.dtype != torch.uint8:
        raise TypeError(f"x: expected torch.uint8, as the model has input='uint8', got {x.dtype}")


def normalize(x: Any, conv: Any, pixels: Pixels | None) -> Any:
    """8-bit `x` as numbers of `conv`'s dtype, for a path that no kernel of 8-bit pixels takes; `x` without `pixels`."""
    return x if pixels is None else reference.normalize(x, pixels, conv.weight.dtype)


def _check_dtype(x: Tensor, conv: Any) -> None:
    if x.dtype != conv.weight.dtype and not (
        x.dtype.is_floating_point and x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type)
    ):
        raise TypeError(f"x: expected {conv.weight.dtype}, the dtype of the weights, got {x.dtype}")


def conv_bn(x: Tensor, conv: nn.Module, bn: nn.Module, *, backend: str = "") -> Tensor:
    """bn(conv(x)): the projection shortcut. Arguments as `conv_bn_act`."""
    layers = read(x, [(conv, bn)], backend=backend)
    if isinstance(layers, str):
        trained = _train(x, (conv, bn), None, backend, relu=False)
        if isinstance(trained, Tensor):
            return trained
        _plain(conv, x, trained)
        return bn(conv(x))
    _check_dtype(x, conv)
    return _call(torch.ops.fastres.conv_bn_act.default, x, *layers[0].arguments(), None, False, backend)


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
    layers = read(x, [(conv, bn)], (act,), residual, backend)
    if isinstance(layers, str):
        trained = _train(x, (conv, bn), act, backend, residual, identity=residual is not None)
        if isinstance(trained, Tensor):
            return trained
        _plain(conv, x, trained)
        y = bn(conv(x))
        if residual is not None:
            y += residual
        return F.relu(y) if act is None else act(y)
    _check_dtype(x, conv)
    return _call(torch.ops.fastres.conv_bn_act.default, x, *layers[0].arguments(), residual, True, backend)


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
    why: Any = None
    if shortcut is not None:
        layers = read(x, [(conv, bn), shortcut], (act,), block_input, backend)
        if not isinstance(layers, str):
            _check_dtype(x, conv)
            block_input = block_input if pool is None else pool(block_input)
            return _call(
                torch.ops.fastres.projection.default,
                x,
                *layers[0].arguments(),
                block_input,
                *layers[1].arguments(),
                backend,
            )
        if pool is None:
            trained = _train(x, (conv, bn), act, backend, block_input, shortcut)
            if isinstance(trained, Tensor):
                return trained
            why = trained
    if not isinstance(read(x, [(conv, bn)], (act,), block_input, backend), str):
        residual = _downsample(block_input, downsample, shortcut, backend)
        return conv_bn_act(x, conv, bn, residual, act=act, backend=backend)
    why = why or train_step.read(x, [(conv, bn)], (act,), None, backend)
    _plain(conv, x, why if isinstance(why, str) else "the shortcut of its block may not fuse")
    y = bn(conv(x))
    y += _downsample(block_input, downsample, shortcut, backend)
    return F.relu(y) if act is None else act(y)


def _downsample(x: Tensor, downsample: nn.Module, shortcut: train_step.Pair | None, backend: str) -> Tensor:
    if shortcut is not None:
        why: Any = read(x, [shortcut], backend=backend)
        if isinstance(why, str):
            why = train_step.read(x, [shortcut], (), None, backend)
        _plain(shortcut[0], x, why if isinstance(why, str) else "the end of its block may not fuse")
    return downsample(x)


def _shortcut(downsample: Any) -> tuple[nn.Module | None, tuple[nn.Module, nn.Module] | None]:
    """(pooling or None, (conv, bn)) of a downsample path, or (None, None) where it is something else."""
    if module_obstacle(downsample, nn.Sequential):
        return None, None
    match list(downsample):
        case [conv, bn]:
            return None, (conv, bn)
        case [nn.AvgPool2d() | nn.Identity() as pool, conv, bn]:
            return pool, (conv, bn)
    return None, None


def stem(
    x: Tensor,
    conv: Any,
    bn: nn.Module,
    act: nn.Module,
    maxpool: Any,
    *,
    pixels: Pixels | None = None,
    backend: str = "",
) -> Tensor:
    """maxpool(act(bn(conv(x)))): the network's first layers, as one operator; with `pixels`, `x` is uint8."""
    layers = read(x, [(conv, bn)], (act,), None, backend)
    poolable = _is_square_max_pool(maxpool)
    if isinstance(layers, str) or not poolable:
        x = normalize(x, conv, pixels)
        if poolable:
            pool = maxpool.kernel_size, maxpool.stride, maxpool.padding
            trained = _train(x, (conv, bn), act, backend, pool=pool)
            if isinstance(trained, Tensor):
                return trained
        return maxpool(conv_bn_act(x, conv, bn, act=act, backend=backend))
    pool = maxpool.kernel_size, maxpool.stride, maxpool.padding
    if pixels is not None:
        dtype = conv.weight.dtype
        return _call(torch.ops.fastres.stem_uint8.default, x, *layers[0].arguments(), *pool, dtype, *pixels, backend)
    _check_dtype(x, conv)
    return _call(torch.ops.fastres.stem.default, x, *layers[0].arguments(), *pool, backend)


def _is_square_max_pool(pool: Any) -> bool:
    return (
        module_obstacle(pool, nn.MaxPool2d) is None
        and all(isinstance(size, int) for size in (pool.kernel_size, pool.stride, pool.padding))
        and pool.dilation == 1
        and not pool.ceil_mode
        and not pool.return_indices
    )


def head(x: Tensor, avgpool: Any, fc: Any, *, backend: str = "") -> Tensor:
    """fc(flatten(avgpool(x))): global average pooling and the classifier, as one operator."""
    fusable = (
        not isinstance(x, fx.Proxy)
        and module_obstacle(avgpool, nn.AdaptiveAvgPool2d) is None
        and avgpool.output_size in (1, (1, 1))
        and module_obstacle(fc, nn.Linear) is None
        and plain_weight(fc.weight)
        and not (torch.is_grad_enabled() and (x.requires_grad or fc.weight.requires_grad))
        and call_obstacle() is None
        and (x.dtype == fc.weight.dtype or torch.is_autocast_enabled(x.device.type))
    )
    if fusable:
        return _call(torch.ops.fastres.head.default, x, fc.weight, fc.bias, backend)
    return fc(torch.flatten(avgpool(x), 1))


def residual_block(x: Tensor, block: Any, *, backend: str = "") -> Tensor:
    """act(branch(x) + shortcut(x)): a residual block.

    Args:
        x: [N, C, H, W], in any layout.
        block: a module whose `residual_parts()` says what it is made of. Where that is None, the block is more than a
            residual block, and its `plain_class` computes it.
        backend: as for `conv_bn_act`.

    Returns and raises as `conv_bn_act`.
    """
    parts: ResidualParts | None = block.residual_parts()
    if parts is None:
        return block.plain_class.forward(block, x)
    out = _train_block(x, parts, backend=backend)
    if out is not None:
        return out
    y = x
    acts = parts.acts if len(parts.acts) > 1 else parts.acts * len(parts.branch)
    for (conv, bn), act in zip(parts.branch[:-1], acts, strict=False):
        y = conv_bn_act(y, conv, bn, act=act, backend=backend)
    last = parts.branch[-1]
    if parts.shortcut is None:
        return conv_bn_act(y, *last, residual=x, act=acts[-1], backend=backend)
    return projection(y, *last, x, parts.shortcut, act=acts[-1], backend=backend)


def _train_block(x: Tensor, parts: ResidualParts, *, backend: str = "") -> Tensor | None:
    """A residual block's training step as one operator, or None: where it does not train, or may not be one operator.

    Training is what records gradients or normalises by a batch's statistics. A shortcut other than a projection is
    called, and its result is an input of the operator.
    """
    if not isinstance(read(x, parts.branch, parts.acts, None, backend), str):
        return None
    pool, shortcut = (None, None) if parts.shortcut is None else _shortcut(parts.shortcut)
    step = train_step.read(x, parts.branch, parts.acts, shortcut, backend)
    if isinstance(step, str):
        return None
    _check_dtype(x, parts.branch[0][0])
    other = parts.shortcut if shortcut is None else pool
    return step.run(x, None if other is None else other(x), identity=shortcut is None)


def stage(x: Tensor, blocks: Iterable[nn.Module], *, backend: str = "") -> Tensor:
    """The blocks in sequence; each run of blocks that may fuse is one operator, any other block is called.

    A block may fuse if it has `residual_parts()`, no hook of its own, and all its modules may.
    """
    for run in _runs(x, blocks):
        if isinstance(run, nn.Module):
            x = run(x)
        else:
            _check_dtype(x, run[0].branch[0])
            x = _call(torch.ops.fastres.stage.default, x, *flatten(run), backend)
    return x


def _runs(x: Any, blocks: Iterable[nn.Module]) -> Iterator[nn.Module | list[Block]]:
    """Blocks that must be called, and lists of neighbours that fuse."""
    run: list[Block] = []
    for module in blocks:
        block = _read_block(x, module)
        if block is not None:
            run.append(block)
            continue
        if run:
            yield run
            run = []
        yield module
    if run:
        yield run


def _read_block(x: Any, module: nn.Module) -> Block | None:
    describe = getattr(module, "residual_parts", None)
    if describe is None or must_be_called(module):
        return None
    parts: ResidualParts | None = describe()
    if parts is None:
        return None
    if parts.shortcut is None:
        layers = read(x, parts.branch, parts.acts)
        return None if isinstance(layers, str) else Block(tuple(layers), None)
    pool, shortcut = _shortcut(parts.shortcut)
    if shortcut is None or type(pool) not in (type(None), nn.Identity):
        return None
    layers = read(x, (*parts.branch, shortcut), parts.acts)
    return None if isinstance(layers, str) else Block(tuple(layers[:-1]), layers[-1])
