"""What an emulated launch found and counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a kernel, and where. Coordinates that mean nothing for its kind are -1."""

    kind: str
    message: str
    expected: str
    kernel: str
    block: tuple[int, int, int]
    thread: tuple[int, int, int]
    warp: int
    lane: int
    ptx_line: int
    ptx: str
    source: str
    space: str
    address: int
    bytes: int
    count: int

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Finding:
        """From the native module's dictionary."""
        return cls(**{**fields, "block": tuple(fields["block"]), "thread": tuple(fields["thread"])})

    def __str__(self) -> str:
        lines = [f"========= {self.kind}: {self.message}"]
        place = f"kernel {self.kernel}, block {_coordinates(self.block)}"
        if self.thread[0] >= 0:
            place += f", thread {_coordinates(self.thread)}"
        if self.warp >= 0:
            place += f", warp {self.warp}"
        lines.append(f"=========     at {place}")
        if self.ptx_line:
            lines.append(f"=========     at PTX line {self.ptx_line}: {self.ptx}")
        if self.source:
            lines.append(f"=========     at {self.source}")
        lines.append(f"=========     expected {self.expected}")
        if self.count > 1:
            lines.append(f"=========     {self.count} times at this instruction")
        return "\n".join(lines)


@dataclass(frozen=True)
class Traffic:
    """Bytes a kernel asked of one memory space. Unique bytes count once however often they are read or written."""

    read_requested: int = 0
    read_unique: int = 0
    write_requested: int = 0
    write_unique: int = 0


@dataclass(frozen=True)
class Report:
    """What a launch found and counted.

    Attributes:
        findings: What is wrong, each once per kind and instruction; empty for a clean kernel.
        instructions: PTX opcode with all its modifiers -> how often a warp executed it.
        traffic: Memory space -> bytes. Unique bytes of shared memory are summed over the blocks.
        warp_instructions, thread_instructions: Executed in all, by warps and by threads whose guard was true.
        macs: Multiply-adds, of tensor instructions and of fma.
        blocks: Thread blocks that ran.
    """

    kernel: str
    seed: int
    findings: tuple[Finding, ...]
    instructions: dict[str, int]
    traffic: dict[str, Traffic]
    warp_instructions: int
    thread_instructions: int
    macs: int
    blocks: int

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Report:
        """From the native module's dictionary."""
        findings = tuple(Finding.of(finding) for finding in fields["findings"])
        traffic = {space: Traffic(*counts) for space, counts in fields["traffic"].items()}
        return cls(**{**fields, "findings": findings, "traffic": traffic})

    def __str__(self) -> str:
        lines = [f"========= kernel {self.kernel}, {self.blocks} blocks, seed {self.seed}"]
        lines += [str(finding) for finding in self.findings]
        lines.append(f"========= {self.warp_instructions:,} warp instructions, {self.macs:,} multiply-adds")
        for space, t in self.traffic.items():
            lines.append(
                f"========= {space}: read {t.read_requested:,} bytes ({t.read_unique:,} unique), "
                f"wrote {t.write_requested:,} ({t.write_unique:,} unique)"
            )
        count = len(self.findings)
        lines.append(f"========= {count} finding{'' if count == 1 else 's'}")
        return "\n".join(lines)


def _coordinates(extent: tuple[int, int, int]) -> str:
    return "({})".format(", ".join(map(str, extent)))
