"""What a run trains, and the paper's settings as defaults (sections 3.4 and 4.2)."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from torch import nn

from ..models import cifar, plain, resnet
from .errors import SettingError

DATA = ("digits", "cifar10", "cifar100", "imagefolder")
_WARM_UP = 400  # iterations at a tenth of the rate: "until the training error is below 80 % (about 400 iterations)"
_SMALL_MODEL = re.compile(r"(resnet|plainnet)([0-9]+)")


@dataclass(frozen=True)
class Recipe:
    """All that decides a run's numbers; a checkpoint holds one.

    The optimizer is SGD with momentum. The learning rate is `lr`, a tenth of it during the first `warmup` iterations,
    and divided by ten at each of `milestones`, fractions of the run's iterations.
    """

    data: str = "digits"
    path: str = ""
    model: str = "resnet20"
    epochs: int = 164
    batch: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    milestones: tuple[float, ...] = (0.5, 0.75)
    warmup: int = 0
    seed: int = 0
    amp: str = ""
    sync_bn: bool = False

    def rate(self, iteration: int, total: int) -> float:
        """The learning rate of iteration `iteration` (from 0) of `total`."""
        if iteration < self.warmup:
            return self.lr / 10
        return self.lr / 10 ** sum(iteration >= round(fraction * total) for fraction in self.milestones)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "milestones": list(self.milestones)}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Recipe:
        """The inverse of `to_dict`. Raises KeyError, TypeError or SettingError for what is not from there."""
        values = {field.name: values[field.name] for field in fields(Recipe)}
        made = Recipe(**{**values, "milestones": tuple(values["milestones"])})
        for field in fields(Recipe):
            value, kind = getattr(made, field.name), type(field.default)
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise TypeError(f"{field.name}: expected {kind.__name__}, got {type(value).__name__}")
        if not all(isinstance(fraction, int | float) for fraction in made.milestones):
            raise TypeError("milestones: expected numbers")
        _check_data(made.data)
        check_model(made.model, made.data)
        _check_values(made)
        return made


def recipe(data: str = "digits", model: str | None = None, **given: Any) -> Recipe:
    """The paper's recipe for `model` on `data`, with what is `given` and not None in place of its defaults.

    CIFAR: 64,000 iterations of 128 images, the rate divided by ten after 32,000 and 48,000. ImageNet's scale: batch 256
    for 120 epochs (600,000 iterations); the paper divides "when the error plateaus", here every quarter. Digits, which
    the paper has not, take CIFAR's with 40 epochs of batches of 64. 110 layers and more warm up.

    Raises SettingError for an unknown data set, model or value.
    """
    _check_data(data)
    model = model or ("resnet50" if data == "imagefolder" else "resnet20")
    check_model(model, data)
    small = _SMALL_MODEL.fullmatch(model)
    base = Recipe(data=data, model=model)
    if data == "digits":
        base = replace(base, epochs=40, batch=64)
    elif data == "imagefolder":
        base = replace(base, epochs=120, batch=256, milestones=(0.25, 0.5, 0.75))
    if data != "imagefolder" and small and int(small[2]) >= 110:
        base = replace(base, warmup=_WARM_UP if data != "digits" else _WARM_UP // 10)
    made = replace(base, **{name: value for name, value in given.items() if value is not None})
    _check_values(made)
    return made


def _check_data(data: str) -> None:
    if data not in DATA:
        raise SettingError(f"data: expected one of {', '.join(DATA)}, got {data!r}")


def _check_values(made: Recipe) -> None:
    for name in ("epochs", "batch"):
        if getattr(made, name) < 1:
            raise SettingError(f"{name}: expected at least 1, got {getattr(made, name)}")
    if made.batch < 2:
        raise SettingError(f"batch: expected at least 2, as BatchNorm needs, got {made.batch}")
    for name in ("lr", "momentum", "weight_decay"):
        value = getattr(made, name)
        if not 0 <= value < float("inf"):
            raise SettingError(f"{name}: expected a number of at least 0, got {value}")
    if made.amp not in ("", "bfloat16", "float16"):
        raise SettingError(f"amp: expected bfloat16 or float16, got {made.amp!r}")


def _large_models() -> dict[str, Any]:
    return {**resnet.BY_NAME, "plainnet18": plain.PlainNet18, "plainnet34": plain.PlainNet34}


def check_model(name: str, data: str) -> None:
    """Raises SettingError unless `name` is a network for images such as those of `data`."""
    if data == "imagefolder":
        if name not in _large_models():
            raise SettingError(f"model: expected one of {', '.join(_large_models())} for {data}, got {name!r}")
        return
    found = _SMALL_MODEL.fullmatch(name)
    if not found or int(found[2]) < 8 or int(found[2]) % 6 != 2:
        kinds = "resnetD or plainnetD with D = 6n+2 layers (20, 32, 44, 56, 110, 1202)"
        raise SettingError(f"model: expected {kinds} for {data}, got {name!r}")


def build(made: Recipe, classes: int, channels: int) -> nn.Module:
    """The recipe's network, initialised as the paper does (He et al. 2015), for `classes` and images of `channels`."""
    if made.data == "imagefolder":
        return _large_models()[made.model](num_classes=classes)
    kind, depth = _SMALL_MODEL.fullmatch(made.model).groups()  # type: ignore[union-attr]
    network = cifar.PlainNet if kind == "plainnet" else cifar.ResNet
    return network(int(depth), classes, in_channels=channels)
