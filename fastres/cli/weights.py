"""Weights as a command line names them: a member of torchvision's enums, or a checkpoint file."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import torch
from torch import Tensor
from torchvision.models import WeightsEnum

from .. import safe_load
from ..models.resnet import ResNet
from .arguments import models
from .errors import CommandError, UsageError

_WRAPPERS = ("state_dict", "model_state_dict", "model")  # where training scripts put the state dict in a checkpoint
_PREFIXES = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every name
_SHOWN = 3  # differences told of one checkpoint
_NAME = 200  # characters of a parameter's name


class Weights(NamedTuple):
    """The model that the weights are for, and where they are: an enum's member, or a file."""

    model: str
    member: WeightsEnum | None
    path: str

    def __str__(self) -> str:
        return self.path if self.member is None else str(self.member)

    def preset(self) -> WeightsEnum:
        """The member whose preprocessing and categories apply: for a file, the model's default."""
        return self.member or models()[self.model].weights_enum["DEFAULT"]


def resolve(text: str, model: str | None) -> Weights:
    """What `--weights text --model model` means; without a model, that of the enum named, or resnet50.

    Raises UsageError unless `text` is a member's name, with or without its enum's, or an existing file.
    """
    enum_name, _, member = text.rpartition(".")
    by_enum = {variant.weights_enum.__name__: name for name, variant in models().items()}
    if enum_name in by_enum:
        if model not in (None, by_enum[enum_name]):
            raise UsageError(f"argument --weights: {text!r} belongs to {by_enum[enum_name]}, but --model is {model}")
        model = by_enum[enum_name]
    model = model or "resnet50"
    enum = models()[model].weights_enum
    if enum_name in ("", enum.__name__) and member in enum.__members__:
        return Weights(model, enum[member], "")
    if os.path.isfile(text):
        return Weights(model, None, text)
    known = ", ".join(enum.__members__)
    what = "is a directory" if os.path.isdir(text) else "is not there"
    raise UsageError(f"argument --weights: {text!r} {what}; expected a checkpoint file, or for {model} one of {known}")


def load(weights: Weights, backend: str | None) -> ResNet:
    """The model with its weights, in evaluation mode on the CPU, its number of classes read from them.

    Raises CommandError for weights that cannot be fetched or read, or that do not fit the model.
    """
    state = _downloaded(weights.member) if weights.member else _read(weights.path)
    variant = models()[weights.model]
    with torch.device("meta"):  # no time spent on initial values that are replaced
        model: ResNet = variant(num_classes=_classes(state), backend=backend)
    if differences := _differences(model, state):
        told = "; ".join(differences[:_SHOWN])
        more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        fits = [name for name in models() if name != weights.model and _fits(name, state)]
        hint = f" (it fits --model {fits[0]})" if fits else ""
        raise CommandError(f"{weights} does not fit {weights.model}: {told}{more}{hint}")
    model.load_state_dict(dict(state), assign=True)  # a plain dict: one without version lets BatchNorm add its counter
    return model.eval()


def _downloaded(member: WeightsEnum) -> Mapping[str, Tensor]:
    cached = Path(torch.hub.get_dir()) / "checkpoints" / member.url.rpartition("/")[2]
    if cached.is_file():  # torchvision checks what it downloads, but not what became of it since
        try:
            return _read(str(cached))
        except CommandError as error:
            told = f"{error}; without this file, it is downloaded again"
            raise CommandError(f"cannot read {member}, downloaded from {member.url}: {told}") from error
    try:
        with redirect_stdout(sys.stderr):  # torch.hub tells of the download where our results go
            return member.get_state_dict(progress=True, check_hash=True, map_location="cpu", weights_only=True)
    except URLError as error:
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        raise CommandError(
            f"cannot download {member} from {member.url}: {error.reason}; give a checkpoint's path instead, "
            f"or put the file into {cache}"
        ) from error
    except OSError as error:
        raise CommandError(f"cannot keep {member}, downloaded from {member.url}: {error}") from error
    except Exception as error:  # a damaged file in the cache, or a wrong hash: torch.load raises nearly anything
        raise CommandError(f"cannot read {member}, downloaded from {member.url}: {_first_line(error)}") from error


def _read(path: str) -> Mapping[str, Tensor]:
    """The state dict in a checkpoint, unwrapped, without the prefixes of wrappers."""
    try:
        data: Any = safe_load.load(Path(path))
    except OSError as error:
        raise CommandError(f"cannot read {path!r}: {error.strerror or error}") from error
    except safe_load.UnreadableError as error:
        raise CommandError(f"{path!r} {error}") from error
    while isinstance(data, Mapping) and (key := next((k for k in _WRAPPERS if isinstance(data.get(k), Mapping)), None)):
        data = data[key]
    is_state = isinstance(data, Mapping) and data and all(isinstance(key, str) for key in data)
    if not is_state or not all(isinstance(value, Tensor) for value in data.values()):
        expected = f"a state dict, or one under {', '.join(map(repr, _WRAPPERS))}"
        raise CommandError(f"{path!r} holds {_described(data)}, expected {expected}")
    if longest := next((key for key in data if len(key) > _NAME), ""):
        raise CommandError(f"{path!r} has a name of {len(longest)} characters, expected at most {_NAME}")
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in data)), None):
        data = {key.removeprefix(prefix): value for key, value in data.items()}
    return data


def _described(data: Any) -> str:
    if isinstance(data, Mapping):
        keys = (repr(key[:_NAME]) if isinstance(key, str) else f"a {type(key).__name__}" for key in list(data)[:5])
        return f"a {type(data).__name__} with the keys {', '.join(keys) or '(none)'}"
    return f"a {type(data).__name__}"


def _classes(state: Mapping[str, Tensor]) -> int:
    weight = state.get("fc.weight")
    return len(weight) if weight is not None and weight.dim() == 2 else 1000


def _fits(name: str, state: Mapping[str, Tensor]) -> bool:
    with torch.device("meta"):
        return not _differences(models()[name](num_classes=_classes(state)), state)


def _differences(model: ResNet, state: Mapping[str, Tensor]) -> list[str]:
    """What keeps `state` from being loaded, in the model's order. Checkpoints of old lack `num_batches_tracked`."""
    expected = model.state_dict()
    found = []
    for name, tensor in expected.items():
        if name not in state:
            found += [] if name.endswith(".num_batches_tracked") else [f"{name} is missing"]
        elif state[name].shape != tensor.shape:
            found.append(f"{name} is {list(state[name].shape)}, expected {list(tensor.shape)}")
        elif state[name].is_floating_point() != tensor.is_floating_point():
            found.append(f"{name} is {state[name].dtype}, expected {tensor.dtype}")
        elif state[name].layout != torch.strided or state[name].is_quantized or state[name].device.type != "cpu":
            found.append(f"{name} is sparse, quantized or without values, expected a dense tensor")
    return found + [f"{name} is unexpected" for name in state if name not in expected]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".split("\n")[0]
