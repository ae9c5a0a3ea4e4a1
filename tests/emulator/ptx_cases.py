"""One instruction, a table of operands and the results that the PTX ISA asks for.

A case becomes a small kernel in which each thread handles one row. The same kernel runs in the emulator and, marked
``gpu``, on hardware: so both are held to the manual, and to each other.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fastres import emulator

NAN = float("nan")
INF = float("inf")

_WIDTH = {"b8": 16, "s8": 16, "u8": 16, "pred": 32}
_PREFIX = {16: "h", 32: "r", 64: "d"}


def width(kind: str) -> int:
    """Bits of the register that holds a PTX type."""
    if kind in _WIDTH:
        return _WIDTH[kind]
    if kind.endswith("x2"):
        return 16 if kind.startswith("e") else 32
    digits = "".join(c for c in kind.removeprefix("tf").removeprefix("bf") if c.isdigit())
    return int(digits)


def bits(value: Any, kind: str) -> int:
    """The register's bits for a Python value: floats by type, pairs (low, high), ints as they are."""
    size = width(kind)
    if isinstance(value, tuple):
        low, high = value
        half = kind.removesuffix("x2")
        return bits(low, half) | bits(high, half) << 16
    if isinstance(value, float):
        if kind == "f64":
            return int.from_bytes(struct.pack("<d", value), "little")
        if kind in ("f16", "bf16"):
            dtype = torch.float16 if kind == "f16" else torch.bfloat16
            if value != value:
                return 0x7FFF
            return int(torch.tensor(value, dtype=torch.float64).to(dtype).view(torch.int16)) & 0xFFFF
        if value != value:
            return 0x7FFFFFFF
        return int.from_bytes(struct.pack("<f", value), "little")
    return int(value) & ((1 << size) - 1)


@dataclass(frozen=True)
class Case:
    """An instruction and its rows.

    Attributes:
        code: PTX with ``{d}`` for the destination and ``{a}``, ``{b}``, ``{c}``, ``{e}`` for sources. May be several
            instructions.
        to: The destination's type.
        types: The sources' types.
        rows: ((source values), expected), at most 32.
        target: The least capability that has the instruction.
    """

    code: str
    to: str
    types: tuple[str, ...]
    rows: Sequence[tuple[tuple[Any, ...], Any]]
    target: str = "sm_80"
    declare: str = field(default="")

    def __str__(self) -> str:
        return self.code.split(";")[0].split("{")[0].strip() if self.code[0] != "{" else self.code[1:40].strip()

    def ptx(self) -> str:
        """The kernel: a pointer to each operand's values (64-bit cells), and one to the results'."""
        names = "abce"[: len(self.types)]
        params = ", ".join(f".param .u64 p_{name}" for name in (*names, "out"))
        registers = {name: f"%{name}" for name in names}
        registers["d"] = "%out"
        lines = [
            f".reg .b{width(kind)} %{name};" for name, kind in zip((*names, "out"), (*self.types, self.to), strict=True)
        ]
        lines += [".reg .b64 %p<8>;", ".reg .b32 %t;", ".reg .pred %q<4>;", self.declare]
        lines += ["mov.u32 %t, %tid.x;", "mul.wide.u32 %p0, %t, 8;"]
        for index, (name, kind) in enumerate(zip(names, self.types, strict=True)):
            lines += [f"ld.param.u64 %p{index + 1}, [p_{name}];", f"add.u64 %p{index + 1}, %p{index + 1}, %p0;"]
            lines += [f"ld.global.b{width(kind)} %{name}, [%p{index + 1}];"]
        lines += [f"ld.param.u64 %p{len(names) + 1}, [p_out];", f"add.u64 %p{len(names) + 1}, %p{len(names) + 1}, %p0;"]
        code = self.code
        for name, register in registers.items():
            code = code.replace("{" + name + "}", register)
        lines += [code, f"st.global.b{width(self.to)} [%p{len(names) + 1}], %out;", "ret;"]
        body = "\n  ".join(lines)
        version = "7.0" if self.target == "sm_80" else "8.0"
        head = f".version {version}\n.target {self.target}\n.address_size 64\n"
        return f"{head}.visible .entry k({params})\n{{\n  {body}\n}}\n"

    def inputs(self) -> list[torch.Tensor]:
        """One tensor of 64-bit cells per operand."""
        columns = []
        for index, kind in enumerate(self.types):
            cells = [bits(row[0][index], kind) for row in self.rows]
            columns.append(torch.tensor([cell - (cell >> 63 << 64) for cell in cells], dtype=torch.int64))
        return columns

    def check(self, results: torch.Tensor) -> None:
        """Bit for bit."""
        mask = (1 << width(self.to)) - 1
        got = [int(cell) & mask for cell in results]
        wanted = [bits(row[1], self.to) for row in self.rows]
        for row, g, w in zip(self.rows, got, wanted, strict=True):
            assert g == w, f"{self.code}: {row[0]} gave {g:#x}, expected {row[1]} ({w:#x})"


def emulate(case: Case, seed: int = 0) -> None:
    """Run the case in the emulator and check it."""
    results = torch.zeros(len(case.rows), dtype=torch.int64)
    report = emulator.load(case.ptx()).launch("k", (1,), (len(case.rows),), [*case.inputs(), results], seed=seed)
    assert report.findings == ()
    case.check(results)


def run_on_hardware(case: Case) -> None:
    """Run the same kernel on the current CUDA device and check it."""
    from torch.cuda._utils import _cuda_load_module

    results = torch.zeros(len(case.rows), dtype=torch.int64, device="cuda")
    kernel = _cuda_load_module(case.ptx(), ["k"])["k"]
    kernel((1, 1, 1), (len(case.rows), 1, 1), [*(column.cuda() for column in case.inputs()), results])
    torch.cuda.synchronize()
    case.check(results.cpu())


def kernel(body: str, params: str = "x out", *, name: str = "k", declare: str = "", target: str = "sm_80") -> str:
    """A module with one kernel. Each word of ``params`` is a pointer parameter, loaded into ``%<word>``.

    The body may use predicates ``%p<8>``, 32-bit ``%r<32>``, 64-bit ``%rd<16>``, 16-bit ``%h<16>``, f32 ``%f<16>`` and
    ``%t``, the thread's x coordinate.
    """
    words = params.split()
    loads = "\n".join(f"  .reg .b64 %{word}; ld.param.u64 %{word}, [p_{word}];" for word in words)
    return f"""
.version 8.0
.target {target}
.address_size 64
{declare}
.visible .entry {name}({", ".join(f".param .u64 p_{word}" for word in words)})
{{
  .reg .pred %p<8>;
  .reg .b32 %r<32>, %t;
  .reg .b64 %rd<16>;
  .reg .b16 %h<16>;
  .reg .f32 %f<16>;
{loads}
  mov.u32 %t, %tid.x;
{body}
  ret;
}}
"""
