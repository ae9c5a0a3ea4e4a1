"""What a forward moves under each plan: the steps of a ResNet, their passes over memory, and what a fusion is worth.

A step is what fastres runs as one operator: the stem with its pooling, a convolution with what follows it, the end of
a projection block with both of its convolutions, the head. A plan says what is fused; under it a step is one or more
passes, each a kernel that reads its operands from memory once and writes its result once:

    unfused      convolution, BatchNorm, addition, ReLU, pooling and product, each a pass of its own
    bias-relu    BatchNorm folded into the weights; bias, and ReLU where it follows at once, in the epilogue
    residual     the shortcut added, and ReLU applied, in the epilogue
    projection   a projection block's end and its shortcut as one product over both inputs
    stem         the stem's max pool in the same kernel: the convolution's output is never written
    head         global average pooling in the classifier's kernel

Each includes the ones before it, so the difference of two neighbours is what one fusion saves. Two bounds go further
than any plan here: `block`, a residual block as one kernel, and `model`, which moves the images, the weights and the
result. Vectors of a channel (bias, BatchNorm's) and the flops of elementwise passes are left out: below 1 % of either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch

from ..block import STEM_POOL, pooled
from .roofline import Ceilings, Cost, Layer, layers

UNFUSED = "unfused"
FUSIONS = {
    "bias-relu": "BatchNorm, bias and ReLU in the epilogue",
    "residual": "the shortcut added in the epilogue",
    "projection": "a projection block's end as one product",
    "stem": "the stem with its max pool",
    "head": "global pooling with the classifier",
}
PLANS = (UNFUSED, *FUSIONS)
BOUNDS = ("block", "model")
CONV, PROJECTION, STEM, HEAD = "conv", "projection", "stem", "head"


@dataclass(frozen=True)
class Pass:
    """One kernel: what it does, and what it costs."""

    name: str
    cost: Cost


@dataclass(frozen=True)
class Step:
    """One operator of the model: its kind, its layers (a projection's shortcut second), input and output shape.

    `owned` says that the shortcut's memory may be overwritten: nobody but the block holds it.
    """

    kind: str
    layers: tuple[Layer, ...]
    x: tuple[int, ...]
    out: tuple[int, ...]
    owned: bool = True

    @property
    def name(self) -> str:
        """Its layers' names in the model, and what pools."""
        first, *rest = (layer.name for layer in self.layers)
        if self.kind == STEM:
            return f"{first} + maxpool"
        if self.kind == HEAD:
            return f"avgpool + {first}"
        return " + ".join([first, *(name.rpartition(".downsample")[1].lstrip(".") for name in rest)])

    def problem(self) -> Step:
        """The step without names: steps of one problem cost the same."""
        return replace(self, layers=tuple(layer.problem() for layer in self.layers))

    def best(self, dtype: torch.dtype) -> Cost:
        """Everything fused: the flops, and the fewest bytes."""
        return total(self, dtype, PLANS[-1])


def steps(model: str, batch: int, size: int) -> list[Step]:
    """The steps of torchvision's `model` on [batch, 3, size, size], in order."""
    conv1, *body, fc = layers(model, batch, size)
    after = pooled(conv1.out[2:], STEM_POOL)
    found = [Step(STEM, (conv1,), conv1.x, (*conv1.out[:2], *after))]
    for layer in body:
        if "downsample" in layer.name:  # listed behind the convolution to whose output it is added
            end = found.pop()
            found.append(replace(end, kind=PROJECTION, layers=(*end.layers, layer), owned=True))
        else:
            # The first block's input is the stem's result, which is not the stage's to overwrite.
            ends_first = layer.residual and not any(step.layers[0].residual for step in found)
            found.append(Step(CONV, (layer,), layer.x, layer.out, not ends_first))
    return [*found, Step(HEAD, (fc,), found[-1].out, fc.out[:2])]


def passes(step: Step, dtype: torch.dtype, plan: str) -> list[Pass]:
    """The kernels that `step` takes under `plan`, in order. Raises ValueError for a name not in PLANS."""
    level = PLANS.index(plan)

    def fused(fusion: str) -> bool:
        return level >= PLANS.index(fusion)

    def made(name: str, elements: int, flops: int = 0) -> Pass:
        return Pass(name, Cost(flops, elements * dtype.itemsize))

    first, *rest = step.layers
    operands = sum(prod(layer.x) + prod(layer.weight) for layer in step.layers)
    flops = sum(layer.cost(dtype).flops for layer in step.layers)
    if step.kind == HEAD:
        result, pooled = prod(step.out), prod(first.x)
        if fused("head"):
            return [made("pool + product", prod(step.x) + prod(first.weight) + result, flops)]
        product = made("product", pooled + prod(first.weight) + result, flops)
        return [made("pool", prod(step.x) + pooled), product]
    if step.kind == STEM and fused("stem"):
        return [made("conv + pool", operands + prod(step.out), flops)]
    if step.kind == PROJECTION and fused("projection"):
        return [made("both convs", operands + prod(step.out), flops)]
    out = prod(first.out)
    found = []
    for layer in (*rest, first):  # the shortcut first
        adds = layer.residual and fused("residual")
        elements = prod(layer.x) + prod(layer.weight) + out * (1 + adds)
        found.append(made("conv + residual" if adds else "conv", elements, layer.cost(dtype).flops))
        if not fused("bias-relu"):
            found.append(made("batch norm", 2 * out))
    if first.residual and not fused("residual"):
        found.append(made("add", 3 * out))
    if first.relu and not fused("residual" if first.residual else "bias-relu"):
        found.append(made("relu", 2 * out))
    if step.kind == STEM:
        found.append(made("pool", out + prod(step.out)))
    return found


def total(step: Step, dtype: torch.dtype, plan: str) -> Cost:
    """What `step` costs under `plan`."""
    costs = [p.cost for p in passes(step, dtype, plan)]
    return Cost(sum(c.flops for c in costs), sum(c.bytes for c in costs))


def distinct_plans(step: Step) -> list[str]:
    """The plans under which `step` runs otherwise than under the plan before: UNFUSED, and the fusions it has."""
    found = {plan: passes(step, torch.float32, plan) for plan in PLANS}
    return [plan for i, plan in enumerate(PLANS) if i == 0 or found[plan] != found[PLANS[i - 1]]]


def costs(found: Sequence[Step], dtype: torch.dtype, plan: str) -> list[Cost]:
    """Of a whole model under `plan` or one of BOUNDS, a Cost for each kernel."""
    if plan not in BOUNDS:
        return [p.cost for step in found for p in passes(step, dtype, plan)]
    groups: dict[str, list[Step]] = {}
    for step in found:
        # layer1.0.conv2 belongs to block layer1.0; what is in no block stands alone
        block = step.layers[0].name.rpartition(".")[0] if plan == "block" else ""
        groups.setdefault(block or (step.kind if plan == "block" else ""), []).append(step)
    return [_one_kernel(group, dtype) for group in groups.values()]


def _one_kernel(group: Sequence[Step], dtype: torch.dtype) -> Cost:
    """Steps in one kernel: their input, weights and output, nothing in between."""
    weights = sum(prod(layer.weight) for step in group for layer in step.layers)
    flops = sum(step.best(dtype).flops for step in group)
    return Cost(flops, (prod(group[0].x) + weights + prod(group[-1].out)) * dtype.itemsize)


def summary(found: Sequence[Step], dtype: torch.dtype, ceilings: Ceilings) -> dict[str, dict[str, float]]:
    """By plan and bound: kernels, flops, bytes, and the least seconds on a device of these ceilings."""
    return {plan: _summary(costs(found, dtype, plan), ceilings) for plan in (*PLANS, *BOUNDS)}


def _summary(found: Sequence[Cost], ceilings: Ceilings) -> dict[str, float]:
    flops, bytes_ = sum(c.flops for c in found), sum(c.bytes for c in found)
    return {"kernels": len(found), "flops": flops, "bytes": bytes_, "seconds": ceilings.seconds(found)}
