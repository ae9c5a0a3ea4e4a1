"""What a ResNet is written in: convolution + BatchNorm + residual + ReLU as one call on PyTorch's own modules.

Each function runs one fused operator where that gives the modules' own result, and otherwise calls the modules one by
one, exactly as torchvision does (the plain path). `eligibility` decides which.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from . import (
    ops,  # noqa: F401  registers torch.ops.fastres
    reference,
)
from .backends import registry
from .block import Block, ConvBN, Norm, Pool, TrainBlock, flatten
from .eligibility import (
    Pair,
    Reading,
    call_unsupported,
    fuses,
    hooked,
    must_be_called,
    plain_weight,
    read,
    reason_unsupported,
)
from .pixels import Pixels

__all__ = [
    "ResidualParts",
    "check_input",
    "conv_bn",
    "conv_bn_act",
    "fuses",
    "head",
    "hooked",
    "must_be_called",
    "normalize",
    "projection",
    "read_shortcut",
    "reason_unsupported",
    "residual_block",
    "stage",
    "stem",
]


class ResidualParts(NamedTuple):
    """A residual block as modules: act(branch(x) + shortcut(x)).

    `branch` has each convolution with its BatchNorm, `shortcut` None is the identity, and `acts` is one activation for
    all layers of the branch or one for each.
    """

    branch: tuple[Pair, ...]
    shortcut: nn.Module | None
    acts: tuple[nn.Module, ...]


def _call(operator: Any, *args: Any) -> Tensor:
    """The operator, past its autograd rule: the fused path is taken only where no gradient is recorded."""
    if torch.compiler.is_compiling():
        return operator(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*args)


def _train(
    x: Tensor,
    reading: Reading,
    other: Tensor | None,
    backend: str,
    *,
    identity: bool = False,
    relu: bool = True,
    pool: Pool = (0, 0, 0),
) -> Tensor:
    """[pool](act(branch(x) [+ shortcut])), as one operator; it moves the running statistics as BatchNorm does.

    The shortcut is the projection of, or where `identity` is set itself, `other` if given and x if not.
    """
    layers = tuple(map(_inputs, reading.layers, reading.norms))
    branch, projected = (layers[:-1], layers[-1]) if reading.projected else (layers, None)
    block = TrainBlock(branch, projected, reading.norms, identity, relu, pool)
    out, *kept = torch.ops.fastres.train_block.default(x, other, *block.flatten(), reading.group, backend)
    if any(norm is not Norm.RUNNING for norm in reading.norms):
        _track(reading, kept)
    return out


def _inputs(layer: ConvBN, norm: Norm) -> ConvBN:
    """`layer` without what the operator has no use for: its inputs must not be what `track` writes to."""
    if norm is Norm.RUNNING:
        return layer._replace(num_batches_tracked=None)
    return layer._replace(mean=None, var=None, num_batches_tracked=None)  # type: ignore[arg-type]


def _track(reading: Reading, kept: list[Tensor]) -> None:
    """Moves running means and variances towards the batch's, as BatchNorm does in its forward."""
    means, variances, counts, statistics, momenta = [], [], [], [], []
    at = 0
    for bn, layer, norm in zip(reading.batch_norms, reading.layers, reading.norms, strict=True):
        at += 2
        if norm is Norm.RUNNING:
            continue
        assert layer.num_batches_tracked is not None
        means.append(layer.mean)
        variances.append(layer.var)
        counts.append(layer.num_batches_tracked)
        statistics.append(kept[at])
        momenta.append(math.nan if bn.momentum is None else float(bn.momentum))
        at += 1
    torch.ops.fastres.track.default(means, variances, counts, statistics, momenta)


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
    channels = conv.weight.shape[1] * conv.groups  # a user may have put in a weight of other channels
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(f"x: expected [N, {channels}, H, W], got {tuple(x.shape)}")
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
    reading = read(x, [(conv, bn)], backend=backend)
    if isinstance(reading, str):
        _plain(conv, x, reading)
        return bn(conv(x))
    _check_dtype(x, conv)
    if reading.training:
        return _train(x, reading, None, backend, relu=False)
    (layer,) = reading.layers
    return _call(torch.ops.fastres.conv_bn_act.default, x, *layer.arguments(), None, False, backend)


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
    reading = read(x, [(conv, bn)], (act,), residual, backend=backend)
    if isinstance(reading, str):
        _plain(conv, x, reading)
        y = bn(conv(x))
        if residual is not None:
            y += residual
        return F.relu(y) if act is None else act(y)
    _check_dtype(x, conv)
    if reading.training:
        return _train(x, reading, residual, backend, identity=residual is not None)
    (layer,) = reading.layers
    return _call(torch.ops.fastres.conv_bn_act.default, x, *layer.arguments(), residual, True, backend)


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
    pool, shortcut = read_shortcut(downsample)
    why: Any = None
    if shortcut is not None:
        reading = read(x, [(conv, bn)], (act,), block_input, projection=shortcut, backend=backend)
        if isinstance(reading, str):
            why = reading
        elif not reading.training:
            _check_dtype(x, conv)
            block_input = block_input if pool is None else pool(block_input)
            main, other = (layer.arguments() for layer in reading.layers)
            return _call(torch.ops.fastres.projection.default, x, *main, block_input, *other, backend)
        elif pool is None:
            _check_dtype(x, conv)
            return _train(x, reading, block_input, backend)
    alone = read(x, [(conv, bn)], (act,), block_input, backend=backend)
    if isinstance(alone, Reading) and not alone.training:
        residual = _downsample(block_input, downsample, shortcut, backend)
        return conv_bn_act(x, conv, bn, residual, act=act, backend=backend)
    why = why or (alone if isinstance(alone, str) else "the shortcut of its block may not fuse")
    _plain(conv, x, why)
    y = bn(conv(x))
    y += _downsample(block_input, downsample, shortcut, backend)
    return F.relu(y) if act is None else act(y)


