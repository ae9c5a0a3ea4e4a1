"""What a figure was measured with: versions, processor and GPUs, as data that goes beside it into JSON."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .. import __version__

_DRIVER = r"Module\s+(?:for \S+\s+)?([\d.]+)"  # the open module says for which machine it is


def environment() -> dict[str, Any]:
    """Versions, the CPU and every GPU, made of JSON's types; None stands for what is missing or cannot be known."""
    return {
        "versions": {
            "fastres": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": _version("torchvision"),
            "triton": _version("triton") or _version("pytorch-triton"),
            "cuda": torch.version.cuda,
            "cudnn": _cudnn(),
            "onednn": _found(r"(?:oneDNN|MKL-DNN) v([\d.]+)", torch.__config__.show()),
            "nvidia_driver": _found(_DRIVER, _text("/proc/driver/nvidia/version")),
        },
        "system": platform.platform(),
        "cpu": {
            "model": _found(r"model name\s*:\s*(.+)", _text("/proc/cpuinfo")) or platform.processor() or None,
            "isa": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
            "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,  # others' work, and our own
        },
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
    }


def _gpu(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cudnn() -> str | None:
    number = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    if number is None:
        return None
    major = number // 10000 if number >= 90000 else number // 1000  # 90102 is 9.1.2; before 9, 8902 was 8.9.2
    minor = number // 100 % (100 if number >= 90000 else 10)
    return f"{major}.{minor}.{number % 100}"


def _found(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text)
    return match.group(1).strip() if match else None


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
