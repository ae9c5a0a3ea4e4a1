"""What nvcc made of every CUDA kernel, by architecture: read from the native module that is imported, and checked in.

    python tests/native/resources.py       renews resources.json, after a kernel or the compiler has changed

Registers, shared, stack and local memory are what `cuobjdump --dump-resource-usage` says. Instructions are those of the
machine code, 16 bytes each, its padding included, and how many of each kind the kernel's PTX has.
"""

from __future__ import annotations

import json
import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import triton

from fastres import native

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
TABLE = Path(__file__).with_suffix(".json")
COUNTED = ("mma.sync", "wgmma.mma_async", "ldmatrix", "cp.async.ca", "cp.async.cg", "cp.async.bulk.tensor")
INSTRUCTION_BYTES = 16  # since Volta


class Resources(NamedTuple):
    """Of one kernel on one architecture; memory in bytes, `shared` being the static part."""

    registers: int
    shared: int
    instructions: int
    stack: int = 0
    local: int = 0


def measured() -> dict[str, dict[str, Resources]]:
    """Of every kernel in the binary: by its name, then by architecture ("sm_80")."""
    binary = native.require().__file__
    command = [CUOBJDUMP, "--dump-resource-usage", binary]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    sizes = dict(_code_sizes(binary))
    found: dict[str, dict[str, Resources]] = {}
    arch = name = ""
    for line in listing.splitlines():
        if line.startswith("arch = "):
            arch = line.removeprefix("arch = ")
        elif match := re.match(r" Function (\w+):", line):
            name = match[1]
        elif usage := dict(re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", line)):
            shared, stack, local = (int(usage[key]) for key in ("SHARED", "STACK", "LOCAL"))
            instructions = sizes[_chip(arch), name] // INSTRUCTION_BYTES
            found.setdefault(name, {})[arch] = Resources(int(usage["REG"]), shared, instructions, stack, local)
    return found


def _chip(arch: str) -> str:
    """`arch` without "a": whether a cubin's file name has it depends on the version of cuobjdump."""
    return arch.removesuffix("a")


def _code_sizes(binary: str) -> Iterator[tuple[tuple[str, str], int]]:
    """((chip, kernel), bytes of machine code), for every kernel in the binary."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([CUOBJDUMP, "-xelf", "all", binary], cwd=folder, capture_output=True, check=True)
        for path in Path(folder).glob("*.cubin"):
            arch = _chip(path.suffixes[-2].removeprefix("."))
            for section, size in _sections(path.read_bytes()):
                if section.startswith(".text."):
                    yield (arch, section.removeprefix(".text.")), size


def _sections(elf: bytes) -> Iterator[tuple[str, int]]:
    """(name, size) of each section of a 64-bit little-endian ELF file (System V ABI, "Sections")."""
    table = struct.unpack_from("<Q", elf, 0x28)[0]
    entry, count, names_at = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + i * entry) for i in range(count)]
    names = headers[names_at][4]
    for name, _, _, _, _, size in headers:
        yield elf[names + name : elf.index(b"\0", names + name)].decode(), size


def ptx_counts() -> dict[str, Counter[str]]:
    """Of every kernel: how many instructions of each of `COUNTED` its PTX has, and how many in all."""
    found: dict[str, Counter[str]] = {}
    for stem in sorted(set(native.require().build_info()["kernels"].values())):
        name = ""
        for line in native.ptx(stem).splitlines():
            if match := re.search(r"\.entry (\w+)\(", line):
                name = match[1]
                found[name] = Counter()
            elif name and (match := re.match(r"\s*(?:\{\s*)?(?:@!?%p\d+\s+)?([a-z][\w.:]*)\s", line)):
                opcode = match[1]
                found[name]["all"] += 1
                found[name].update(kind for kind in COUNTED if opcode.startswith(kind))
    return found


def as_json() -> dict[str, Any]:
    """The table of the native module that is imported."""
    counts = ptx_counts()
    kernels = {}
    for name, of_arch in sorted(measured().items()):
        rows = {arch: of_arch[arch][:3] for arch in sorted(of_arch, key=lambda a: (len(a), a))}
        kernels[name] = {**rows, "ptx": counts[name]}
    return {"nvcc": native.require().build_info()["cuda"], "columns": Resources._fields[:3], "kernels": kernels}


if __name__ == "__main__":
    table = as_json()
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in table.pop("kernels").items())
    head = json.dumps(table)[1:-1]
    TABLE.write_text(f'{{{head}, "kernels": {{\n{rows}\n}}}}\n')
    print(f"{TABLE}: {len(rows.splitlines())} kernels")