def _downsample(x: Tensor, downsample: nn.Module, shortcut: Pair | None, backend: str) -> Tensor:
    if shortcut is not None:
        why = read(x, [shortcut], backend=backend)
        _plain(shortcut[0], x, why if isinstance(why, str) else "the end of its block may not fuse")
    return downsample(x)


def read_shortcut(downsample: Any) -> tuple[nn.Module | None, Pair | None]:
    """(pooling or None, (conv, bn)) of a downsample path, or (None, None) where it is something else."""
    if reason_unsupported(downsample, nn.Sequential):
        return None, None
    layers = list(downsample)
    if len(layers) == 2:
        return None, (layers[0], layers[1])
    if len(layers) != 3 or not isinstance(layers[0], (nn.AvgPool2d, nn.Identity)):
        return None, None
    pool, conv, bn = layers
    return (None if reason_unsupported(pool, nn.Identity) is None else pool), (conv, bn)


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
    poolable = _is_square_max_pool(maxpool)
    reading = read(x, [(conv, bn)], (act,), backend=backend) if poolable else "the pooling may not fuse"
    if isinstance(reading, str):
        return maxpool(conv_bn_act(normalize(x, conv, pixels), conv, bn, act=act, backend=backend))
    pool = maxpool.kernel_size, maxpool.stride, maxpool.padding
    if reading.training:
        x = normalize(x, conv, pixels)
        _check_dtype(x, conv)
        return _train(x, reading, None, backend, pool=pool)
    arguments = reading.layers[0].arguments()
    if pixels is not None:
        dtype = conv.weight.dtype
        return _call(torch.ops.fastres.stem_uint8.default, x, *arguments, *pool, dtype, *pixels, backend)
    _check_dtype(x, conv)
    return _call(torch.ops.fastres.stem.default, x, *arguments, *pool, backend)


