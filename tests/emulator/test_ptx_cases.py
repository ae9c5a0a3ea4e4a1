"""NVIDIA's assembler takes every case: what only the emulator's parser understands never runs on hardware."""

import subprocess
from pathlib import Path

import pytest
import test_conversion
import test_floating
import test_integer
import test_warp_wide
import triton.backends.nvidia

PTXAS = Path(triton.backends.nvidia.__file__).parent / "bin" / "ptxas"
CASES = [
    *test_conversion.CASES,
    *test_floating.ARITHMETIC,
    *test_floating.COMPARISON,
    *test_integer.CASES,
    *test_warp_wide.CASES,
]


@pytest.mark.parametrize("target", sorted({case.target for case in CASES}))
def test_every_case_assembles(tmp_path, target):
    modules = [case.ptx().partition(".visible .entry k(") for case in CASES if case.target == target]
    kernels = [f"// {i}\n.visible .entry k{i}({rest}" for i, (_, _, rest) in enumerate(modules)]
    source = tmp_path / "cases.ptx"
    source.write_text(modules[0][0] + "\n".join(kernels))
    command = [PTXAS, f"-arch={target}", source, "-o", tmp_path / "cases.cubin"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
