"""What a model's convolutions cost at least, and how fast this device is at most: the roofline.

A convolution of weight [Cout, Cin/groups, R, S] and output [N, Cout, P, Q] takes 2 N Cout P Q (Cin/groups) R S flops
and moves its input, weight and output once, and the residual that its block adds to it. The classifier counts as a
1x1 convolution. (Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from .timing import Call, timer_for, warm_up

SAMPLES = 5
COPY_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}
PRODUCT_SIZE = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True)
class Cost:
    """Floating-point operations (a multiply-add is two), and the fewest bytes moved."""

    flops: int
    bytes: int


@dataclass(frozen=True)
class Layer:
    """A convolution, or the classifier as a 1x1 convolution: its place in a model, and its problem.

    Shapes are [N, Cin, H, W], [Cout, Cin/groups, R, S] and [N, Cout, P, Q].
    """

    name: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    out: tuple[int, ...]
    stride: int = 1
    padding: int = 0
    groups: int = 1
    relu: bool = False
    residual: bool = False

    def problem(self) -> Layer:
        """The layer without its name: layers of one problem cost the same."""
        return replace(self, name="")

    def cost(self, dtype: torch.dtype) -> Cost:
        elements = prod(self.x) + prod(self.weight) + prod(self.out) * (1 + self.residual)
        return Cost(2 * prod(self.out) * prod(self.weight[1:]), elements * dtype.itemsize)


@dataclass(frozen=True)
class Ceilings:
    """The best rates seen on a device: matrix products in one dtype, and copies (bytes read plus bytes written)."""

    flops_per_second: float
    bytes_per_second: float

    def seconds(self, costs: Iterable[Cost]) -> float:
        """The least time for layers that run one after the other, each limited by arithmetic or by memory."""
        return sum(max(c.flops / self.flops_per_second, c.bytes / self.bytes_per_second) for c in costs)


def layers(model: str, batch: int, size: int) -> list[Layer]:
    """The layers of torchvision's `model` on [batch, 3, size, size], in the order in which they run."""
    with torch.device("meta"):
        net = torchvision.models.get_model(model).eval()
        x = torch.empty(batch, 3, size, size)
    last = {f"{name}.{_LAST_CONV[type(block)]}" for name, block in net.named_modules() if type(block) in _LAST_CONV}
    found: list[Layer] = []

    def listen(name: str, module: Any) -> None:
        def hook(module: Any, inputs: tuple[Tensor], output: Tensor) -> None:
            x, weight, out = (tuple(t.shape) for t in (inputs[0], module.weight, output))
            if isinstance(module, nn.Linear):
                found.append(Layer(name, (*x, 1, 1), (*weight, 1, 1), (*out, 1, 1)))
            else:
                geometry = module.stride[0], module.padding[0], module.groups
                found.append(Layer(name, x, weight, out, *geometry, "downsample" not in name, name in last))

        module.register_forward_hook(hook)

    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            listen(name, module)
    net(x)
    return found


# The convolution to whose output a block adds its shortcut.
_LAST_CONV: dict[type[nn.Module], str] = {BasicBlock: "conv2", Bottleneck: "conv3"}


def ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measures `device`: a copy far larger than its caches, and the faster of a large matrix product and the same as a
    1x1 convolution, which need not come from one library."""
    source = torch.ones(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = _fastest(lambda: target.copy_(source), device)
    n = PRODUCT_SIZE[device.type]
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    x = a.view(n // 256, 16, 16, n).permute(0, 3, 1, 2)  # in channels_last
    weight = b.view(n, n, 1, 1).contiguous(memory_format=torch.channels_last)
    product = min(_fastest(lambda: a @ b, device), _fastest(lambda: F.conv2d(x, weight), device))
    return Ceilings(2 * n**3 / product, 2 * source.numel() / copy)


def _fastest(function: Call, device: torch.device) -> float:
    timer = timer_for(device)
    with torch.inference_mode():
        calls = warm_up(function, timer, device)
        return min(timer(function, calls) for _ in range(SAMPLES))
