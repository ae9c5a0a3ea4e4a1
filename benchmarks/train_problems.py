"""What the training suite measures beside whole steps: forward and backward of one layer, and of one block.

Parity is of the parameters' gradients, as one vector, each in units of its largest value in the oracle.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
import torchvision
from problems import EAGER, FASTRES, Problem
from torch import Tensor, nn

from fastres import fused, optimize
from fastres.backends import registry
from fastres.measure.contenders import Forward
from fastres.measure.roofline import Layer, layers


def contenders(device: torch.device) -> list[str]:
    """PyTorch, fastres as it chooses, and on a GPU every backend that trains there."""
    if device.type == "cpu":
        return [EAGER, FASTRES]
    names = [name for name, why in registry.backends().items() if why is None and not name.startswith("emulator")]
    ours = [name for name in names if name != "reference" and registry.get(name).steps() is not None]
    return [EAGER, FASTRES, *(f"{FASTRES}:{name}" for name in ours)]


class _Layer(nn.Module):
    """relu(bn(conv(x))), by PyTorch's modules or, with `backend`, as fastres trains it."""

    def __init__(self, layer: Layer, backend: str | None = None) -> None:
        super().__init__()
        cout, cin, r, _ = layer.weight
        geometry = {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups}
        self.conv = nn.Conv2d(cin * layer.groups, cout, r, bias=False, **geometry)
        self.bn, self.act, self.backend = nn.BatchNorm2d(cout), nn.ReLU(inplace=True), backend

    def forward(self, x: Tensor) -> Tensor:
        if self.backend is None:
            return self.act(self.bn(self.conv(x)))
        return fused.conv_bn_act(x, self.conv, self.bn, act=self.act, backend=self.backend)


def layer_problem(layer: Layer, dtype: torch.dtype, device: torch.device) -> Problem:
    """One convolution of `layers` with BatchNorm and ReLU."""
    torch.manual_seed(0)

    def ours(module: nn.Module, backend: str) -> nn.Module:
        copied = copy.deepcopy(module)
        copied.backend = backend
        return copied

    return _problem(_Layer(layer), layer.x, ours, [layer], dtype, device)


def block_problem(model: str, name: str, batch: int, dtype: torch.dtype, device: torch.device) -> Problem:
    """The residual block called `name` of torchvision's `model`."""
    torch.manual_seed(0)
    block = torchvision.models.get_model(model).get_submodule(name)
    inside = [layer for layer in layers(model, batch, 224) if layer.name.startswith(f"{name}.")]
    ours = lambda block, backend: optimize(copy.deepcopy(block), backend=backend or None)  # noqa: E731
    return _problem(block, inside[0].x, ours, inside, dtype, device)


def _problem(
    module: nn.Module,
    size: tuple[int, ...],
    ours: Callable[[nn.Module, str], nn.Module],
    inside: list[Layer],
    dtype: torch.dtype,
    device: torch.device,
) -> Problem:
    module.train()
    x = torch.randn(size).relu_()
    oracle = copy.deepcopy(module).double()
    found = _step(oracle, x.double(), torch.float64)()
    parts = found.split([p.numel() for p in module.parameters()])
    units = torch.cat([part.abs().max().expand(len(part)) for part in parts])

    def build(contender: str) -> Forward:
        placed = copy.deepcopy(module).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if contender != EAGER:
            placed = ours(placed, contender.partition(":")[2])
        step = _step(placed, x.to(device).contiguous(memory_format=torch.channels_last), dtype)
        return lambda: step() / units.to(device, torch.float32)

    # A backward has the operations and the traffic of two forwards.
    costs = [layer.cost(dtype) for layer in inside] * 3
    builds = {name: partial(build, name) for name in contenders(device)}
    return Problem(builds, found / units, build(EAGER)().cpu(), costs, train=True, batch=size[0])


def _step(module: nn.Module, x: Tensor, dtype: torch.dtype) -> Forward:
    """Forward and backward under autocast to `dtype`; the gradients of the parameters, as one vector."""
    x = x.requires_grad_()
    parameters = list(module.parameters())

    def run() -> Tensor:
        with torch.autocast(x.device.type, dtype, enabled=dtype in (torch.bfloat16, torch.float16)):
            y = module(x)
            loss = y.float().square().mean() if dtype != torch.float64 else y.square().mean()
        gradients = torch.autograd.grad(loss, [x, *parameters])
        return torch.cat([gradient.flatten() for gradient in gradients[1:]])

    return run
