"""Compiles CUDA C++ to PTX with NVRTC, which comes with torch: no toolkit and no GPU needed."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path

import torch


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    major = (torch.version.cuda or "13").split(".")[0]
    names = [f"libnvrtc.so.{major}"]
    try:
        import nvidia

        for root in nvidia.__path__:
            names += [str(path) for path in sorted(Path(root).glob(f"*/lib/libnvrtc.so.{major}"))]
    except ImportError:
        pass
    errors = []
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            errors.append(str(error))
    raise RuntimeError("NVRTC, which comes with CUDA builds of torch, is missing: " + "; ".join(errors))


def _text(size_of: str, get: str, program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    getattr(_library(), size_of)(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(_library(), get)(program, buffer)
    return buffer.value.decode()


def compile_ptx(
    source: str, name: str, arch: str = "compute_90a", defines: tuple[str, ...] = (), include: Path | None = None
) -> str:
    """PTX of ``source``, whose diagnostics call it ``name``; what it includes is looked for in ``include``.

    Raises:
        RuntimeError: It doesn't compile; the message is the compiler's log.
    """
    library = _library()
    program = ctypes.c_void_p()
    library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), 0, None, None)
    options = [f"--gpu-architecture={arch}", "--std=c++17", "-lineinfo", *(f"-D{define}" for define in defines)]
    options += [] if include is None else [f"--include-path={include}"]
    array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    failed = library.nvrtcCompileProgram(program, len(options), array)
    if failed:
        raise RuntimeError(_text("nvrtcGetProgramLogSize", "nvrtcGetProgramLog", program))
    ptx = _text("nvrtcGetPTXSize", "nvrtcGetPTX", program)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return ptx
