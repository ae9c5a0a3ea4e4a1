"""Loading PTX and launching its kernels on CPU tensors."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastres import native
from fastres.emulator.report import Finding, Report
from fastres.emulator.tensor_map import TensorMap

Argument = Any  # torch.Tensor, Fresh, TensorMap, int, float, bool or bytes

_INTEGERS = {"b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "b32": 4, "u32": 4, "s32": 4}
_INTEGERS |= {"b64": 8, "u64": 8, "s64": 8}
_LIMIT = 20_000_000_000


class PtxError(ValueError):
    """Text that is no PTX, an instruction the emulator doesn't know (named), or a launch that makes no sense."""


class Fault(RuntimeError):
    """A kernel did something wrong, and the launch was strict or could not go on.

    Attributes:
        finding: What and where.
        report: What was found and counted until then, this finding included.
    """

    def __init__(self, finding: Finding, report: Report) -> None:
        super().__init__(str(finding))
        self.finding = finding
        self.report = report


@dataclass(frozen=True)
class Fresh:
    """A tensor argument whose bytes count as never written: reading one before the kernel wrote it is a finding."""

    tensor: torch.Tensor


@dataclass(frozen=True)
class Kernel:
    """An entry function of a module.

    Attributes:
        params: (name, PTX type, offset in bytes, size in bytes) of each parameter.
        param_bytes: Size of the parameter block.
        static_shared: Bytes of shared memory that the kernel declares itself.
        opcodes: Every instruction it contains, with its modifiers.
        block: The block size it requires (``.reqntid``), or None.
        cluster: The cluster size it requires, or None.
    """

    name: str
    params: tuple[tuple[str, str, int, int], ...]
    param_bytes: int
    static_shared: int
    opcodes: tuple[str, ...]
    block: tuple[int, int, int] | None
    cluster: tuple[int, int, int] | None


class Module:
    """PTX that was read and decoded. Its global variables live as long as it does."""

    def __init__(self, ptx: str) -> None:
        self._native = native.require()
        try:
            self._program = self._native.emulator.Program(ptx)
        except self._native.emulator.PtxError as error:
            raise PtxError(str(error)) from None
        self.kernels: dict[str, Kernel] = {}
        for fields in self._program.kernels():
            self.kernels[fields["name"]] = Kernel(
                name=fields["name"],
                params=tuple(fields["params"]),
                param_bytes=fields["param_bytes"],
                static_shared=fields["static_shared"],
                opcodes=tuple(fields["opcodes"]),
                block=_extent_or_none(fields["reqntid"]),
                cluster=_extent_or_none(fields["cluster"]),
            )

    def launch(
        self,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Argument],
        *,
        shared: int = 0,
        cluster: Sequence[int] = (1, 1, 1),
        memory: Iterable[torch.Tensor | Fresh] = (),
        seed: int = 0,
        strict: bool = True,
        ignore: Iterable[str] = (),
        resident: int = 4,
        limit: int = _LIMIT,
        trace: Callable[[str], None] | None = None,
    ) -> Report:
        """Runs a kernel to its end.

        Args:
            name: The kernel's name in the PTX.
            grid: Blocks: one to three extents.
            block: Threads of a block, likewise.
            cluster: Blocks of a cluster, likewise.
            args: One per kernel parameter: CPU tensors (their address is passed and their memory may be used), ints,
                floats and bools, TensorMaps, and bytes for structures passed by value.
            shared: Bytes of dynamic shared memory.
            memory: Further tensors that the kernel may use: those whose addresses are inside a bytes argument.
            seed: Chooses the interleaving of warps and blocks, and when asynchronous work happens.
            strict: Raise at the first finding; else collect findings in the report and go on.
            ignore: Kinds of findings that don't count.
            resident: Clusters (blocks, without clusters) that run at a time.
            limit: Warp instructions after which the kernel counts as endless.
            trace: Called with one line of text for every instruction of a warp.

        Returns:
            Findings and counts. Tensor arguments hold the kernel's results.

        Raises:
            Fault: A finding, when strict; a deadlock, trap, failed assertion or endless kernel always.
            PtxError: No such kernel, or a launch that makes no sense.
            TypeError, ValueError: An argument doesn't fit its parameter.
        """
        kernel = self.kernels.get(name)
        if kernel is None:
            raise PtxError(f"no kernel {name!r} in this module, which has: {', '.join(self.kernels) or 'none'}")
        regions: list[tuple[str, int, int, bool]] = []
        params = _pack(kernel, args, regions)
        for index, tensor in enumerate(memory):
            _region(f"memory[{index}]", tensor, regions)
        try:
            fields, fatal = self._program.launch(
                name,
                _extent("grid", grid),
                _extent("block", block),
                _extent("cluster", cluster),
                params,
                regions,
                shared,
                seed,
                strict,
                list(ignore),
                resident,
                limit,
                trace,
            )
        except self._native.emulator.PtxError as error:
            raise PtxError(str(error)) from None
        report = Report.of(fields)
        if fatal is not None:
            raise Fault(Finding.of(fatal), report)
        return report


