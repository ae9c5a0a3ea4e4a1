"""Runs the cases of `interpreted/` in a process of their own: in Triton's interpreter, and on a GPU where there is one.

Triton reads TRITON_INTERPRET as it decorates its own library, so one process cannot both interpret and compile.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreted"
FAMILIES = ["conv", "gemm", "projection", "stem", "head", "backend", "tune", "training"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("on", ["interpreter", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_family(on: str, family: str) -> None:
    alone = ["--override-ini", "addopts=", "-p", "no:cacheprovider"]  # in one process
    command = [sys.executable, "-m", "pytest", "-q", *alone, str(FOLDER / f"{family}.py")]
    environment = os.environ | {"TRITON_INTERPRET": "1" if on == "interpreter" else "0"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_family_is_run() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == {*FAMILIES, "conftest", "problems"}
