"""Many processes: what `torchrun` started, DistributedDataParallel's surroundings, and SyncBatchNorm on the CPU."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


@dataclass(frozen=True)
class World:
    """This process among those of the run. `control` is a group of CPU tensors for flags and counts."""

    rank: int = 0
    size: int = 1
    control: Any = None

    @property
    def shard(self) -> slice:
        """This process's part of a batch: every size-th image."""
        return slice(self.rank, None, self.size)

    def total(self, values: Tensor) -> Tensor:
        """The sum over processes of a CPU tensor."""
        if self.size > 1:
            dist.all_reduce(values, group=self.control)
        return values

    def agree(self, value: str) -> str:
        """Process 0's value, in every process."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, 0, group=self.control)
        return values[0]

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process; to be asked by all at the same iteration."""
        return flag if self.size == 1 else bool(self.total(torch.tensor(float(flag))))


def launched() -> bool:
    """Whether torchrun, or a launcher like it, started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def local_device(device: torch.device) -> torch.device:
    """For cuda without an index, this process's own GPU."""
    if str(device) != "cuda":
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


@contextmanager
def world(device: torch.device) -> Iterator[World]:
    """The processes that torchrun started, joined by NCCL for GPUs or gloo for CPUs; without it, this one alone."""
    if not launched():
        yield World()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        control = dist.new_group(backend="gloo") if device.type == "cuda" else dist.group.WORLD
        yield World(dist.get_rank(), dist.get_world_size(), control)
    finally:
        leave()


def leave() -> None:
    """Destroys the process group.

    gloo's thread may still hold a tensor of the last collective, and takes Python's lock to let go of it. If the group
    were destroyed before that, by a thread that has the lock, both would wait for ever: so the lock is let go of first.
    """
    time.sleep(0.1)
    dist.destroy_process_group()


def synchronize_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` with BatchNorms that take their statistics over the batches of all processes: torch's on a GPU."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = CPUSyncBatchNorm
    return model


class CPUSyncBatchNorm(nn.BatchNorm2d):
    """What `nn.SyncBatchNorm`, which refuses CPU tensors, does: in training, statistics over all processes' batches.

    Written in differentiable all-reduces, for tests and small machines. Attributes are BatchNorm2d's.
    """

    momentum: float

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized():
            return super().forward(input)
        count = torch.tensor(float(input.numel() // input.shape[1]))
        dist.all_reduce(count)
        mean = all_reduce(input.sum((0, 2, 3))) / count
        centred = input - mean[:, None, None]
        var = all_reduce(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            self.running_mean.lerp_(mean, self.momentum)  # type: ignore[union-attr]
            self.running_var.lerp_(var * count / (count - 1), self.momentum)  # type: ignore[union-attr]
        scale = self.weight / (var + self.eps).sqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]
