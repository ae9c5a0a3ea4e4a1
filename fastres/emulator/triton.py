"""Runs Triton kernels on CPU tensors: compiled as for a GPU, and the PTX emulated.

>>> with fastres.emulator.triton.emulated(target=90) as reports:
...     my_kernel[grid](x, y, n, BLOCK=128)  # CPU tensors; a report of each launch

Triton itself sees a driver whose device has that compute capability, so what runs is what a launch on such a GPU would
compile: specialised on its arguments, tensor descriptors and all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch

from fastres.emulator.launch import Fresh, Module, load
from fastres.emulator.report import Report
from fastres.emulator.tensor_map import TensorMap

# Shared memory that a block may use, and multiprocessors of the GPU stood in for: A100 and H100 SXM.
_DEVICES = {80: (163 * 1024, 108), 90: (227 * 1024, 132)}
# Triton orders mbarrier.init before TMA's first use of it by a block barrier alone; the PTX ISA asks for a fence too.
# What several warps hold alike, as after a reduction across them, each of them writes to shared memory.
_ACCEPTED = ("mbarrier-fence", "same-value")
_SWIZZLES = (0, 32, 64, 128)  # by the number in a compiled kernel's metadata, which is CUtensorMapSwizzle


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
    """One launch of ``kernel`` on CPU tensors.

    Args:
        kernel: A ``@triton.jit`` function.
        grid: One to three extents.
        *args: Its arguments in order: CPU tensors (or `Fresh`), tensor descriptors, ints, floats, bools, None.
        target: Compute capability to compile for: 80 or 90.
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
        ValueError: The target is neither 80 nor 90.
        TypeError: An argument is missing or of a type that a kernel can't take.
        Fault: As `Module.launch`.
    """
    fresh = [argument.tensor for argument in args if isinstance(argument, Fresh)]
    plain = [argument.tensor if isinstance(argument, Fresh) else argument for argument in args]
    with emulated(target, seed=seed, strict=strict, resident=resident, trace=trace, fresh=fresh) as reports:
        kernel[tuple(grid)](*plain, num_warps=num_warps, num_stages=num_stages, **constexprs)
    return reports[-1]


def ptx(kernel: Any, target: int = 80) -> list[str]:
    """The PTX of every specialisation of ``kernel`` that was emulated so far, to read or to `load`.

    Args:
        kernel: A ``@triton.jit`` function.
        target: The compute capability it was compiled for.
    """
    device = _device(target)
    if device not in kernel.device_caches:
        return []
    return [compiled.asm["ptx"] for compiled in kernel.device_caches[device][0].values()]


@contextmanager
def emulated(
    target: int = 80,
    *,
    seed: int = 0,
    strict: bool = True,
    resident: int = 4,
    trace: Callable[[str], None] | None = None,
    fresh: Iterable[torch.Tensor] = (),
    multiprocessors: int | None = None,
) -> Iterator[list[Report]]:
    """Within it, every launch of a Triton kernel takes CPU tensors and is emulated.

    Args:
        target: Compute capability to compile for: 80 or 90.
        seed: As for `Module.launch`.
        strict: As for `Module.launch`.
        resident: As for `Module.launch`.
        trace: As for `Module.launch`.
        fresh: Tensors whose bytes count as never written.
        multiprocessors: What kernels are told of the device; that of an A100 or H100 if None.

    Yields:
        A list to which each launch appends its report.

    Raises:
        ValueError: The target is neither 80 nor 90.
    """
    if target not in _DEVICES:
        raise ValueError(f"target is {target!r}, expected one of {', '.join(map(str, _DEVICES))}")
    options = {"seed": seed, "strict": strict, "resident": resident, "trace": trace}
    addresses = frozenset(tensor.data_ptr() for tensor in fresh)
    standing_in = _Driver(target, multiprocessors or _DEVICES[target][1], addresses, options)
    with active(standing_in):
        yield standing_in.reports


@contextmanager
def active(standing_in: object) -> Iterator[None]:
    """Within it, `standing_in` is Triton's driver. The one before may not exist yet, and is not made to."""
    from triton.runtime import driver

    before = driver._active
    driver.set_active(standing_in)
    try:
        yield
    finally:
        driver._active = before


