"""Arguments that several commands take, as `type=` functions: argparse makes usage errors of what they raise."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..backends import registry
from ..models import resnet

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def models() -> Mapping[str, type[Any]]:
    """The classes of models that a command takes, by torchvision's lower-case names."""
    return resnet.BY_NAME


def model(text: str) -> str:
    """A model's name, in either of its spellings: resnet50, ResNet50."""
    for name, variant in models().items():
        if text in (name, variant.__name__):
            return name
    raise argparse.ArgumentTypeError(f"unknown model {text!r}, expected one of {', '.join(models())}")


def dtype(text: str) -> torch.dtype:
    """float32, bfloat16 or float16."""
    if text not in DTYPES:
        raise argparse.ArgumentTypeError(f"unknown dtype {text!r}, expected one of {', '.join(DTYPES)}")
    return DTYPES[text]


def backend(text: str) -> str:
    """The name of a backend that is available on this machine, or "auto"."""
    known = {registry.AUTO: None, **registry.backends()}
    if text not in known:
        raise argparse.ArgumentTypeError(f"unknown backend {text!r}, expected one of {', '.join(known)}")
    if why := known[text]:
        raise argparse.ArgumentTypeError(f"backend {text!r} is not available: {why}")
    return text


def device(text: str) -> torch.device:
    """cpu, cuda or cuda:N, where there is one."""
    try:
        found = torch.device(text)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"unknown device {text!r}, expected cpu, cuda or cuda:N")
    count = torch.cuda.device_count()
    if found.type == "cuda" and (found.index or 0) >= count:
        has = f"{count} CUDA device{'s' * (count != 1)}"
        raise argparse.ArgumentTypeError(f"device {text!r} is not available: PyTorch finds {has} here")
    return found


def default_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def integer(low: int, high: int) -> Callable[[str], int]:
    """A whole number from `low` to `high`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected a whole number from {low} to {high}, got {text!r}")
        return value

    return parse


def add_placement(parser: argparse.ArgumentParser) -> None:
    """Adds --device (None stands for `default_device()`), --dtype and --backend: where and how a model runs."""
    add: Callable[..., Any] = parser.add_argument
    add("--device", type=device, help="cpu, cuda or cuda:N (default: the GPU if any)")
    add("--dtype", type=dtype, default=torch.float32, metavar="DTYPE", help=f"{', '.join(DTYPES)} (default: float32)")
    add("--backend", type=backend, metavar="NAME", help="backend to run on (default: auto; see 'fastres info')")
