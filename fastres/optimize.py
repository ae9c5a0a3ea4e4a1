"""`optimize(model)`: the fast equivalent of a built torchvision or timm model, sharing its parameters."""

from __future__ import annotations

import copy
import sys
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn
from torchvision.models import resnet as tv
from torchvision.models._utils import IntermediateLayerGetter

from . import fused
from .backends import registry
from .models import resnet
from .pixels import pixels_of

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class OptimizationReport:
    """What `optimize` did: names of the modules converted, and of those left as they are, with the reason."""

    converted: tuple[str, ...]
    left: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        lines = [f"converted {len(self.converted)} modules: {', '.join(name or '(root)' for name in self.converted)}"]
        lines += [f"left {name or '(root)'}: {reason}" for name, reason in self.left]
        return "\n".join(lines)


class LayerGetter(IntermediateLayerGetter, resnet.Carrier):
    """torchvision's IntermediateLayerGetter, the body of its detection and segmentation models, with a fused stem."""

    plain_class = IntermediateLayerGetter
    takes_image = True

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        out: OrderedDict[str, Tensor] = OrderedDict()
        layers = list(self.items())
        first = [name for name, _ in layers[:4]]
        if first == ["conv1", "bn1", "relu", "maxpool"] and not {*first[:3]} & {*self.return_layers}:
            fused.check_input(x, self.conv1, self.pixels)
            stem = self.conv1, self.bn1, self.relu, self.maxpool
            x = fused.stem(x, *stem, pixels=self.pixels, backend=self.backend_name)
            if "maxpool" in self.return_layers:
                out[self.return_layers["maxpool"]] = x
            layers = layers[4:]
        else:
            x = fused.normalize(x, layers[0][1], self.pixels)
        for name, module in layers:
            x = module(x)
            if name in self.return_layers:
                out[self.return_layers[name]] = x
        return out


def optimize(
    model: M,
    *,
    backend: str | None = None,
    input: str = "float",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    inplace: bool = False,
) -> M:
    """The fast equivalent of `model`, sharing its parameters and buffers.

    Residual blocks of torchvision and timm, the ResNets around them, and the ResNet bodies of torchvision's detection
    and segmentation models become fastres's, wherever they are in `model`; whatever else there is stays. Training
    either model trains both. What was left, and why, is in `fastres_report` of the result, and a warning says so.

    Args:
        model: any built nn.Module. Its mode, hooks and state dict are kept.
        backend: backend that the result asks for, as in `fastres.ResNet50(backend=...)`.
        input: "uint8" for a result that takes images of 8-bit pixels and normalises them by `mean` and `std`, as in
            `fastres.ResNet50(input=...)`; "float" for one that takes what `model` does.
        mean: as there.
        std: as there.
        inplace: convert `model` itself rather than a copy of its modules.

    Raises:
        TypeError: if `model` is not an nn.Module.
        ValueError: for an unknown backend, a wrong `input`, `mean` or `std`, or `input="uint8"` where not exactly one
            ResNet in `model` would take the image.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    registry.check_name(backend)
    if not inplace:
        shared = [*model.parameters(), *model.buffers()]
        model = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    takers = [m for m in model.modules() if getattr(_counterpart(m)[0] or type(m), "takes_image", False)]
    if input == "uint8" and len(takers) != 1:
        raise ValueError(f"input: 'uint8' is for a model with one ResNet that takes the image, got {len(takers)}")
    channels = next((m.in_channels for taker in takers for m in taker.modules() if isinstance(m, nn.Conv2d)), 3)
    pixels = pixels_of(input, mean, std, channels)
    converted, left = [], []
    for name, module in reversed(list(model.named_modules())):  # children first: a Stage is a Sequential of our blocks
        target, reason = _counterpart(module)
        if target is not None:
            module.__class__ = target
            converted.append(name)
        elif reason:
            left.append((name, reason))
    for module in model.modules():
        if isinstance(module, resnet.Carrier):
            module.backend_name = backend or ""
            if pixels is not None and module.takes_image:
                module.pixels = pixels
    report = OptimizationReport(tuple(reversed(converted)), tuple(reversed(left)))
    model.__dict__["fastres_report"] = report
    if left:
        names = ", ".join(name or "(root)" for name, _ in report.left[:3]) + (", ..." if len(left) > 3 else "")
        warnings.warn(
            f"fastres.optimize left {len(left)} modules as they are: {names}: {report.left[0][1]}", stacklevel=2
        )
    elif not any(isinstance(module, resnet.Carrier) for module in model.modules()):
        warnings.warn(f"fastres.optimize found no ResNet block in this {type(model).__name__}", stacklevel=2)
    return model


def _counterpart(module: nn.Module) -> tuple[type[nn.Module] | None, str]:
    """(fast class, ""), (None, why it is left), or (None, "") where `module` is no concern of ours."""
    if isinstance(module, resnet.Carrier):
        return None, ""
    if type(module) is nn.Sequential:
        all_ours = len(module) > 0 and all(hasattr(child, "residual_parts") for child in module)
        return (resnet.Stage, "") if all_ours else (None, "")
    counterparts: dict[type[nn.Module], type] = {
        tv.BasicBlock: resnet.BasicBlock,
        tv.Bottleneck: resnet.Bottleneck,
        tv.ResNet: resnet.ResNet,
        IntermediateLayerGetter: LayerGetter,
    }
    reason: str | None = None
    if "timm.models.resnet" in sys.modules:  # otherwise no module of timm's can be here
        from .models import timm_blocks

        blocks: dict[type[nn.Module], type] = {
            timm_blocks.timm.BasicBlock: timm_blocks.BasicBlock,
            timm_blocks.timm.Bottleneck: timm_blocks.Bottleneck,
        }
        counterparts |= {**blocks, timm_blocks.timm.ResNet: timm_blocks.ResNet}
        if type(module) in blocks:
            reason = timm_blocks.extras(module)
    if type(module) in counterparts and reason is None:
        return counterparts[type(module)], ""
    for kind in counterparts:
        if isinstance(module, kind):
            return None, reason or f"{type(module).__name__} is a subclass of {kind.__module__}.{kind.__name__}"
    return None, ""
