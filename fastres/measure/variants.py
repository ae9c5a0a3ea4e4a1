"""A step of a model made concrete: the same result computed under each plan of `traffic`, and by the library.

What a fusion is worth is told by one backend's own kernels with the fusion on and off. Off, its convolution runs
without that part of its epilogue, and PyTorch's elementwise operators do the rest in place, as they do in a model. The
library's call is backend `cudnn`'s on a GPU, and on a CPU PyTorch's convolution, BatchNorm, addition and ReLU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import selftest, tuning
from ..backends import registry
from ..backends.registry import AUTO, Backend
from ..block import STEM_POOL, ConvBN
from . import traffic
from .graph import captured
from .parity import pytorchs_own
from .roofline import Layer
from .traffic import HEAD, PROJECTION, STEM, UNFUSED, Step

LIBRARY = "library"
DISTINCT = 8  # images that differ: larger batches repeat them, so that the oracle's cost stays bounded

Call = Callable[[], Tensor]


@dataclass
class Operands:
    """What a step computes with. `x` is its input; a block's input is what a projection's shortcut reads."""

    x: Tensor
    layers: list[ConvBN]
    residual: Tensor | None = None
    block_input: Tensor | None = None
    weight: Tensor | None = None  # the classifier's, with its bias
    bias: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor], batch: Callable[[Tensor], Tensor]) -> Operands:
        """`change` of every tensor, of those with a batch dimension `batch` first."""

        def of(tensor: Tensor | None, batched: bool = False) -> Any:
            return None if tensor is None else change(batch(tensor) if batched else tensor)

        layers = [ConvBN._make(of(v) if isinstance(v, Tensor) else v for v in layer) for layer in self.layers]
        images = (of(tensor, True) for tensor in (self.x, self.residual, self.block_input))
        x, residual, block_input = images
        return Operands(x, layers, residual, block_input, of(self.weight), of(self.bias))


@dataclass
class Concrete:
    """A step on a device: a call for each plan under which it runs otherwise than before, and the library's.

    `composed` are the fusions that this backend makes of several calls of its own, so that on and off are the same; for
    them there is no call. `restore` undoes what calls wrote over their inputs.
    """

    calls: dict[str, Call]
    composed: list[str]
    restore: Callable[[], None]
    expected64: Tensor
    baseline: Tensor
    backend: str
    reason: str
    tiles: dict[str, list[str]]  # by call, of Triton's kernels

    @property
    def plan(self) -> str:
        """The plan under which the model runs the step: the last that has a call."""
        return [name for name in self.calls if name != LIBRARY][-1]


def concrete(step: Step, dtype: torch.dtype, device: torch.device, backend: str = "") -> Concrete:
    """Makes operands, oracle and calls. `backend` is a name, or "" for what fastres chooses.

    Raises BackendError where a backend asked for by name cannot run the step.
    """
    made = _operands(step, dtype)
    channels_last = partial(torch.Tensor.contiguous, memory_format=torch.channels_last)
    exact = made.map(torch.Tensor.double, lambda t: t[:DISTINCT])
    placed = made.map(
        lambda t: channels_last(t.to(device)) if t.dim() == 4 else t.to(device),
        lambda t: t.repeat(-(-step.x[0] // DISTINCT), 1, 1, 1)[: step.x[0]],
    )
    chosen, reason = _chosen(step, placed, backend)
    expected = _plain(step, exact)
    expected = expected.repeat(-(-step.x[0] // DISTINCT), *[1] * (expected.dim() - 1))[: step.x[0]]
    with pytorchs_own():
        baseline = _plain(step, placed).cpu()
    pristine = None if placed.residual is None else placed.residual.clone()

    def restore() -> None:
        if placed.residual is not None and pristine is not None:
            placed.residual.copy_(pristine)

    calls = {LIBRARY: _library(step, placed, device)}
    plans = traffic.distinct_plans(step)
    composed = []
    if chosen.keeps_parameters and step.kind != HEAD:  # it folds nothing, so there is nothing to switch on
        calls[UNFUSED], composed, plans = _call(step, placed, chosen, plans[-1]), plans[1:], []
    for plan in plans:
        call = _call(step, placed, chosen, plan)
        if plan in ("projection", "stem", "head") and _composes(step, chosen, call):
            composed.append(plan)
        else:
            calls[plan] = call
    restore()
    tiles = {name: _tiles(call) for name, call in calls.items()} if chosen.name == "triton" else {}
    restore()
    if device.type == "cuda":
        calls = {name: _on_gpu(call, device) for name, call in calls.items()}
    return Concrete(calls, composed, restore, expected, baseline, chosen.name, reason, tiles)


def _on_gpu(call: Call, device: torch.device) -> Call:
    """As a CUDA graph. One that cannot run says so when it is called, not before the others have."""
    try:
        return captured(call, device)
    except RuntimeError as error:
        return partial(_raise, error)


def _raise(error: RuntimeError) -> Tensor:
    raise error


def _tiles(call: Call) -> list[str]:
    """The tiles that Triton's kernels are launched with: of the table that was measured, or by the heuristic."""
    found: list[str] = []

    def note(problem: tuning.Problem, numbers: str, device: torch.device, run: tuning.Run) -> tuning.Tile:
        tile = tuning.known(problem, numbers, device)
        found.append(f"{problem.family} {tile.m}x{tile.n}x{tile.k}, {tile.warps} warps, {tile.stages} stages")
        return tile

    with tuning.asking(note):
        call()
    return found


