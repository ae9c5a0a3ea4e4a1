"""A training step of a workload: forward, cross-entropy and backward, without an optimizer.

Its output is what parity is checked of: the loss and, of each parameter's gradient, `PROBES` projections on random
vectors, in units of the gradient's own norm in the oracle. So every element counts, and a ResNet-50's hundred megabytes
become a few hundred numbers. Gradients of a batch that repeats its images are those of the images once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PROBES = 4


def targets(batch: int, distinct: int) -> Tensor:
    """[batch] class numbers, those of the `distinct` images over and over."""
    return (torch.arange(batch) % distinct * 97 + 5) % 1000


def step(model: nn.Module, forward: Callable[[], Tensor], target: Tensor) -> Callable[[], Tensor]:
    """A call that leaves new gradients in `model`'s parameters, from its `forward`'s logits, and returns the loss."""
    parameters = list(model.parameters())

    def run() -> Tensor:
        for parameter in parameters:
            parameter.grad = None
        loss = F.cross_entropy(forward().float() if target.is_cuda else forward(), target)
        loss.backward()
        return loss.detach()

    return run


def norms(model: nn.Module) -> list[float]:
    """Of the gradients that a step has left, one a parameter."""
    return [_gradient(p).norm().item() or 1.0 for p in model.parameters()]


def summary(loss: Tensor, model: nn.Module, scales: Sequence[float]) -> Tensor:
    """[1 + PROBES * parameters] on the CPU: the loss, and the projections of the gradients in units of `scales`."""
    found = [loss.double().cpu().view(1)]
    generator = torch.Generator().manual_seed(0)
    for parameter, scale in zip(model.parameters(), scales, strict=True):
        gradient = _gradient(parameter)
        probes = torch.randn((PROBES, gradient.numel()), generator=generator)
        found.append(probes.double() @ gradient / scale)
    return torch.cat(found).to(next(model.parameters()).dtype)


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad.detach().cpu().double().flatten()
