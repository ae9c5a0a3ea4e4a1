"""Reads files of `torch.save` that nobody vouches for: no code is run, damage is found, time and memory are bounded."""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DEPTH = 100  # containers within containers
_VALUES = 10_000_000  # in all containers, one that occurs twice counted twice
_CHUNK = 1 << 20


class UnreadableError(Exception):
    """Why a file cannot be used, as the rest of a sentence that begins with its name."""


def load(path: Path) -> Any:
    """What `torch.save` put into `path`, on the CPU.

    Raises:
        OSError: if the file cannot be read.
        UnreadableError: if it is no file of tensors, or damaged (its parts do not match their checksums); or if what
            is in it contains itself, unfolds without end, or has a tensor larger than the whole file.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        _check_archive(file, size)
        file.seek(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about old formats; what cannot be read raises
                data = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # what is not a checkpoint makes torch.load raise nearly anything
            reason = f"{type(error).__name__}: {str(error).strip()}".split("\n")[0]
            raise UnreadableError(
                f"is not a checkpoint of tensors: torch.load(weights_only=True) says: {reason}"
            ) from error
    if _count(data, size, {}, []) > _VALUES:
        raise UnreadableError(f"unfolds into more than {_VALUES:,} values: expected a checkpoint of tensors")
    return data


def _check_archive(file: Any, size: int) -> None:
    """Checks a zip archive's checksums, which `torch.load` does not. Files of torch before 1.6 have none."""
    if not zipfile.is_zipfile(file):
        return
    try:
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
            packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
            if packed or sum(part.file_size for part in parts) > size:
                raise UnreadableError("is not a checkpoint of tensors: its parts are larger than the file")
            if not any(part.CRC for part in parts):
                return  # saved without, by torch.serialization.set_crc32_options(False)
            for part in parts:
                with archive.open(part) as content:
                    while content.read(_CHUNK):
                        pass
    except UnreadableError:
        raise
    except Exception as error:  # damage makes zipfile raise nearly anything
        raise UnreadableError(f"is damaged: {error}") from error


def _count(value: Any, size: int, known: dict[int, int], around: list[int]) -> int:
    """How many values `value` unfolds into; `known` by container's id, `around` the ids of those that hold it."""
    if isinstance(value, Tensor):
        _check_tensor(value, size)
        return 1
    if not isinstance(value, Mapping | list | tuple | set | frozenset):
        return 1
    if id(value) in around:
        raise UnreadableError("contains itself: expected a checkpoint of tensors")
    if len(around) == _DEPTH:
        raise UnreadableError(f"has more than {_DEPTH} containers within each other: expected a checkpoint of tensors")
    if id(value) not in known:
        around.append(id(value))
        inner = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
        known[id(value)] = 1 + sum(_count(part, size, known, around) for part in inner)
        around.pop()
    return known[id(value)]


def _check_tensor(tensor: Tensor, size: int) -> None:
    if tensor.layout == torch.strided and tensor.device.type == "cpu":
        needed = tensor.numel() * tensor.element_size()
        if needed > max(size, tensor.untyped_storage().nbytes()):
            shape = list(tensor.shape)
            raise UnreadableError(f"has a tensor of shape {shape}, {needed:,} bytes, in a file of {size:,}: expanded")
