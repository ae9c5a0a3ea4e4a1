"""`optimize(model)`: the fast equivalent of a built ResNet, sharing its parameters."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .backends import registry
from .models import families, resnet
from .pixels import pixels_of

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class OptimizationReport:
    """What `optimize` did, by names of modules, "" for the model itself.

    `converted`: modules that fuse. `left`: modules that stay as they are, with the reason. `limits`: modules and
    convolutions inside converted ones that do not fuse, or not in every mode, with the reason.
    """

    converted: tuple[str, ...]
    left: families.Reasons
    limits: families.Reasons = ()

    def __str__(self) -> str:
        names = ", ".join(name or "(root)" for name in self.converted)
        lines = [f"converted {_count(self.converted)}: {names}" if names else "converted no module"]
        lines += [f"left {name or '(root)'}: {reason}" for name, reason in self.left]
        lines += [f"limited {name or '(root)'}: {reason}" for name, reason in self.limits]
        return "\n".join(lines)

    __repr__ = __str__


def _count(names: Sequence[Any]) -> str:
    return f"{len(names)} module" + ("s" if len(names) != 1 else "")


class _SharedTensors(TorchFunctionMode):
    """Within it, copies of modules hold the very tensors that the originals hold, a computed weight included."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return args[0] if func is Tensor.__deepcopy__ else func(*args, **(kwargs or {}))


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

    Converts residual blocks and the ResNets around them, wherever they are in `model`: those of torchvision, timm and
    transformers, the bodies of torchvision's detection and segmentation models, timm's feature extractors and the
    encoders of segmentation-models-pytorch. Everything else stays. Training either model trains both.

    The result's `fastres_report` says which modules were converted, which were left, what does not fuse inside those
    that were converted, and why. It judges modules by what they are, not by their mode. A warning names what was left.

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
        with _SharedTensors():
            model = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    plan = _plan(model, image=input == "uint8")
    takers = [
        m for m in model.modules() if getattr(plan.get(id(m), families.Verdict()).fast or m, "takes_image", False)
    ]
    if input == "uint8" and len(takers) != 1:
        raise ValueError(f"input: 'uint8' is for a model with one ResNet that takes the image, got {len(takers)}")
    channels = next((m.in_channels for taker in takers for m in taker.modules() if isinstance(m, nn.Conv2d)), 3)
    pixels = pixels_of(input, mean, std, channels)
    converted, left, limits = [], [], []
    for name, module in model.named_modules():
        verdict = plan.get(id(module), families.Verdict())
        if verdict.fast is not None:
            module.__class__ = verdict.fast
            converted.append(name)
        elif verdict.why:
            left.append((name, verdict.why))
        limits += [(".".join(filter(None, (name, part))), why) for part, why in verdict.limits]
    for module in model.modules():
        if isinstance(module, resnet.Carrier):
            module.backend_name = backend or ""
            if pixels is not None and module.takes_image:
                module.pixels = pixels
    report = OptimizationReport(tuple(converted), tuple(left), tuple(limits))
    model.__dict__["fastres_report"] = report
    if left:
        names = ", ".join(name or "(root)" for name, _ in left[:3]) + (", ..." if len(left) > 3 else "")
        warnings.warn(f"fastres.optimize left {_count(left)} as they are: {names}: {left[0][1]}", stacklevel=2)
    elif unfused := [limit for limit in limits if not limit[1].endswith(families.NOT_IN_TRAINING)]:
        names = ", ".join(name for name, _ in unfused[:3]) + (", ..." if len(unfused) > 3 else "")
        warnings.warn(f"fastres.optimize converted all but {names}: {unfused[0][1]}", stacklevel=2)
    elif not any(isinstance(module, resnet.Carrier) for module in model.modules()):
        warnings.warn(f"fastres.optimize found no ResNet block in this {type(model).__name__}", stacklevel=2)
    return model


def _plan(model: nn.Module, image: bool) -> dict[int, families.Verdict]:
    """By id of module, what becomes of it; `image`: of those that take the image whether or not they fuse."""
    known = families.counterparts()
    plan: dict[int, families.Verdict] = {}
    for module in reversed(list(model.modules())):  # children first: what a network is depends on its blocks
        if isinstance(module, resnet.Carrier):
            continue
        if type(module) is nn.Sequential:
            kinds = [plan.get(id(child), families.Verdict()) for child in module]
            ours = [families.is_block(v.fast or type(m)) for v, m in zip(kinds, module, strict=True)]
            if any(ours) and all(is_ours or v.why for is_ours, v in zip(ours, kinds, strict=True)):
                plan[id(module)] = families.Verdict(resnet.Stage)
            continue
        verdict = families.judge(module, known)
        if verdict.fast is None or families.is_block(verdict.fast):
            plan[id(module)] = verdict
            continue
        inside = [(plan.get(id(m), families.Verdict()), m) for m in module.modules() if m is not module]
        blocks = any(families.is_block(v.fast or type(m)) for v, m in inside)
        why = next((v.why for v, _ in inside if v.why), "")
        if isinstance(module, nn.ModuleDict) and not blocks and not why:
            continue  # a feature extractor of another family
        if not blocks and not verdict.fuses and not (image and getattr(verdict.fast, "takes_image", False)):
            why = why or next((why for _, why in verdict.limits), "")
            verdict = families.Verdict(why=f"nothing in it can fuse{why and ': '}{why}")
        plan[id(module)] = verdict
        for name, child in _unknown_blocks(module, plan):
            plan[id(child)] = families.Verdict(why=f"{name} is not a block that fastres knows")
    return plan


def _unknown_blocks(network: nn.Module, plan: dict[int, families.Verdict]) -> list[tuple[str, nn.Module]]:
    """The modules in a network's stages that are in no list yet."""
    stages = [getattr(network, f"layer{n}", None) for n in (1, 2, 3, 4)]
    blocks = [block for stage in stages if isinstance(stage, nn.Sequential) for block in stage]
    mine = [
        b for b in blocks if isinstance(b, resnet.Carrier) or plan.get(id(b), families.Verdict()) != families.Verdict()
    ]
    return [(type(b).__name__, b) for b in blocks if b not in mine]
