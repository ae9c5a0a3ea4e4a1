"""`explain(model, x)`: which backend runs each convolution of a model, and why."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .backends.registry import PLAIN, notes, recording


@dataclass(frozen=True)
class LayerReport:
    """One convolution of one forward: its name in the model, its input's shape, who ran it and why. `kernel`: which of
    the backend's kernels, or "" where it has one or the choice is a library's."""

    name: str
    kind: str
    x_shape: tuple[int, ...]
    backend: str
    reason: str
    kernel: str = ""


@dataclass(frozen=True)
class Explanation:
    """What `explain` found, a `LayerReport` a convolution in the order in which they ran. Prints as a table,
    followed by what to know about the backends that ran."""

    layers: tuple[LayerReport, ...]

    def __str__(self) -> str:
        rows = [("layer", "convolution", "input", "runs on", "why")]
        for r in self.layers:
            ran = f"{r.backend} {r.kernel}".rstrip()
            rows.append((r.name, r.kind, "x".join(map(str, r.x_shape)), ran, r.reason))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = ["  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[4]]) for row in rows]
        used = {layer.backend for layer in self.layers}
        return "\n".join(lines + [f"{name}: {note}" for name, note in notes().items() if name in used and note])


def explain(model: nn.Module, x: Tensor) -> Explanation:
    """Runs `model(x)` once without gradients and reports, for each convolution, the backend that ran it and the reason.

    "plain" stands for PyTorch's own modules, unfused; the reason says what kept them from fusing. A model in training
    mode is run as a copy, so that its running statistics stay as they are.

    Raises whatever `model(x)` raises, and TypeError unless `model` is an nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if any(module.training for module in model.modules()):
        model = copy.deepcopy(model)
    convs = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    known = {address: conv for conv in convs for address in (id(conv[1]), conv[1].weight.data_ptr())}
    with torch.no_grad(), recording() as choices:
        model(x)
    layers = []
    ran = set()
    for choice in choices:
        name, module = known.get(choice.address, ("?", None))
        ran.add(module)
        where = name, _kind(module), choice.x_shape
        layers.append(LayerReport(*where, choice.backend, choice.reason, choice.kernel))
    why = "not part of a fastres block: see fastres.optimize"
    layers += [LayerReport(name, _kind(module), (), PLAIN, why) for name, module in convs if module not in ran]
    return Explanation(tuple(layers))


def _kind(conv: nn.Module | None) -> str:
    if not isinstance(conv, nn.Conv2d):
        return "?"
    kernel = "x".join(map(str, conv.kernel_size))
    extras = [f"/{conv.stride[0]}"] if conv.stride[0] != 1 else []
    extras += [f" groups {conv.groups}"] if conv.groups != 1 else []
    extras += [f" dilation {conv.dilation[0]}"] if conv.dilation[0] != 1 else []
    return f"{kernel}{''.join(extras)} {conv.in_channels}->{conv.out_channels}"