def _operands(step: Step, dtype: torch.dtype) -> Operands:
    """At most DISTINCT images of each input, like a block's: half of it zeros, from the ReLU before. On the CPU."""
    generator = torch.Generator().manual_seed(0)

    def image(shape: tuple[int, ...]) -> Tensor:
        return torch.randn((min(shape[0], DISTINCT), *shape[1:]), generator=generator).relu_().to(dtype)

    first = step.layers[0]
    if step.kind == HEAD:
        classes, channels = first.weight[:2]
        weight = torch.randn((classes, channels), generator=generator) / channels**0.5
        bias = torch.randn(classes, generator=generator)
        return Operands(image(step.x), [], weight=weight.to(dtype), bias=bias.to(dtype))
    layers = [selftest.layer(_geometry(layer), generator) for layer in step.layers]
    layers = [ConvBN._make(v.to(dtype) if isinstance(v, Tensor) else v for v in layer) for layer in layers]
    residual = image(step.out) if first.residual and step.kind != PROJECTION else None
    block_input = image(step.layers[1].x) if step.kind == PROJECTION else None
    # BatchNorm does what a bias of the convolution would, and a ResNet has none
    return Operands(image(step.x), [layer._replace(bias=None) for layer in layers], residual, block_input)


def _geometry(layer: Layer) -> selftest.Convolution:
    (n, c, h, w), (k, _, r, _) = layer.x, layer.weight
    return selftest.Convolution(n, c, h, w, k, r, layer.stride, layer.padding, 1, layer.groups)


def _chosen(step: Step, operands: Operands, backend: str) -> tuple[Backend, str]:
    """Who runs the step, and why."""
    if step.kind == HEAD:
        name = registry.requested(backend)
        named = name != AUTO
        return registry.get(name if named else "reference"), "asked for by name" if named else "PyTorch's own operators"
    with registry.recording() as choices:
        found = [
            registry.resolve(x, layer, backend) for x, layer in zip(_inputs(operands), operands.layers, strict=True)
        ]
    return found[0], choices[0].reason


def _plain(step: Step, operands: Operands) -> Tensor:
    """PyTorch's own operators, as torchvision's modules call them."""
    if step.kind == HEAD:
        assert operands.weight is not None
        return F.linear(F.adaptive_avg_pool2d(operands.x, 1).flatten(1), operands.weight, operands.bias)
    first, *shortcut = operands.layers
    added = operands.residual
    if operands.block_input is not None:
        added = _norm(_conv(operands.block_input, shortcut[0]), shortcut[0])
    y = _after(_norm(_conv(operands.x, first), first), added, step.layers[0].relu)
    return F.max_pool2d(y, *STEM_POOL) if step.kind == STEM else y


