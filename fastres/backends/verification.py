"""Which of fastres's own kernels have been verified, on which architecture.

`auto` runs a kernel of ours only where a record says that every case of `fastres.selftest` passed on such hardware with
these very sources. Records are of two kinds: those that came with the package, and those that `fastres selftest` wrote
on this machine. A library's backend (oneDNN, cuDNN) needs none.
"""

from __future__ import annotations

import functools
import json
import warnings
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import cache, files

_FILE = "verified.json"
UNVERIFIED = "emulated, not yet verified on hardware"  # of our kernels as they are: what ran, docs/kernels.md says

INFERENCE, TRAINING = "inference", "training"

changes = 0  # moves when a record is added


class Record(NamedTuple):
    """One verification: the backend, the architecture ("sm_90"), the fingerprint of the kernels' sources, and for what
    work they are verified, INFERENCE or TRAINING.
    """

    backend: str
    architecture: str
    fingerprint: str
    work: str = INFERENCE


def architecture(device: torch.device) -> str:
    """What kernels are compiled for: "sm_90" for a GPU of compute capability 9.0, "cpu" for the CPU."""
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def architectures(backend: str, fingerprint: str, work: str = INFERENCE) -> list[str]:
    """Where kernels of this fingerprint are verified."""
    return sorted(arch for name, arch, source, of in records() if (name, source, of) == (backend, fingerprint, work))


def standing(backend: str, fingerprint: str) -> str:
    """What is known of kernels of this fingerprint, for people."""
    found = [(work, architectures(backend, fingerprint, work)) for work in (INFERENCE, TRAINING)]
    known = [f"{', '.join(where)} ({work})" for work, where in found if where]
    return f"verified on {', '.join(known)}" if known else UNVERIFIED


def reason_unsupported(backend: str, fingerprint: str, device: torch.device, work: str = INFERENCE) -> str | None:
    """Why `auto` may not run kernels of this fingerprint on `device`, or None where they are verified there."""
    here = architecture(device)
    if Record(backend, here, fingerprint, work) in records():
        return None
    return f"its kernels are not verified for {work} on {here}: `fastres selftest --backend {backend}` does it"


@functools.cache
def records() -> frozenset[Record]:
    """Every record, the package's and this machine's. A damaged file counts as empty, with a warning."""
    return _packaged() | _local()


def add(record: Record) -> Path:
    """Adds a record to this machine's file, to those of other processes, and returns the file. Raises OSError."""
    global changes
    with cache.changing(_FILE) as path:
        files.write(path, json.dumps([entry._asdict() for entry in sorted(_local() | {record})], indent=2) + "\n")
    records.cache_clear()
    changes += 1
    return path


def local_path() -> Path:
    """This machine's file."""
    return cache.path(_FILE)


def _packaged() -> frozenset[Record]:
    path = resources.files("fastres.data") / _FILE
    return frozenset(_parse(path.read_text() if path.is_file() else "[]", str(path)))


def _local() -> frozenset[Record]:
    try:
        text = cache.read(_FILE)
    except (OSError, UnicodeDecodeError) as error:
        warnings.warn(f"cannot read {local_path()}: {error}; taken as empty", stacklevel=2)
        return frozenset()
    return frozenset() if text is None else frozenset(_parse(text, str(local_path())))


def _parse(text: str, origin: str) -> list[Record]:
    try:
        entries: Any = json.loads(text)
        found = [Record(**{field: str(entry[field]) for field in Record._fields}) for entry in entries]
        if not all(text.isprintable() for record in found for text in record):  # these are shown on terminals
            raise ValueError("a control character in a record")
        return found
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        warnings.warn(f"{origin} is no list of verification records ({error!r}); taken as empty", stacklevel=2)
        return []
