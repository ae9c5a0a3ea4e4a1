"""Runs Triton kernels on CPU tensors: compiled ahead of time for a GPU, and the PTX emulated.

>>> report = fastres.emulator.triton.run(matmul, (4, 4), a, b, c, 256, 256, 256, BM=64, BN=64, target=80)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from fastres.emulator.launch import Fresh, Module, load
from fastres.emulator.report import Report
from fastres.emulator.tensor_map import TensorMap

# Triton orders mbarrier.init before TMA's first use of it by a block barrier alone; the PTX ISA asks for a fence too.
_ACCEPTED = ("mbarrier-fence",)

_POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
}


@dataclass(frozen=True)
class Compiled:
    """A Triton kernel compiled for one signature: its PTX as a module, and how to launch it."""

    module: Module
    name: str
    ptx: str
    threads: int
    shared: int
    arguments: tuple[int, ...]  # positions of the parameters that the PTX takes
    descriptors: tuple[dict[str, Any], ...]  # how to encode each tensor descriptor; empty where TMA isn't used


def run(
    kernel: Any,
    grid: Sequence[int],
    *args: Any,
    target: int = 80,
    num_warps: int = 4,
    num_stages: int = 3,
    seed: int = 0,
    strict: bool = True,
    resident: int = 4,
    trace: Callable[[str], None] | None = None,
    **constexprs: Any,
) -> Report:
    """Compiles ``kernel`` as Triton would for a GPU of capability ``target``, and runs it on CPU tensors.

    Args:
        kernel: A ``@triton.jit`` function.
        grid: One to three extents.
        *args: Its arguments in order: CPU tensors (or `Fresh`), Triton's ``TensorDescriptor`` of them, ints, floats,
            bools, None.
        target: 80 or 90.
        num_warps: As in a Triton launch.
        num_stages: As in a Triton launch.
        seed: As for `Module.launch`.
        strict: As for `Module.launch`.
        resident: As for `Module.launch`.
        trace: As for `Module.launch`.
        **constexprs: The ``tl.constexpr`` parameters, and any other parameter by name.

    Returns:
        The launch's report.

    Raises:
        TypeError: An argument is missing or of a type that a kernel can't take.
        Fault: As `Module.launch`.
    """
    compiled, values = compile_for(kernel, args, constexprs, target=target, num_warps=num_warps, num_stages=num_stages)
    # Two more parameters: Triton's global and profiling scratch memory, unused by these kernels.
    kept = _flatten([values[index] for index in compiled.arguments], compiled.descriptors)
    parameters = compiled.module.kernels[compiled.name].params
    kept += [0] * (len(parameters) - len(kept))
    return compiled.module.launch(
        compiled.name,
        grid,
        (compiled.threads,),
        kept,
        shared=compiled.shared,
        seed=seed,
        strict=strict,
        ignore=_ACCEPTED,
        resident=resident,
        trace=trace,
    )


def _flatten(values: Sequence[Any], descriptors: Sequence[dict[str, Any]]) -> list[Any]:
    """Kernel parameters: a tensor descriptor is its map (without TMA, its pointer), shape and strides."""
    encodings = iter(descriptors)
    flat: list[Any] = []
    for value in values:
        if not hasattr(value, "block_shape"):
            flat.append(value)
            continue
        nan, extents = value.padding == "nan", [*value.shape, *value.strides]
        if descriptors:
            encoding = next(encodings)
            view = value.base.as_strided(value.shape, value.strides)
            span = 16 << encoding["swizzle"] if encoding["swizzle"] else 0
            flat.append(TensorMap.tiled(view, encoding["block_size"], swizzle=span, fill_nan=nan))
        else:
            flat += [value.base, *extents, nan]
        flat += extents
    return flat


def compile_for(
    kernel: Any, args: Sequence[Any], constexprs: dict[str, Any], *, target: int, num_warps: int, num_stages: int
) -> tuple[Compiled, list[Any]]:
    """Compiles for these arguments; the second result is every argument by position.

    Raises:
        TypeError: An argument is missing or of a type that a kernel can't take.
    """
    names = list(kernel.arg_names)
    if len(args) > len(names):
        raise TypeError(f"{kernel.__name__} takes {len(names)} arguments, got {len(args)}")
    bound = dict(zip(names, args, strict=False)) | constexprs
    if missing := [name for name in names if name not in bound]:
        raise TypeError(f"{kernel.__name__} lacks arguments {', '.join(missing)}")
    if unknown := [name for name in bound if name not in names]:
        raise TypeError(f"{kernel.__name__} has no parameters {', '.join(unknown)}")
    fixed = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
    signature, constants, divisible = [], [], []
    for index, name in enumerate(names):
        value = bound[name]
        # As Triton's own launcher specialises: None and integers equal to 1 are constants.
        if name in fixed or value is None or (type(value) is int and value == 1):
            signature.append((name, "constexpr"))
            constants.append((name, value))
            continue
        kind, is_divisible = _type_of(name, value)
        signature.append((name, kind))
        if is_divisible:
            divisible.append(index)
    compiled = _compile(kernel, tuple(signature), tuple(constants), tuple(divisible), target, num_warps, num_stages)
    return compiled, [bound[name] for name in names]


def _type_of(name: str, value: Any) -> tuple[str, bool]:
    """Triton's type of an argument, and whether it is known to be a multiple of 16."""
    tensor = value.tensor if isinstance(value, Fresh) else value
    if isinstance(tensor, torch.Tensor):
        if tensor.dtype not in _POINTERS:
            raise TypeError(f"{name} is a tensor of {tensor.dtype}, expected one of {', '.join(map(str, _POINTERS))}")
        return _POINTERS[tensor.dtype], tensor.data_ptr() % 16 == 0
    if hasattr(value, "block_shape"):
        element, _ = _type_of(name, value.base)
        return f"tensordesc<{element[1:]}{list(value.block_shape)}>", False
    if isinstance(value, bool):
        return "i1", False
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64", value % 16 == 0
    if isinstance(value, float):
        return "fp32", False
    raise TypeError(f"{name} is a {type(value).__name__}, expected a tensor, an int, a float or a bool")


@lru_cache(maxsize=256)
def _compile(
    kernel: Any,
    signature: tuple[tuple[str, str], ...],
    constants: tuple[tuple[str, Any], ...],
    divisible: tuple[int, ...],
    target: int,
    num_warps: int,
    num_stages: int,
) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = [name for name, _ in signature]
    source = ASTSource(
        kernel,
        dict(signature),
        {(names.index(name),): value for name, value in constants},
        {(index,): [["tt.divisibility", 16]] for index in divisible},
    )
    options = {"num_warps": num_warps, "num_stages": num_stages}
    built = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    ptx = built.asm["ptx"]
    return Compiled(
        module=load(ptx),
        name=built.metadata.name,
        ptx=ptx,
        threads=32 * built.metadata.num_warps,
        shared=built.metadata.shared,
        arguments=tuple(index for index, (_, kind) in enumerate(signature) if kind != "constexpr"),
        descriptors=tuple(built.metadata.tensordesc_meta or ()),
    )