def _library(step: Step, operands: Operands, device: torch.device) -> Call:
    if device.type == "cuda" and step.kind != HEAD:
        return _call(step, operands, registry.get("cudnn"), "residual")
    return partial(_plain, step, operands)


def _call(step: Step, operands: Operands, backend: Backend, plan: str) -> Call:
    """`step` on `backend` under `plan`."""
    level = traffic.PLANS.index(plan)
    x, residual, block_input = operands.x, operands.residual, operands.block_input
    if step.kind == HEAD:
        assert operands.weight is not None
        return (
            partial(_plain, step, operands)
            if plan == UNFUSED
            else partial(backend.head, x, operands.weight, operands.bias)
        )
    relu, adds = step.layers[0].relu, step.layers[0].residual
    if plan == UNFUSED:
        bare = [_without_norm(layer) for layer in operands.layers]
        weights = [backend.prepare(t, layer) for t, layer in zip(_inputs(operands), bare, strict=True)]
    else:
        weights = [backend.prepare(t, layer) for t, layer in zip(_inputs(operands), operands.layers, strict=True)]

    def conv(i: int, t: Tensor) -> Tensor:
        y = backend.conv(t, weights[i], False)
        return _norm(y, operands.layers[i]) if plan == UNFUSED else y

    def apart() -> Tensor:
        """The convolution, and all that its epilogue does not do under this plan."""
        if not adds and plan != UNFUSED:
            return backend.conv(x, weights[0], relu)
        added = residual if block_input is None else conv(1, block_input)
        return _after(conv(0, x), added, relu)

    def together() -> Tensor:
        shortcut = residual if block_input is None else backend.conv(block_input, weights[1], False)
        return backend.conv(x, weights[0], relu, shortcut, overwrite=step.owned)

    if step.kind == STEM:
        if level >= traffic.PLANS.index("stem"):
            return lambda: backend.stem(x, weights[0], *STEM_POOL)
        return lambda: F.max_pool2d(apart(), *STEM_POOL)
    if step.kind == PROJECTION and level >= traffic.PLANS.index("projection"):
        assert block_input is not None
        return lambda: backend.projection(x, weights[0], block_input, weights[1])
    return together if adds and level >= traffic.PLANS.index("residual") else apart


def _inputs(operands: Operands) -> list[Tensor]:
    return [operands.x] if operands.block_input is None else [operands.x, operands.block_input]


def _conv(x: Tensor, layer: ConvBN) -> Tensor:
    return F.conv2d(x, layer.weight, layer.bias, *layer.geometry)


def _norm(y: Tensor, layer: ConvBN) -> Tensor:
    return F.batch_norm(y, layer.mean, layer.var, layer.gamma, layer.beta, training=False, eps=layer.eps)


def _after(y: Tensor, added: Tensor | None, relu: bool) -> Tensor:
    if added is not None:
        y += added
    return y.relu_() if relu else y


def _without_norm(layer: ConvBN) -> ConvBN:
    """The layer with a BatchNorm that changes nothing."""
    zero, one = torch.zeros_like(layer.mean), torch.ones_like(layer.var)
    return layer._replace(gamma=None, beta=None, mean=zero, var=one, eps=0.0)


def _composes(step: Step, backend: Backend, call: Call) -> bool:
    """Whether `backend` makes the fused operator of several: it calls its own `conv`, or PyTorch's head."""
    if step.kind == HEAD:
        return type(backend).head is Backend.head
    with _spying(backend) as seen:
        call()
    return bool(seen)


@contextmanager
def _spying(backend: Backend) -> Iterator[list[str]]:
    """Notes calls of `backend.conv`, which a fused operator of a backend's own does not make."""
    seen: list[str] = []
    conv = backend.conv

    def spy(*args: Any, **kwargs: Any) -> Tensor:
        seen.append("conv")
        return conv(*args, **kwargs)

    backend.conv = spy  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        del backend.conv
