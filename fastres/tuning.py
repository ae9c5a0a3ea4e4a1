"""Which tile a Triton kernel uses for which problem: what was measured here, what was measured by us, a heuristic.

A table is JSON, `{"version", "kernels", "tiles": {architecture: {arithmetic: {problem: tile}}}}`. `data/tuning.json`
ships with the package; `record` adds to the user's own table, which comes first and is passed over once the kernels'
source, whose digest is `kernels`, has changed. Nothing here measures, so nothing stalls a first forward.
"""

from __future__ import annotations

import functools
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import cache, files

VERSION = 1
_FILE = "tuning.json"
Run = Callable[..., torch.Tensor]  # takes `tile`
INTERPRETED = 80  # the architecture that Triton's interpreter passes for
_PACKAGE = Path(__file__).resolve().parent


class Problem(NamedTuple):
    """The implicit GEMM of one convolution: with arithmetic and architecture, what a choice depends on."""

    family: str  # "conv", "gemm", "projection" or "stem"; in training "conv_train", "dgrad" or "wgrad"
    m: int  # output pixels; "dgrad" writes the convolution's input, these of it a pass, and reads its output as c
    n: int  # output channels of a group
    c: int  # input channels of a group; of the stem: the length of a filter's row, channels times width
    taps: int  # filter height times width; of the stem: the height
    groups: int

    def key(self) -> str:
        return f"{self.family} m{self.m} n{self.n} c{self.c} taps{self.taps} groups{self.groups}"


class Tile(NamedTuple):
    """How a kernel divides its work: the tile's sides, warps a program, stages of the load pipeline.

    `group_m` is, for `gemm`, the tiles of a column that are neighbours in time; for `stem`, a program's pooled rows;
    for `wgrad`, the number of splits. There `m` and `n` are sides of the weight's gradient, and `k` counts pixels.
    """

    m: int
    n: int
    k: int
    warps: int
    stages: int
    group_m: int = 8


def architecture(device: torch.device) -> int:
    """Compute capability of a GPU, as 90 for 9.0; for the CPU, that of the GPU which Triton is told to stand in for."""
    if device.type == "cuda":
        return _gpu(device)[0]
    from triton import knobs
    from triton.runtime import driver

    return INTERPRETED if knobs.runtime.interpret else driver.active.get_current_target().arch


def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU, or of the one stood in for; 2 in the interpreter."""
    if device.type == "cuda":
        return _gpu(device)[1]
    from triton import knobs
    from triton.runtime import driver

    if knobs.runtime.interpret:
        return 2  # few, so that a persistent program walks several tiles
    return driver.active.utils.get_device_properties(driver.active.get_current_device())["multiprocessor_count"]


Chooser = Callable[[Problem, str, torch.device, Run], Tile]
_chooser: ContextVar[Chooser | None] = ContextVar("fastres_tile_chooser", default=None)


@functools.cache
def _gpu(device: torch.device) -> tuple[int, int]:
    properties = torch.cuda.get_device_properties(device)
    return 10 * properties.major + properties.minor, properties.multi_processor_count


def arithmetic(dtype: torch.dtype, tf32: bool) -> str:
    """What a product of tensors of `dtype` is computed in: its name, or "tf32" where float32 may be rounded to that."""
    return "tf32" if dtype == torch.float32 and tf32 else str(dtype).removeprefix("torch.")


def conv_tf32() -> bool:
    """Whether PyTorch lets float32 convolutions be computed in TF32, by its older switch or its newer ones."""
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:  # the newer ones were set to what the older cannot say
        return getattr(torch.backends.cudnn, "conv").fp32_precision == "tf32"  # noqa: B009  mypy knows no `conv`


def choose(problem: Problem, numbers: str, device: torch.device, run: Run) -> Tile:
    """The tile for `problem`: from the user's table, else the package's, else by `heuristic`.

    `numbers` is from `arithmetic`. `run(tile=...)` computes the problem into a new tensor: within `asking`, another
    may choose by it.
    """
    if (chooser := _chooser.get()) is not None:
        return chooser(problem, numbers, device, run)
    return known(problem, numbers, device)


def known(problem: Problem, numbers: str, device: torch.device) -> Tile:
    """What `choose` gives where nobody else is asked."""
    return _choose(problem, numbers, architecture(device), processors(device))


@contextmanager
def asking(chooser: Chooser) -> Iterator[None]:
    """Within it, and in this thread, `chooser` has `choose`'s place."""
    token = _chooser.set(chooser)
    try:
        yield
    finally:
        _chooser.reset(token)