def _is_square_max_pool(pool: Any) -> bool:
    return (
        reason_unsupported(pool, nn.MaxPool2d) is None
        and all(isinstance(size, int) for size in (pool.kernel_size, pool.stride, pool.padding))
        and pool.dilation == 1
        and not pool.ceil_mode
        and not pool.return_indices
    )


def head(x: Tensor, avgpool: Any, fc: Any, *, backend: str = "") -> Tensor:
    """fc(flatten(avgpool(x))): global average pooling and the classifier, as one operator."""
    fusable = (
        not isinstance(x, fx.Proxy)
        and reason_unsupported(avgpool, nn.AdaptiveAvgPool2d) is None
        and avgpool.output_size in (1, (1, 1))
        and reason_unsupported(fc, nn.Linear) is None
        and plain_weight(fc.weight)
        and not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, fc.weight, fc.bias)))
        and call_unsupported(backend) is None
        and (x.dtype == fc.weight.dtype or torch.is_autocast_enabled(x.device.type))
    )
    if fusable:
        return _call(torch.ops.fastres.head.default, x, fc.weight, fc.bias, backend)
    return fc(torch.flatten(avgpool(x), 1))


def residual_block(x: Tensor, block: Any, *, backend: str = "") -> Tensor:
    """act(branch(x) + shortcut(x)): a residual block, as one operator if all of it may fuse, else layer by layer.

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
    reading, before = _read_block(x, parts, backend)
    if isinstance(reading, Reading):
        if reading.training:
            return _train_block(x, parts, reading, before, backend)
        if before is None:
            return _stage(x, [reading.block()], backend)
    y = x
    acts = parts.acts if len(parts.acts) > 1 else parts.acts * len(parts.branch)
    for (conv, bn), act in zip(parts.branch[:-1], acts, strict=False):
        y = conv_bn_act(y, conv, bn, act=act, backend=backend)
    last = parts.branch[-1]
    if parts.shortcut is None:
        return conv_bn_act(y, *last, residual=x, act=acts[-1], backend=backend)
    return projection(y, *last, x, parts.shortcut, act=acts[-1], backend=backend)


def _read_block(x: Any, parts: ResidualParts, backend: str) -> tuple[Reading | str, nn.Module | None]:
    """The block's reading, and what of its shortcut must be called: the pooling before a projection, or all of it."""
    pool, shortcut = (None, None) if parts.shortcut is None else read_shortcut(parts.shortcut)
    reading = read(x, parts.branch, parts.acts, projection=shortcut, backend=backend)
    return reading, parts.shortcut if shortcut is None else pool


def _train_block(x: Tensor, parts: ResidualParts, reading: Reading, before: nn.Module | None, backend: str) -> Tensor:
    _check_dtype(x, parts.branch[0][0])
    return _train(x, reading, None if before is None else before(x), backend, identity=not reading.projected)


def stage(x: Tensor, blocks: Iterable[nn.Module], *, backend: str = "") -> Tensor:
    """The blocks in sequence; each run of blocks that may fuse is one operator, any other block is called.

    A block may fuse if it has `residual_parts()`, no hook of its own, and all its modules may.
    """
    run: list[Block] = []
    for block in blocks:
        describe = getattr(block, "residual_parts", None)
        parts: Any = None if describe is None or must_be_called(block) else describe()
        # The input of a run stands for its output: where a run records no gradient, both are read alike.
        reading, before = ("", None) if parts is None else _read_block(x, parts, backend)
        if isinstance(reading, Reading) and not reading.training and before is None:
            run.append(reading.block())
            continue
        if run:
            x, run = _stage(x, run, backend), []
        if isinstance(reading, Reading) and reading.training:
            x = _train_block(x, parts, reading, before, backend)
        else:
            x = block(x)
    return _stage(x, run, backend) if run else x


def _stage(x: Tensor, blocks: list[Block], backend: str) -> Tensor:
    _check_dtype(x, blocks[0].branch[0])
    return _call(torch.ops.fastres.stage.default, x, *flatten(blocks), backend)
