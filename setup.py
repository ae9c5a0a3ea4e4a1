"""Runs CMake; everything else about the package is in pyproject.toml, and about the native build in CMakeLists.txt."""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Configure, build and install ``fastres._C`` and its PTX, in place or into the wheel's tree."""

    def run(self) -> None:
        """Build everything in one go: CMake knows the parts."""
        build = Path(self.build_temp).resolve()
        prefix = ROOT if self.inplace or getattr(self, "editable_mode", False) else Path(self.build_lib).resolve()
        # --fresh: an isolated build's cmake, ninja, pybind11 and nvcc live in a directory that is gone the next time.
        self._cmake("--fresh", "-S", ROOT, "-B", build, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}")
        self._cmake("--build", build, "--parallel", self.parallel or os.cpu_count() or 1)
        self._cmake("--install", build, "--prefix", prefix)

    def _cmake(self, *arguments: object) -> None:
        subprocess.run(["cmake", *map(str, arguments)], check=True)


setup(ext_modules=[Extension("fastres._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
