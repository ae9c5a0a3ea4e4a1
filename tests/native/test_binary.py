"""fastres._C as a file: one build for every torch, on a machine with or without a driver."""

from __future__ import annotations

import subprocess
import sys

from fastres import native

LOADS_ALONE = """
import importlib.machinery, importlib.util, sys
spec = importlib.util.spec_from_file_location("fastres._C", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.build_info()["compiler"], file=sys.stderr)
print(*{line.split()[-1] for line in open("/proc/self/maps") if ".so" in line}, sep="\\n")
"""


def test_it_loads_without_torch_and_links_no_cuda_library() -> None:
    binary = native.require().__file__
    command = [sys.executable, "-c", LOADS_ALONE, binary]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert binary in loaded
    names = [path.rpartition("/")[2] for path in loaded]
    foreign = ("libtorch", "libc10", "libcuda", "libcudart", "libcudnn", "libcublas", "libnvrtc")
    assert not [name for name in names if name.startswith(foreign)]
