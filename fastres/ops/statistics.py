"""Statistics of a training step: of several processes' batches as one, and operator `track`, the running ones' update.

Statistics are [C, 3]: count, mean, and m2, the sum of squared deviations from the mean.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from ..backends import cpu_steps
from .library import LIBRARY, implement


def merged(statistics: Tensor, group: str) -> Tensor:
    """The statistics of all processes of the group, merged in the order of their ranks (Chan, Golub, LeVeque 1979)."""
    parts = [torch.empty_like(statistics) for _ in range(dist.get_world_size(_group(group)))]
    dist.all_gather(parts, statistics.contiguous(), _group(group))
    count, mean, m2 = torch.stack(parts).unbind(2)
    total = count.sum(0)
    common = (count * mean).sum(0) / total
    return torch.stack([total, common, (m2 + count * (mean - common).square()).sum(0)], 1)


def summed(sums: Tensor, group: str) -> Tensor:
    """The sum over all processes of the group."""
    total = sums.clone()
    dist.all_reduce(total, group=_group(group))
    return total


def _group(name: str) -> dist.ProcessGroup:
    return dist.distributed_c10d._resolve_process_group(name)  # type: ignore[arg-type]


def _track(
    means: list[Tensor], variances: list[Tensor], counts: list[Tensor], statistics: list[Tensor], momenta: list[float]
) -> None:
    lists = means, variances, counts, statistics, momenta
    lengths = [len(values) for values in lists]
    if len(set(lengths)) > 1:
        raise ValueError(f"means .. momenta: expected lists of one length, got {lengths}")
    for mean, var, batch in zip(means, variances, statistics, strict=True):
        if mean.dim() != 1 or var.shape != mean.shape:
            raise ValueError(f"means, variances: expected [C] each, got {tuple(mean.shape)} and {tuple(var.shape)}")
        if batch.shape != (len(mean), 3):
            raise ValueError(f"statistics: expected {[len(mean), 3]}, got {list(batch.shape)}")
        if not mean.device == var.device == batch.device:
            devices = ", ".join(str(t.device) for t in (mean, var, batch))
            raise ValueError(f"means, variances, statistics: expected one device, got {devices}")
    for mean, var, count, batch, momentum in zip(*lists, strict=True):
        count.add_(1)
        weight = 1 / float(count) if math.isnan(momentum) else momentum
        if cpu_steps.track(mean, var, batch, weight):
            continue
        values, batch_mean, m2 = batch.unbind(1)
        mean.copy_(torch.lerp(mean.to(batch), batch_mean, weight))
        var.copy_(torch.lerp(var.to(batch), m2 / (values - 1), weight))


# A momentum of NaN stands for None: a mean over all batches with equal weights.
LIBRARY.define(
    "track(Tensor(a!)[] means, Tensor(b!)[] variances, Tensor(c!)[] num_batches_tracked, "
    "Tensor[] statistics, float[] momenta) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)
implement("track", _track, lambda *args: None)
