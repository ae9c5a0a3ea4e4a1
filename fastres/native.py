"""Loads the native module ``fastres._C``, and tells a missing one (allowed) from a broken one (an error)."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

_PACKAGE = Path(__file__).resolve().parent


@cache
def load() -> ModuleType | None:
    """The native module, or None where it was never built for this Python: `why_missing` says so in words.

    Raises:
        ImportError: The binary is there and doesn't load. It is broken, and never taken for a missing one.
    """
    spec = importlib.util.find_spec("fastres._C")
    if spec is None:
        return None
    try:
        return importlib.import_module("fastres._C")
    except ImportError as error:
        message = f"the native module {spec.origin} is there but doesn't load ({error}); reinstall or rebuild fastres"
        raise ImportError(message, name="fastres._C", path=spec.origin) from error


def require() -> ModuleType:
    """The native module.

    Raises:
        ImportError: It is missing or broken; the message says which and what to do.
    """
    module = load()
    if module is None:
        raise ImportError(why_missing(), name="fastres._C")
    return module


def why_missing() -> str:
    """Why `load` gives None, or '' where it gives the module."""
    if load() is not None:
        return ""
    others = sorted(path.name for path in _PACKAGE.glob("_C.*") if path.suffix in (".so", ".pyd"))
    if others:
        return f"the native module was built for another Python ({', '.join(others)}); rebuild fastres for this one"
    return "the native module fastres._C was not built; `pip install .` builds it"


def ptx(stem: str) -> str:
    """The PTX of ``csrc/kernels/<stem>.cu``, as compiled when this package was built.

    Raises:
        FileNotFoundError: This build has no such kernel, or was made without CUDA.
    """
    path = _PACKAGE / "ptx" / f"{stem}.ptx"
    if not path.is_file():
        module = load()
        why = why_missing() if module is None else module.build_info()["cuda_missing"]
        raise FileNotFoundError(f"no PTX of kernel {stem!r} in this build of fastres ({why or 'no such kernel'})")
    return path.read_text()


@cache
def kernel_hash() -> str:
    """A hash of the sources of every CUDA kernel of this build, headers included.

    Raises:
        FileNotFoundError: This build was made without CUDA.
    """
    return hashlib.sha256((_PACKAGE / "ptx" / "sources.sha256").read_bytes()).hexdigest()[:16]