def load(ptx: str) -> Module:
    """Reads PTX text.

    Raises:
        PtxError: The text is no PTX, or has an instruction that the emulator doesn't know: the message names it.
        ImportError: The native module is missing.
    """
    return Module(ptx)


def _extent(what: str, extent: Sequence[int]) -> tuple[int, int, int]:
    values = tuple(extent)
    if not 1 <= len(values) <= 3 or not all(isinstance(v, int) and 0 < v < 2**31 for v in values):
        raise ValueError(f"{what} is {extent!r}, expected one to three positive integers")
    x, y, z = (*values, 1, 1)[:3]
    return x, y, z


def _extent_or_none(extent: Sequence[int]) -> tuple[int, int, int] | None:
    x, y, z = extent
    return (x, y, z) if x else None


def _region(name: str, argument: torch.Tensor | Fresh, regions: list[tuple[str, int, int, bool]]) -> int:
    fresh = isinstance(argument, Fresh)
    tensor = argument.tensor if isinstance(argument, Fresh) else argument
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} is on {tensor.device}, expected a CPU tensor")
    # What the tensor's strides reach, and not the whole storage: past it begins somebody else's memory.
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    size = (last + 1) * tensor.element_size() if tensor.numel() else 0
    if size:
        regions.append((f"{name} {tensor.dtype} {tuple(tensor.shape)}", tensor.data_ptr(), size, not fresh))
    return tensor.data_ptr()


def _pack(kernel: Kernel, args: Sequence[Argument], regions: list[tuple[str, int, int, bool]]) -> bytes:
    if len(args) != len(kernel.params):
        raise TypeError(f"kernel {kernel.name} takes {len(kernel.params)} arguments, got {len(args)}")
    block = bytearray(kernel.param_bytes)
    for index, (argument, (_, kind, offset, size)) in enumerate(zip(args, kernel.params, strict=True)):
        name = f"args[{index}]"
        if isinstance(argument, bytes):
            packed = argument
        elif isinstance(argument, TensorMap):
            _region(name, argument.tensor, regions)
            packed = argument.blob
        elif isinstance(argument, (torch.Tensor, Fresh)):
            packed = _region(name, argument, regions).to_bytes(8, "little")
        elif isinstance(argument, float) and kind in ("f32", "f64", "b32", "b64"):
            packed = struct.pack("<f" if size == 4 else "<d", argument)
        elif isinstance(argument, int) and kind in ("f32", "f64"):
            packed = struct.pack("<f" if size == 4 else "<d", float(argument))
        elif isinstance(argument, int) and size == _INTEGERS.get(kind):
            if not -(1 << 8 * size - 1) <= argument < 1 << 8 * size:
                raise ValueError(f"{name} is {argument}, which doesn't fit the parameter's type .{kind}")
            packed = (argument % (1 << 8 * size)).to_bytes(size, "little")
        else:
            raise TypeError(f"{name} is a {type(argument).__name__}, expected what a .{kind} of {size} bytes holds")
        if len(packed) != size:
            raise ValueError(f"{name} has {len(packed)} bytes, the parameter is a .{kind} of {size} bytes")
        block[offset : offset + size] = packed
    return bytes(block)
