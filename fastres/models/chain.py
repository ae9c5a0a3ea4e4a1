"""Runs a list of named layers, and collects the outputs that are wanted: stems and blocks fused, all else called.

Feature extractors hold a ResNet's layers without its forward: torchvision's IntermediateLayerGetter, timm's
`features_only`, the encoders of segmentation models.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from .. import fused
from ..eligibility import call_unsupported
from ..pixels import Pixels
from .resnet import blocks_of

Layer = tuple[Any, str | None]  # a module, and the name under which its output is wanted, or None


def run(
    x: Tensor,
    layers: Iterable[tuple[str, nn.Module]],
    wanted: Mapping[str, str],
    *,
    pixels: Pixels | None = None,
    backend: str = "",
) -> tuple[Tensor, OrderedDict[str, Tensor]]:
    """Runs `layers` in sequence.

    Args:
        x: [N, C, H, W]; images of 8-bit pixels if `pixels` is given.
        layers: the layers' names and modules.
        wanted: for each layer whose output is wanted, the name to return it under.
        pixels: mean and std of 8-bit pixels.
        backend: the backend that the model asks for, or "".

    Returns:
        The last layer's output, and the outputs that are wanted in the layers' order.
    """
    flat = list(_flatten(layers, wanted))
    out: OrderedDict[str, Tensor] = OrderedDict()
    if flat:
        fused.check_input(x, flat[0][0], pixels)
    at = 0
    while at < len(flat):
        count = _length(flat, at)
        x = _run_group([module for module, _ in flat[at : at + count]], x, pixels, backend)
        pixels = None  # normalised by the first
        at += count
        name = flat[at - 1][1]
        if name is not None:
            out[name] = x
    return x, out


def triples(layers: Iterable[tuple[str, nn.Module]], wanted: Mapping[str, str]) -> list[tuple[Any, Any, Any]]:
    """(convolution, norm, activation) of what `run` runs as one; (convolution, None, None) of one that it calls."""
    flat = list(_flatten(layers, wanted))
    found: list[tuple[Any, Any, Any]] = []
    at = 0
    while at < len(flat):
        count = _length(flat, at)
        first = flat[at][0]
        if count in (3, 4) and type(first) is nn.Conv2d:
            found.append((first, flat[at + 1][0], flat[at + 2][0]))
        elif isinstance(first, nn.Conv2d):
            found.append((first, None, None))
        at += count
    return found


def _flatten(layers: Iterable[tuple[str, nn.Module]], wanted: Mapping[str, str]) -> Iterator[Layer]:
    """The layers, with a stem's or stage's nn.Sequential as its own; an output is wanted of its last."""
    for name, module in layers:
        parts: list[Any] = list(module.children()) if _is_stem(module) else list(blocks_of(module))
        yield from ((part, None) for part in parts[:-1])
        yield (parts[-1] if parts else nn.Identity()), wanted.get(name)


def _is_stem(module: nn.Module) -> bool:
    """Whether it is an nn.Sequential that begins as a deep stem does, and may be read."""
    if not isinstance(module, nn.Sequential) or len(module) < 3 or fused.reason_unsupported(module, nn.Sequential):
        return False
    if call_unsupported(""):
        return False
    return type(module[0]) is nn.Conv2d and type(module[2]) is nn.ReLU


def _length(flat: list[Layer], at: int) -> int:
    """How many layers from `at` on may run as one: nothing is wanted of those before the last."""
    kinds = [type(module) for module, _ in flat[at : at + 4]]
    free = next((i for i, (_, name) in enumerate(flat[at:]) if name is not None), len(flat) - at - 1)
    if kinds[0] is nn.Conv2d and kinds[2:3] == [nn.ReLU] and free >= 2:
        return 4 if kinds[3:] == [nn.MaxPool2d] and free >= 3 else 3
    blocks = 0
    while blocks <= free and hasattr(flat[at + blocks][0], "residual_parts"):
        blocks += 1
    return max(blocks, 1)


def _run_group(group: list[Any], x: Tensor, pixels: Pixels | None, backend: str) -> Tensor:
    if len(group) == 4 and type(group[3]) is nn.MaxPool2d:
        return fused.stem(x, *group, pixels=pixels, backend=backend)
    if pixels is not None:
        x = fused.normalize(x, next(m for m in group[0].modules() if isinstance(m, nn.Conv2d)), pixels)
    if hasattr(group[0], "residual_parts"):
        return fused.stage(x, group, backend=backend)
    if len(group) == 3:
        return fused.conv_bn_act(x, group[0], group[1], act=group[2], backend=backend)
    return group[0](x)
