"""A block's training step from modules: reads them, calls operator `train_block`, updates running statistics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .backends import training
from .block import ConvBN, Norm, TrainBlock
from .fusing import read_training

Pair = tuple[nn.Module, nn.Module]


@dataclass(frozen=True)
class Step:
    """Modules that train as one operator: BatchNorms, their layers and norms, the projection's last."""

    batch_norms: tuple[Any, ...]
    layers: tuple[ConvBN, ...]
    norms: tuple[Norm, ...]
    projected: bool
    group: str  # over which synchronised statistics are, or ""
    backend: str

    def run(
        self,
        x: Tensor,
        other: Tensor | None = None,
        *,
        identity: bool = False,
        relu: bool = True,
        pool: tuple[int, int, int] = (0, 0, 0),
    ) -> Tensor:
        """[pool](act(branch(x) [+ shortcut])).

        The shortcut is the projection of, or where `identity` is set itself, `other` if given and x if not.
        """
        layers = tuple(map(_inputs, self.layers, self.norms))
        branch, projection = (layers[:-1], layers[-1]) if self.projected else (layers, None)
        block = TrainBlock(branch, projection, self.norms, identity, relu, pool)
        out, *kept = torch.ops.fastres.train_block.default(x, other, *block.flatten(), self.group, self.backend)
        if any(norm is not Norm.RUNNING for norm in self.norms):
            self._track(kept)
        return out

    def _track(self, kept: list[Tensor]) -> None:
        """Moves running means and variances towards the batch's, as BatchNorm does in its forward."""
        means, variances, counts, statistics, momenta = [], [], [], [], []
        at = 0
        for bn, layer, norm in zip(self.batch_norms, self.layers, self.norms, strict=True):
            at += 2
            if norm is Norm.RUNNING:
                continue
            assert layer.num_batches_tracked is not None
            means.append(layer.mean)
            variances.append(layer.var)
            counts.append(layer.num_batches_tracked)
            statistics.append(kept[at])
            momenta.append(-1.0 if bn.momentum is None else float(bn.momentum))
            at += 1
        torch.ops.fastres.track.default(means, variances, counts, statistics, momenta)


def read(
    x: Any,
    pairs: Sequence[Pair],
    acts: Iterable[nn.Module | None] = (),
    projection: Pair | None = None,
    backend: str = "",
) -> Step | str:
    """The pairs of convolution and BatchNorm, and a shortcut's, as one step on x; or why they must be called."""
    every = (*pairs, *(() if projection is None else (projection,)))
    layers = read_training(x, every, acts)
    if isinstance(layers, str):
        return layers
    if why := _obstacle(str(x.device), backend):
        return why
    batch_norms = tuple(bn for _, bn in every)
    norms, groups = zip(*map(_norm, batch_norms), strict=True)
    names = set(groups) - {""}
    if len(names) > 1:
        return "BatchNorms of one block synchronise over different process groups"
    return Step(batch_norms, tuple(layers), norms, projection is not None, next(iter(names), ""), backend)


def _inputs(layer: ConvBN, norm: Norm) -> ConvBN:
    """`layer` without what the operator has no use for: its inputs must not be what `track` writes to."""
    if norm is Norm.RUNNING:
        return layer._replace(num_batches_tracked=None)
    return layer._replace(mean=None, var=None, num_batches_tracked=None)  # type: ignore[arg-type]


@torch.compiler.assume_constant_result
def _obstacle(device: str, backend: str) -> str:
    return training.obstacle(torch.device(device), backend) or ""


def _norm(bn: Any) -> tuple[Norm, str]:
    """How a BatchNorm normalises, and the name of the process group over which, or ""."""
    if not bn.training or not isinstance(bn, nn.modules.batchnorm._BatchNorm):
        return Norm.RUNNING, ""
    if type(bn) is nn.SyncBatchNorm and dist.is_available() and dist.is_initialized():
        group: Any = bn.process_group or dist.group.WORLD
        if dist.get_world_size(group) > 1:
            return Norm.SYNCHRONISED, group.group_name
    return Norm.BATCH, ""
