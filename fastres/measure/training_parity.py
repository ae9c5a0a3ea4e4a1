"""A block's training step, forward and backward, by operator `train_block` and by PyTorch's own operators; and whether
the one is as right as the other by `parity`'s rule.

A step is its results by name: the output, the batch's means and unbiased variances, and the gradients of the input, of
weights, and of gammas and betas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..block import ConvBN, TrainBlock
from ..ops.train import kept_of
from .parity import ParityError, check

Step = dict[str, list[Tensor]]


def fused(block: TrainBlock, x: Tensor, gradient: Tensor, backend: str) -> Step:
    """The step of operator `train_block` on `backend`; every layer of `block` normalises by this batch.

    Raises BackendError where the backend cannot run it.
    """
    x, block = _leaf(x), _map(_leaf, block)
    out, *kept = torch.ops.fastres.train_block.default(x, None, *block.flatten(), "", backend)
    statistics = []
    for layer in kept_of(kept, block.norms):
        assert layer.statistics is not None
        count, mean, m2 = layer.statistics.unbind(1)
        statistics += [mean, m2 / (count - 1)]
    return _step(block, x, out, statistics, gradient)


def plain(block: TrainBlock, x: Tensor, gradient: Tensor) -> Step:
    """The step of PyTorch's operators, one after the other; the oracle's in float64."""
    x, block = _leaf(x), _map(_leaf, block)
    statistics: list[Tensor] = []
    a = x
    for i in range(len(block.branch)):
        a = F.relu(_argument(block, i, a, x, statistics))
    return _step(block, x, F.max_pool2d(a, *block.pool) if block.pool[0] else a, statistics, gradient)


def settled(block: TrainBlock, x: Tensor) -> tuple[TrainBlock, torch.Size]:
    """`block` with such betas that no rounding turns a ReLU over, and the size of its output.

    By channel, zero is in the widest gap among the middle four fifths of the ReLU's arguments.
    """
    exact, a, branch = _map(Tensor.double, block), x.double(), []
    for i, layer in enumerate(exact.branch):
        flat = exact._replace(branch=(*exact.branch[:i], layer._replace(beta=None), *exact.branch[i + 1 :]))
        z = _argument(flat, i, a, x.double(), [])
        beta = _into_a_gap(z).to(block.branch[i].weight.dtype)
        branch.append(block.branch[i]._replace(beta=beta))
        a = F.relu(z + beta.view(-1, 1, 1))
    size = (F.max_pool2d(a, *block.pool) if block.pool[0] else a).shape
    return block._replace(branch=tuple(branch)), size


def _argument(block: TrainBlock, i: int, a: Tensor, x: Tensor, statistics: list[Tensor]) -> Tensor:
    """What the ReLU behind layer `i` of the branch is applied to; the batch's statistics are added to those given."""
    out = _conv_bn(a, block.branch[i], statistics)
    if i + 1 < len(block.branch):
        return out
    if block.shortcut is not None:
        return out + _conv_bn(x, block.shortcut, statistics)
    return out + x if block.identity else out


def _conv_bn(x: Tensor, layer: ConvBN, statistics: list[Tensor]) -> Tensor:
    y = F.conv2d(x, layer.weight.to(x.dtype), None, *layer.geometry)
    wide = torch.promote_types(x.dtype, torch.float32)
    mean, var = (torch.full((y.shape[1],), value, dtype=wide, device=x.device) for value in (0.0, 1.0))
    statistics += [mean, var]  # of this batch alone, as the momentum is 1
    return F.batch_norm(y, mean, var, layer.gamma, layer.beta, True, 1.0, layer.eps)


def _into_a_gap(z: Tensor) -> Tensor:
    """[K] to add to [N, K, P, Q]; 1 where a channel has but one value."""
    ordered = z.transpose(0, 1).flatten(1).sort(1).values
    ordered = ordered[:, ordered.shape[1] // 10 : -(ordered.shape[1] // 10)]
    widest, at = ordered.diff(dim=1).max(1, keepdim=True)
    return torch.where(widest > 0, -ordered.gather(1, at) - widest / 2, 1.0).squeeze(1)


def compare(found: Step, expected64: Step, baseline: Step) -> str:
    """The figures of each part of a step held to the rule. Raises ParityError, which names the part.

    Tensors of a part are held to it as one, each by its largest value: among a vector's few, largest errors are luck.
    """
    figures = []
    for name, exact in expected64.items():
        scales = [t.abs().max().item() or 1.0 for t in exact]
        try:
            ours, right, own = (_as_one(tensors, scales) for tensors in (found[name], exact, baseline[name]))
            parity = check(ours, right, own)
        except ParityError as error:
            raise ParityError(f"{name}: {error}") from error
        figures.append(f"{name}: {parity}")
    return "; ".join(figures)


def _step(block: TrainBlock, x: Tensor, out: Tensor, statistics: list[Tensor], gradient: Tensor) -> Step:
    parameters = [t for layer in block.layers() for t in (layer.weight, layer.gamma, layer.beta) if t is not None]
    dx, *rest = torch.autograd.grad(out, [x, *parameters], gradient)
    return {
        "output": [out.detach()],
        "statistics": statistics,
        "dx": [dx],
        "dw": [t for t in rest if t.dim() == 4],
        "dgamma and dbeta": [t for t in rest if t.dim() == 1],
    }


def _as_one(tensors: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
    """In units of powers of two, which round nothing."""
    return torch.cat([(t * 2.0 ** -math.frexp(scale)[1]).flatten() for t, scale in zip(tensors, scales, strict=True)])


def _leaf(t: Tensor) -> Tensor:
    return t.detach().clone().requires_grad_()


def _map(change: Callable[[Tensor], Tensor], block: TrainBlock) -> TrainBlock:
    def of(layer: ConvBN) -> ConvBN:
        return ConvBN._make(change(v) if isinstance(v, Tensor) else v for v in layer)

    shortcut = None if block.shortcut is None else of(block.shortcut)
    return block._replace(branch=tuple(map(of, block.branch)), shortcut=shortcut)