def _device(target: int) -> tuple[str, int]:
    return "emulator", target  # Triton keeps compiled kernels by device


class _Driver:
    """What Triton asks of a GPU's driver, and launches that go to the emulator."""

    def __init__(self, target: int, multiprocessors: int, fresh: frozenset[int], options: dict[str, Any]) -> None:
        self.target = target
        self.multiprocessors = multiprocessors
        self.fresh = fresh
        self.options = options
        self.reports: list[Report] = []
        self.utils = self

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.target, 32)

    def get_current_device(self) -> tuple[str, int]:
        return _device(self.target)

    def get_current_stream(self, device: object) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_properties(self, device: object) -> dict[str, int]:
        return {"max_shared_mem": _DEVICES[self.target][0], "multiprocessor_count": self.multiprocessors}

    def load_binary(self, name: str, cubin: bytes, shared: int, device: object) -> tuple[None, int, int, int, int]:
        return None, 1, 0, 0, 1024  # module, function, registers, spills, most threads of a block

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        """A compiled kernel's launcher. Triton keeps it, so it asks for the driver that is active when it is called."""

        def launch(x: int, y: int, z: int, *rest: Any) -> None:
            from triton.runtime import driver

            arguments = rest[6:]  # after stream, function, metadata twice, and two hooks
            driver.active.emulate(source, metadata, (x, y, z), arguments)

        return launch

    def emulate(self, source: Any, metadata: Any, grid: tuple[int, int, int], arguments: Sequence[Any]) -> None:
        if 0 in grid:
            return
        kept = source.fn.device_caches[self.get_current_device()][0].values()
        (text,) = {compiled.asm["ptx"] for compiled in kept if compiled.metadata is metadata}
        module = _module(text)
        kernel = module.kernels[metadata.name]
        values: list[Any] = []
        descriptors = iter(getattr(metadata, "tensordesc_meta", None) or ())
        for argument, kind in zip(arguments, source.signature.values(), strict=True):
            if kind == "constexpr":
                continue
            if kind.startswith("tensordesc"):
                values += _descriptor(argument, next(descriptors, None))
            else:
                values.append(float(argument) if kind == "fp32" else argument)
        values = [Fresh(v) if isinstance(v, torch.Tensor) and v.data_ptr() in self.fresh else v for v in values]
        blocks = grid[0] * grid[1] * grid[2] * metadata.num_ctas
        for size in (metadata.global_scratch_size, metadata.profile_scratch_size):
            values.append(Fresh(torch.empty(size * blocks, dtype=torch.uint8)) if size else 0)
        report = module.launch(
            kernel.name,
            (grid[0] * metadata.num_ctas, *grid[1:]),
            kernel.block or (32 * metadata.num_warps,),
            values,
            shared=metadata.shared,
            cluster=(metadata.num_ctas,),
            ignore=_ACCEPTED,
            **self.options,
        )
        self.reports.append(report)


def _descriptor(descriptor: Any, made: dict[str, Any] | None) -> list[Any]:
    """A ``TensorDescriptor`` as the parameters it becomes: a tensor map on sm_90, a pointer below, and its geometry."""
    geometry = [*descriptor.shape, *descriptor.strides]
    flags = [descriptor.padding == "nan"]
    if hasattr(descriptor, "round_f32_to_tf32"):  # since Triton 3.8
        flags.append(descriptor.round_f32_to_tf32)
    if made is None:
        return [descriptor.base, *geometry, *flags, *geometry]
    if made.get("is_im2col") or getattr(descriptor, "round_f32_to_tf32", False):
        raise TypeError("a tensor descriptor is im2col or rounds to TF32, expected one that copies boxes as they are")
    view = descriptor.base.as_strided(descriptor.shape, descriptor.strides)
    tensor_map = TensorMap.tiled(view, made["block_size"], swizzle=_SWIZZLES[made["swizzle"]], fill_nan=flags[0])
    return [tensor_map, *geometry]


@lru_cache(maxsize=256)
def _module(text: str) -> Module:
    return load(text)
