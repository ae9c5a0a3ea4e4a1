"""What a model's convolutions cost at least, and how fast this device is at most: the roofline.

A convolution of weight [Cout, Cin/groups, R, S] and output [N, Cout, P, Q] takes 2 N Cout P Q (Cin/groups) R S flops
and moves its input, weight and output once, and the residual that its block adds to it. The classifier counts as a
1x1 convolution. (Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from .timing import timer_for, warm_up

SAMPLES = 5
COPY_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}
MATMUL_SIZE = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True)
class Cost:
    """A layer's floating-point operations (a multiply-add is two) and the fewest bytes that it moves."""

    name: str
    flops: int
    bytes: int


@dataclass(frozen=True)
class Ceilings:
    """The best rates seen on a device: matrix products in one dtype, and copies (bytes read plus bytes written)."""

    flops_per_second: float
    bytes_per_second: float

    def seconds(self, costs: Iterable[Cost]) -> float:
        """The least time for layers that run one after the other, each limited by arithmetic or by memory."""
        return sum(max(c.flops / self.flops_per_second, c.bytes / self.bytes_per_second) for c in costs)


def costs(model: str, batch: int, size: int, dtype: torch.dtype) -> list[Cost]:
    """The layers of torchvision's `model` on [batch, 3, size, size], in the order in which they run."""
    with torch.device("meta"):
        net = torchvision.models.get_model(model).eval()
        x = torch.empty(batch, 3, size, size)
    last = {f"{name}." * bool(name) + _last_conv(block) for name, block in net.named_modules() if _last_conv(block)}
    found: list[Cost] = []

    def listen(name: str, module: nn.Module) -> None:
        def hook(module: Any, inputs: tuple[Tensor], output: Tensor) -> None:
            found.append(layer_cost(name, inputs[0], module.weight, output, dtype, name in last))

        module.register_forward_hook(hook)

    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            listen(name, module)
    net(x)
    return found


def layer_cost(
    name: str, x: Tensor, weight: Tensor, output: Tensor, dtype: torch.dtype, residual: bool = False
) -> Cost:
    """The cost of a convolution or matrix product from its tensors, of which only the shapes matter."""
    flops = 2 * output.numel() * prod(weight.shape[1:])
    elements = x.numel() + weight.numel() + output.numel() * (2 if residual else 1)
    return Cost(name, flops, elements * dtype.itemsize)


def ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measures `device`: a copy far larger than its caches, and a square matrix product of `dtype`."""
    source = torch.empty(COPY_BYTES[device.type], dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    copy = _fastest(lambda: target.copy_(source), device)
    n = MATMUL_SIZE[device.type]
    a, b = (torch.rand(n, n, device=device).to(dtype) for _ in range(2))
    product = _fastest(lambda: a @ b, device)
    return Ceilings(2 * n**3 / product, 2 * source.numel() / copy)


def _fastest(function: Any, device: torch.device) -> float:
    timer = timer_for(device)
    with torch.inference_mode():
        calls = warm_up(function, timer, device)
        return min(timer(function, calls) for _ in range(SAMPLES))


def _last_conv(block: nn.Module) -> str:
    """The name of the convolution to whose output `block` adds its shortcut, or ''."""
    return {"Bottleneck": "conv3", "BasicBlock": "conv2"}.get(type(block).__name__, "")
