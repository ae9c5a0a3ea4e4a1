"""The classes of other packages that `fastres.optimize` knows, and what of their modules can fuse."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn
from torchvision.models import resnet as tv
from torchvision.models._utils import IntermediateLayerGetter

from .. import fused
from ..eligibility import pair_unsupported
from . import chain, resnet
from .torchvision_bodies import LayerGetter

NOT_IN_TRAINING = "it fuses in evaluation only"
Reasons = tuple[tuple[str, str], ...]  # (name, why), names relative to the module
# Blocks of timm's that are not convolution, BatchNorm, ReLU and a shortcut.
_OTHER_BLOCKS = {
    "timm.models.sknet": ("SelectiveKernelBasic", "SelectiveKernelBottleneck"),
    "timm.models.res2net": ("Bottle2neck",),
    "timm.models.resnest": ("ResNestBottleneck",),
    "timm.models.resnetv2": ("PreActBasic", "PreActBottleneck", "Bottleneck"),
    "timm.models.senet": ("SEBottleneck", "SEResNetBottleneck", "SEResNeXtBottleneck", "SEResNetBlock"),
}


class Verdict(NamedTuple):
    """What becomes of a module: `fast`, the class to convert it to, or None and why; `limits`, what does not fuse.

    `fuses`: whether some convolution of its own does.
    """

    fast: type[nn.Module] | None = None
    why: str = ""
    limits: Reasons = ()
    fuses: bool = True


def counterparts() -> dict[type[nn.Module], type[nn.Module]]:
    """The fast class of each class that has one, of the packages that are imported."""
    found: dict[Any, Any] = {
        tv.BasicBlock: resnet.BasicBlock,
        tv.Bottleneck: resnet.Bottleneck,
        tv.ResNet: resnet.ResNet,
        IntermediateLayerGetter: LayerGetter,
    }
    # A package that is not imported has no module here.
    if "timm.models.resnet" in sys.modules:
        from . import timm_blocks as t

        for kind in (t.BasicBlock, t.Bottleneck, t.ResNet, t.FeatureDictNet, t.FeatureListNet):
            found[kind.plain_class] = kind
    if "transformers.models.resnet.modeling_resnet" in sys.modules:
        from . import transformers_blocks as h

        for kind in (h.BasicBlock, h.Bottleneck, h.ResNetStage, h.ResNetEmbeddings):
            found[kind.plain_class] = kind
    if "segmentation_models_pytorch.encoders.resnet" in sys.modules:
        from . import smp_encoders

        found[smp_encoders.smp.ResNetEncoder] = smp_encoders.ResNetEncoder
    return found


def is_block(kind: type[nn.Module] | None) -> bool:
    """Whether a class of ours is a residual block."""
    return hasattr(kind, "residual_parts")


def judge(module: nn.Module, known: dict[type[nn.Module], type[nn.Module]]) -> Verdict:
    """What becomes of a module by itself, by what it is rather than by its mode."""
    kind = type(module)
    if kind.__name__ in _OTHER_BLOCKS.get(kind.__module__, ()):
        return Verdict(why=f"{kind.__name__} is not a plain residual block")
    fast = known.get(kind)
    if fast is None:
        base = next((base for base in known if isinstance(module, base)), None)
        subclass = "" if base is None else f"{kind.__name__} is a subclass of {base.__module__}.{base.__name__}"
        return Verdict(why=subclass)
    if why := _replaced(module, fast):
        return Verdict(why=why)
    if not is_block(fast):
        stem = _stem(module, fast)
        return Verdict(fast, limits=tuple(_limits(module, stem)), fuses=any(map(_fuses, stem)))
    if why := _extras(module, fast):
        return Verdict(why=why)
    parts = _parts(module, fast)
    if parts is None and any(fused.hooked(child) for child in module.modules() if child is not module):
        inside = [name for name, child in module.named_modules() if isinstance(child, nn.Conv2d)]
        return Verdict(fast, limits=tuple((name, "a hook is registered inside its block") for name in inside))
    if parts is None:
        return Verdict(why=f"{kind.__name__} holds other modules than its package builds")
    triples = list(_layers(parts))
    limits = list(_limits(module, triples))
    if not any(map(_fuses, triples)):
        return Verdict(why=limits[0][1])
    if why := _extras(module, fast, training=True):
        limits.insert(0, ("", f"{why}: {NOT_IN_TRAINING}"))
    return Verdict(fast, limits=tuple(limits))


Triple = tuple[Any, Any, Any]  # convolution, norm or None, activation or None


def _layers(parts: fused.ResidualParts) -> Iterator[Triple]:
    acts = parts.acts if len(parts.acts) > 1 else parts.acts * len(parts.branch)
    for (conv, bn), act in zip(parts.branch, acts, strict=True):
        yield conv, bn, act
    if parts.shortcut is not None:
        _, pair = fused.read_shortcut(parts.shortcut)
        if pair is not None:
            yield (*pair, acts[-1])
            return
        for module in parts.shortcut.modules():
            if isinstance(module, nn.Conv2d):
                yield module, None, None


def _limits(module: nn.Module, triples: list[Triple]) -> Iterator[tuple[str, str]]:
    """The convolutions that do not fuse, and why."""
    names = {id(child): name for name, child in module.named_modules()}
    for conv, bn, act in triples:
        if bn is None:
            why: str | None = "it is not followed by a norm and ReLU that it can fuse with"
        else:
            why = pair_unsupported(conv, bn, act)
        if why:
            inner = [m for m in conv.modules() if isinstance(m, nn.Conv2d)] or [conv]
            yield from ((names[id(m)], why) for m in inner)


def _fuses(triple: Triple) -> bool:
    """Whether it fuses, or would without its hooks: those may be removed."""
    conv, bn, act = triple
    return _hooked(triple) or (bn is not None and pair_unsupported(conv, bn, act) is None)


def _hooked(triple: Triple) -> bool:
    return any(module is not None and fused.hooked(module) for module in triple)


def _stem(module: Any, fast: Any) -> list[Triple]:
    if isinstance(module, tv.ResNet) and type(module) is tv.ResNet:
        return [(module.conv1, module.bn1, module.relu)]
    if hasattr(module, "embedder"):
        layer = module.embedder
        return [(layer.convolution, layer.normalization, layer.activation)]
    if isinstance(module, tv.ResNet):
        from .smp_encoders import _STAGES, encoder_layers

        encoder: Any = module
        return chain.triples(encoder_layers(module), {name: name for name in _STAGES[: encoder._depth]})
    if isinstance(module, nn.ModuleDict):
        extractor: Any = module
        return chain.triples(extractor.items(), extractor.return_layers)
    return chain.triples(fast._layers(module), {}) if hasattr(fast, "_layers") else []


def _parts(module: nn.Module, fast: Any) -> fused.ResidualParts | None:
    return fast.all_parts(module) if hasattr(fast, "all_parts") else fast.residual_parts(module)


def _extras(module: nn.Module, fast: type[nn.Module], training: bool = False) -> str | None:
    if not fast.__module__.endswith(".timm_blocks"):
        return None
    from . import timm_blocks

    return timm_blocks.training_extras(module) if training else timm_blocks.lasting_extras(module)


def _held(function: Any) -> set[nn.Module]:
    """The modules that a function or method refers to by itself or through the functions it is made of."""
    found: set[nn.Module] = set()
    seen: set[int] = set()
    todo = [function]
    while todo:
        value = todo.pop()
        if isinstance(value, nn.Module):
            found.add(value)
        elif callable(value) and id(value) not in seen:
            seen.add(id(value))
            todo += [getattr(value, "__self__", None), getattr(value, "func", None), *getattr(value, "args", ())]
            todo += [cell.cell_contents for cell in getattr(value, "__closure__", None) or () if _is_set(cell)]
            todo.append(getattr(value, "__func__", None))
    return found


def _is_set(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # the variable has no value yet
        return False


def _replaced(module: nn.Module, fast: type[nn.Module]) -> str | None:
    """Whether a method that the fast class has its own of was replaced on the instance or on its class."""
    overridden = {name for base in fast.__mro__ if base.__module__.startswith("fastres.") for name in base.__dict__}
    for name in ("forward", *sorted(overridden)):
        if name in module.__dict__ and callable(module.__dict__[name]):
            why = f"its {name} was replaced on this instance"
            elsewhere = _held(module.__dict__[name]) - {*module.modules()}
            return f"{why} and calls modules of another model; try inplace=True" if elsewhere else why
        owner = next((base for base in type(module).__mro__ if name in base.__dict__), None)
        method: Any = None if owner is None else owner.__dict__[name]
        if name.startswith("__") or owner is None or not hasattr(method, "__qualname__"):
            continue
        if (method.__module__, method.__qualname__) != (owner.__module__, f"{owner.__qualname__}.{name}"):
            return f"the {name} of class {owner.__name__} was replaced"
    return None
