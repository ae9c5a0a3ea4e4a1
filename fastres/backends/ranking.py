"""Which backends `auto` asks, in which order: the one measured fastest on this machine first, then by rule.

`fastres tune` times every backend that can run a problem and keeps the winner's name in the user's table, which holds
for the sources of the kernels and the cuDNN that were measured. Nothing here measures.

The rule, if the table is silent: on a GPU cuDNN's convolution comes first, until ours has been measured to be faster;
but where a kernel of ours does in one pass over memory what takes cuDNN two (the stem with its pooling, the two
convolutions that end a projection block), ours come first. Of ours, those that were written for the GPU's own matrix
instructions are first: on Hopper and data-centre Blackwell Triton's, unless this build has the CUDA kernels for Hopper.
"""

from __future__ import annotations

import functools
import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import cache, files, native, tuning
from ..block import ConvBN
from .verification import architecture

VERSION = 1
_FILE = "ranking.json"
CONV, RESIDUAL, PROJECTION, SHORTCUT = "conv", "residual", "projection", "shortcut"
STEM, STEM_UINT8 = "stem", "stem_uint8"
ONE_PASS = (PROJECTION, STEM, STEM_UINT8)  # what takes a library's convolution a second pass over memory
ORDER = {"cpu": ("onednn", "reference"), "cuda": ("cudnn", "cuda", "triton", "reference")}
OURS = ("cuda", "triton")

changes = 0  # moves when the table does: what was decided by it is to be decided again


def order(operator: str, x: Tensor, layer: ConvBN) -> tuple[str, ...]:
    """Names of the backends to ask for `operator` of `layer` on `x`, the best guess first, the reference last."""
    names: Sequence[str] = ORDER.get(x.device.type, ("reference",))
    if x.is_cuda:
        ours = tuple(sorted((name for name in names if name in OURS), key=_preferred(x.device).index))
        library = tuple(name for name in names if name not in OURS)
        names = (*ours, *library) if operator in ONE_PASS else (*library[:-1], *ours, library[-1])
    found = fastest(operator, x, layer)
    return tuple(names) if found is None else (found, *(name for name in names if name != found))


def fastest(operator: str, x: Tensor, layer: ConvBN) -> str | None:
    """The backend that was fastest when this problem was measured here, or None where it was not measured."""
    table = _table()
    if not table:
        return None
    of_arch = table.get(architecture(x.device), {}).get(arithmetic(x.dtype), {})
    return of_arch.get(key(operator, x.shape, layer))


def key(operator: str, x: Sequence[int], layer: ConvBN) -> str:
    """A problem's name in the table: the operator, input, filter, stride, padding, dilation, groups."""
    k, _, r, s = layer.weight.shape
    sizes = "x".join(map(str, x))
    *pairs, groups = layer.geometry
    geometry = " ".join(f"{h}x{w}" for h, w in pairs)
    return f"{operator} {sizes} by {r}x{s} to {k}, {geometry}, {groups}"


def arithmetic(dtype: torch.dtype) -> str:
    """What products of `dtype` are computed in, following PyTorch's switch for convolutions."""
    return tuning.arithmetic(dtype, tuning.conv_tf32())


def record(winners: Mapping[str, str], numbers: str, device: torch.device) -> Path:
    """Adds winners, names of backends by `key`, of problems computed in `numbers` on `device` to the user's table.

    What other processes added meanwhile stays. Raises OSError if the table cannot be written.
    """
    global changes
    with cache.changing(_FILE) as path:
        table = _read()
        table.setdefault(architecture(device), {}).setdefault(numbers, {}).update(winners)
        content = {"version": VERSION, "measured": _measured_with(), "fastest": table}
        files.write(path, json.dumps(content, indent=1))
    _table.cache_clear()
    changes += 1
    return path


def user_table() -> Path:
    """Where the user's own table is."""
    return cache.path(_FILE)


def refresh() -> None:
    """Makes `order` read the table anew."""
    global changes
    _table.cache_clear()
    changes += 1


def _preferred(device: torch.device) -> tuple[str, ...]:
    arch = architecture(device)
    own_instructions = arch == "sm_90" and _has_hopper_kernels()
    return OURS[::-1] if arch in ("sm_90", "sm_100", "sm_103") and not own_instructions else OURS


@functools.cache
def _has_hopper_kernels() -> bool:
    module = native.load()
    return module is not None and "90a-real" in module.build_info()["archs"]


@functools.cache
def _measured_with() -> str:
    """A digest of what a measurement depends on beside the GPU: sources of our kernels, and cuDNN."""
    module = native.load()
    cuda = native.kernel_hash() if module is not None and module.build_info()["cuda"] else ""
    parts = tuning.kernels_digest(), cuda, str(torch.backends.cudnn.version())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@functools.cache
def _table() -> dict[str, dict[str, dict[str, str]]]:
    """The table as it was when first asked for."""
    return _read()


def _read() -> dict[str, dict[str, dict[str, str]]]:
    """By architecture, arithmetic and problem. Empty where missing or of other kernels, or damaged (it warns)."""
    try:
        if (text := cache.read(_FILE)) is None:
            return {}
        content: Any = json.loads(text)
        if content["version"] != VERSION or content["measured"] != _measured_with():
            return {}
        table = content["fastest"]
        if not all(
            isinstance(name, str) for by in table.values() for problems in by.values() for name in problems.values()
        ):
            raise ValueError("a winner is no name")
        return table
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        path = user_table()
        warnings.warn(f"the ranking of backends {path} cannot be used ({error!r}) and is passed over", stacklevel=2)
        return {}
