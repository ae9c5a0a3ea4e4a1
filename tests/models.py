"""Models for tests: torchvision's and ours with the same parameters, and BatchNorms that hide nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from frozen_norms import DetrFrozen
from torch import Tensor, nn
from torchvision.models import resnet as tv
from torchvision.ops import FrozenBatchNorm2d

import fastres

# Class of fastres and torchvision's function, which gives the lower-case alias its name.
VARIANTS: list[tuple[str, Callable[..., tv.ResNet]]] = [
    ("ResNet18", tv.resnet18),
    ("ResNet34", tv.resnet34),
    ("ResNet50", tv.resnet50),
    ("ResNet101", tv.resnet101),
    ("ResNet152", tv.resnet152),
    ("ResNeXt50_32x4d", tv.resnext50_32x4d),
    ("ResNeXt101_32x8d", tv.resnext101_32x8d),
    ("ResNeXt101_64x4d", tv.resnext101_64x4d),
    ("WideResNet50_2", tv.wide_resnet50_2),
    ("WideResNet101_2", tv.wide_resnet101_2),
]


def image(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A random image batch; (2, 3, 64, 64) by default."""
    return torch.randn(size or (2, 3, 64, 64)).to(dtype)


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every BatchNorm statistics and an affine map that a wrong fold cannot hide behind; returns `model`.

    Non-zero mean and beta, negative and zero gamma, some channels of tiny variance; activations keep their scale from
    first layer to last, as the statistics start from the model's own on random images.
    """
    generator = torch.Generator("cpu").manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator, device="cpu").mul(high - low).add(low).to(like)

    modes = {module: module.training for module in model.modules()}
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d | DetrFrozen)]
    with torch.no_grad():
        for conv in model.modules():
            if isinstance(conv, nn.Conv2d):
                faint = uniform(conv.weight[:, 0, 0, 0], 0, 1) < 0.05  # variance of about 1e-6, below eps
                conv.weight[faint] *= 1e-3
        last = {block.bn3 if hasattr(block, "bn3") else block.bn2 for block in model.modules() if _is_block(block)}
        for bn in norms:
            gamma = uniform(bn.weight, 0.5, 1.5) * (0.25 if bn in last else 1)
            kind = uniform(bn.weight, 0, 1)
            gamma[kind < 0.2] *= -1
            gamma[kind > 0.95] = 0
            bn.weight.copy_(gamma)
            bn.bias.copy_(uniform(bn.bias, -0.3, 0.3))
        _calibrate(model, [bn for bn in norms if isinstance(bn, nn.BatchNorm2d)], generator)
        for bn in norms:
            if bn.running_var is None:
                continue
            spread = bn.running_var.sqrt()
            bn.running_mean += spread * uniform(spread, -0.3, 0.3)
            bn.running_var *= uniform(spread, 0.5, 2)
    for module, training in modes.items():
        module.training = training
    return model


def _is_block(module: nn.Module) -> bool:
    return hasattr(module, "bn2") and hasattr(module, "downsample")


def _calibrate(model: nn.Module, norms: list[nn.BatchNorm2d], generator: torch.Generator) -> None:
    """Sets the running statistics to those of one random batch."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    norms = [bn for bn in norms if bn.track_running_stats]
    if first is None or not norms:
        return
    model.eval()
    momenta = [bn.momentum for bn in norms]
    for bn in norms:
        bn.train()
        bn.momentum = 1.0
    batch = torch.randn((4, first.in_channels, 64, 64), generator=generator, device="cpu")
    model(batch.to(first.weight))
    for bn, momentum in zip(norms, momenta, strict=True):
        bn.momentum = momentum


def pair(name: str = "ResNet18", *, seed: int = 0, **kwargs: Any) -> tuple[fastres.ResNet, tv.ResNet]:
    """(ours, torchvision's) of a variant, in evaluation mode, with equal randomised parameters of their own."""
    theirs = randomize(dict(VARIANTS)[name](**kwargs), seed).eval()
    ours = without_initialisation(getattr(fastres, name), **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return ours.eval(), theirs


def small_pair(seed: int = 0, **kwargs: Any) -> tuple[fastres.ResNet, tv.ResNet]:
    """(ours, torchvision's) of a narrow bottleneck network of five blocks.

    A thousand outputs, because the rule compares largest errors: among a few outputs those are luck.
    """
    kwargs = {"width_per_group": 16, **kwargs}
    theirs = randomize(tv.ResNet(tv.Bottleneck, [1, 2, 1, 1], **kwargs), seed).eval()
    ours = without_initialisation(fastres.ResNet, fastres.Bottleneck, [1, 2, 1, 1], **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return ours.eval(), theirs


def without_initialisation(build: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`build(...)` with memory that is not yet written: for models about to load a state dict."""
    device = torch.get_default_device()
    with torch.device("meta"):
        model = build(*args, **kwargs)
    return model.to_empty(device=device)
