"""What the layer and block suites measure: one problem, several ways to compute it, and the oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from fastres import fused, optimize, selftest
from fastres.backends import registry
from fastres.measure.contenders import Forward
from fastres.measure.graph import captured
from fastres.measure.parity import pytorchs_own
from fastres.measure.roofline import Cost, Layer, layers

DISTINCT = 8  # images that differ: larger batches repeat them, so that the oracle's cost stays bounded
EAGER, FASTRES = "eager-channels-last", "fastres"


@dataclass(frozen=True)
class Problem:
    """How to make each contender's forward, the baseline first; the oracle's and PyTorch's results; what it costs."""

    builds: dict[str, Callable[[], Forward]]
    expected64: Tensor
    baseline: Tensor
    costs: list[Cost]
    train: bool = False  # the forward is forward and backward
    batch: int | None = None  # where it is not the length of `expected64`


def contenders(device: torch.device) -> list[str]:
    """PyTorch, fastres as it chooses, and on a GPU by name every backend that it has to choose from."""
    if device.type == "cpu":
        return [EAGER, FASTRES]
    x = torch.zeros(1, 64, 8, 8, device=device, dtype=torch.bfloat16)
    layer = selftest.layer(selftest.Convolution(1, 64, 8, 8, 64), torch.Generator())
    names = [name for name, why in registry.backends().items() if why is None and name != "reference"]
    return [EAGER, FASTRES, *(f"{FASTRES}:{n}" for n in names if registry.get(n).unsupported(x, layer) is None)]


def distinct_layers(model: str, batch: int) -> list[Layer]:
    """The convolutions of `model` at 224 pixels, one of each problem."""
    convolutions = [layer for layer in layers(model, batch, 224) if layer.name != "fc"]
    return list({layer.problem(): layer for layer in reversed(convolutions)}.values())[::-1]


def layer_problem(layer: Layer, dtype: torch.dtype, device: torch.device) -> Problem:
    """relu(bn(conv(x)) + residual) as `layer` has it."""
    cout, cin, r, _ = layer.weight
    torch.manual_seed(0)
    geometry = {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups}
    conv = nn.Conv2d(cin * layer.groups, cout, r, bias=False, **geometry)
    pair = nn.Sequential(conv, nn.BatchNorm2d(cout))
    residual = _batch(layer.out) if layer.residual else None

    def plain(pair: nn.Module, x: Tensor, residual: Tensor | None) -> Tensor:
        y = pair(x)
        if residual is not None:
            y += residual
        return F.relu(y, inplace=True) if layer.relu else y

    def ours(pair: Any, backend: str) -> Callable[..., Tensor]:
        if layer.relu:
            return lambda x, residual: fused.conv_bn_act(x, *pair, residual, backend=backend)
        return lambda x, residual: fused.conv_bn(x, *pair, backend=backend)

    return _problem(pair, [_batch(layer.x), residual], plain, ours, [layer.cost(dtype)], dtype, device)


def block_problem(model: str, name: str, batch: int, dtype: torch.dtype, device: torch.device) -> Problem:
    """The residual block called `name` of torchvision's `model`."""
    torch.manual_seed(0)
    block = torchvision.models.get_model(model).get_submodule(name)
    inside = [layer for layer in layers(model, batch, 224) if layer.name.startswith(f"{name}.")]

    def ours(block: nn.Module, backend: str) -> Callable[..., Tensor]:
        return optimize(block, backend=backend or None)

    costs = [layer.cost(dtype) for layer in inside]
    return _problem(block, [_batch(inside[0].x)], lambda block, x: block(x), ours, costs, dtype, device)


def _problem(
    module: nn.Module,
    inputs: list[Tensor | None],
    plain: Callable[..., Tensor],
    ours: Callable[[Any, str], Callable[..., Tensor]],
    costs: list[Cost],
    dtype: torch.dtype,
    device: torch.device,
) -> Problem:
    _randomise(module)
    module.eval().requires_grad_(False).to(dtype)
    batch = next(len(t) for t in inputs if t is not None)
    rounded = [None if t is None else t.to(dtype) for t in inputs]
    first = [None if t is None else t[:DISTINCT].double() for t in rounded]
    with torch.inference_mode():
        expected = plain(module.double(), *first).repeat(batch // DISTINCT + 1, 1, 1, 1)[:batch]
        module.to(device, dtype).to(memory_format=torch.channels_last)
        placed = [None if t is None else t.to(device).contiguous(memory_format=torch.channels_last) for t in rounded]
        with pytorchs_own():
            baseline = plain(module, *placed).cpu()

    def build(contender: str) -> Forward:
        backend = contender.partition(":")[2]
        run = partial(plain, module) if contender == EAGER else ours(module, backend)
        forward = partial(run, *placed)
        return forward if device.type == "cpu" else captured(forward, device)

    return Problem({name: partial(build, name) for name in contenders(device)}, expected, baseline, costs)


def _batch(shape: tuple[int, ...]) -> Tensor:
    """Like a block's input: half of it zeros, from the ReLU before."""
    distinct = torch.randn(min(shape[0], DISTINCT), *shape[1:]).relu_()
    return distinct.repeat(shape[0] // DISTINCT + 1, 1, 1, 1)[: shape[0]]


def _randomise(module: nn.Module) -> None:
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor, spread in ((norm.running_mean, 0.3), (norm.bias.data, 0.3), (norm.weight.data, 1.0)):
            tensor.normal_(0.0, spread)
        norm.running_var.uniform_(0.3, 1.3)