@functools.cache
def _choose(problem: Problem, numbers: str, arch: int, multiprocessors: int) -> Tile:
    for table in _tables():
        tile = table.get(f"sm_{arch}", {}).get(numbers, {}).get(problem.key())
        if tile is not None:
            return Tile(*tile)
    return heuristic(problem, numbers, arch, multiprocessors)


def shared_memory(arch: int) -> int:
    """Bytes of shared memory that one program may use (CUDA C++ programming guide, table of compute capabilities)."""
    kib = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 110: 227, 120: 99, 121: 99}
    return kib.get(arch, 99) * 1024


def heuristic(problem: Problem, numbers: str, arch: int, multiprocessors: int) -> Tile:
    """A tile for a problem that nobody measured: as large as still gives every multiprocessor one, if it fits."""
    if problem.family == "stem":
        # 128 columns hold the 112 of a 224-pixel image; more stages only take registers, as no load is asynchronous.
        n = min(32 if numbers == "float32" else 64, _power_of_2(problem.n))
        return Tile(128, n, _power_of_2(problem.c), 8, 1)
    if problem.family == "wgrad":
        return _wgrad(problem, numbers, arch, multiprocessors)
    exact = numbers == "float32"  # computed outside the tensor cores, where operands take registers too
    backward = problem.family == "dgrad"  # its epilogue's addresses take registers as well
    least_n, most_n = (64, 64) if exact else (32, 128)
    m, n = (128 if problem.m > 64 else 64), min(most_n, _power_of_2(problem.n))
    while -(-problem.m // m) * -(-problem.n // n) * problem.groups < multiprocessors and (m > 64 or n > least_n):
        m, n = (64, n) if m > 64 else (m, n // 2)
    normalises = problem.family == "conv_train" and m == 64  # x, which takes registers too
    if normalises:
        n = min(n, 64)
    k = 16 if exact else 32 if numbers == "tf32" else 64
    while k > 32 and problem.c % k:
        k //= 2
    stages = 4 if arch in (90, 100) and not exact else 3
    while stages > 2 and _bytes(problem, m, n, k, stages, numbers, arch) > shared_memory(arch):
        stages -= 1
    many = exact or normalises or m * n >= 128 * (64 if backward and numbers == "tf32" else 128)
    return Tile(m, n, k, 8 if many else 4, stages)


def _wgrad(problem: Problem, numbers: str, arch: int, multiprocessors: int) -> Tile:
    """Columns within one tap where channels allow it; two programs a multiprocessor, splits of four steps or more."""
    exact = numbers == "float32"
    within = problem.c & -problem.c  # its largest power of two
    columns = problem.c * problem.taps
    m, n = (128 if problem.n > 64 and not exact else 64), min(128, within)
    k = 16 if exact else 32 if numbers == "tf32" else 64
    if within < 32:  # taps differ along the columns, and so do addresses and masks, which take registers
        n, k = min(64, _power_of_2(columns)), min(k, 32)
    tiles = -(-problem.n // m) * -(-columns // n) * problem.groups
    splits = max(1, min(2 * multiprocessors // tiles, problem.m // (4 * k)))
    stages = 3
    while stages > 2 and _bytes(problem, m, n, k, stages, numbers, arch) > shared_memory(arch):
        stages -= 1
    return Tile(m, n, k, 8 if m * n >= 128 * (64 if exact else 128) else 4, stages, splits)


def candidates(problem: Problem, numbers: str, arch: int) -> Iterator[Tile]:
    """Tiles worth measuring for `problem`, within the architecture's shared memory."""
    if problem.family == "stem":
        yield from (Tile(m, 64, _power_of_2(problem.c), m // 16, 1, rows) for m in (64, 128) for rows in (4, 8, 14))
        return
    half = numbers in ("bfloat16", "float16")
    sides = [(64, 32), (64, 64), (128, 32), (128, 64), (64, 128), (128, 128)]
    if half and arch >= 90:
        sides.append((128, 256))
    for m, n in sides:
        if n > max(32, _power_of_2(problem.n)):
            continue
        for k in (32, 64) if half else (16, 32):
            for stages in (2, 3, 4, 5):
                if _bytes(problem, m, n, k, stages, numbers, arch) <= shared_memory(arch):
                    tile = Tile(m, n, k, 8 if m * n >= 128 * 128 else 4, stages)
                    for splits in (1, 4, 16, 64, 256) if problem.family == "wgrad" else (tile.group_m,):
                        yield tile._replace(group_m=splits)


def _bytes(problem: Problem, m: int, n: int, k: int, stages: int, numbers: str, arch: int) -> int:
    """Shared memory of a tile, about: the pipeline's operands, one that was normalised, what moves out by TMA."""
    size = 2 if numbers in ("bfloat16", "float16") else 4
    written = 2 * m * n * size if problem.family == "gemm" and 90 <= arch < 120 else 0
    normalised = max(m, n) * k * size if problem.family in ("conv_train", "wgrad") else 0
    return (m + n) * k * size * stages + normalised + written + 1024


def record(measured: Mapping[Problem, Tile], numbers: str, arch: int) -> Path:
    """Adds measured tiles to the user's table, which `choose` asks first, and returns where it is.

    The file is replaced whole, so a reader sees the old or the new one, and what other processes added meanwhile stays.
    Raises OSError if it cannot be written.
    """
    with cache.changing(_FILE) as path:
        tiles = _read_user()
        of_arch = tiles.setdefault(f"sm_{arch}", {}).setdefault(numbers, {})
        of_arch.update({problem.key(): list(tile) for problem, tile in measured.items()})
        content = {"version": VERSION, "kernels": kernels_digest(), "tiles": tiles}
        files.write(path, json.dumps(content, indent=1))
    refresh()
    return path


def user_table() -> Path:
    """Where the user's own table is."""
    return cache.path(_FILE)


def refresh() -> None:
    """Makes `choose` read the tables anew."""
    _tables.cache_clear()
    _choose.cache_clear()


@functools.cache
def kernels_digest() -> str:
    """A digest of the Triton kernels' source, by which measurements and verifications of other kernels are told."""
    sources = sorted((_PACKAGE / "kernels").glob("*.py"))
    return hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()[:16]


@functools.cache
def _tables() -> tuple[dict[str, Any], ...]:
    packaged = _PACKAGE / "data" / _FILE
    return _read_user(), _parse(packaged.read_text(encoding="utf-8"), packaged) if packaged.is_file() else {}


def _read_user() -> dict[str, Any]:
    try:
        text = cache.read(_FILE)
    except (OSError, UnicodeDecodeError) as error:
        _warn(user_table(), error)
        return {}
    return {} if text is None else _parse(text, user_table())


def _parse(text: str, path: Path) -> dict[str, Any]:
    """The tiles of one table; none if it is of another version or other kernels, or damaged (it warns)."""
    try:
        table = json.loads(text)
        if table["version"] != VERSION or table.get("kernels", kernels_digest()) != kernels_digest():
            return {}
        for of_arch in table["tiles"].values():
            for of_dtype in of_arch.values():
                for key, tile in of_dtype.items():
                    if not all(type(side) is int and side > 0 for side in Tile(*tile)):
                        raise ValueError(f"{key}: {tile} is no tile")
        return table["tiles"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        _warn(path, error)
        return {}


def _warn(path: Path, error: Exception) -> None:
    warnings.warn(f"the tuning table {path} cannot be used ({error!r}) and is passed over", stacklevel=3)


def _power_of_2(value: int) -> int:
    return max(16, 1 << (value - 1).bit_length())
