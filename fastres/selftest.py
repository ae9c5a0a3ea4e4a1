"""The cases that verify a backend's kernels on a device: the same for an installed `fastres selftest` and for pytest.

Every case runs one fused operator on the backend by name, with NaN in the memory that its output may land in, and holds
the result against the float64 oracle on the CPU by `measure.parity`'s rule; or a block's training step, forward and
backward. On a GPU, float32 is two arithmetics: as it is, and TF32, each with PyTorch's switch set to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from . import ops, reference, tf32  # noqa: F401  ops registers torch.ops.fastres
from .backends import registry, verification
from .block import STEM_POOL, Block, ConvBN, Geometry, Norm, TrainBlock, flatten
from .measure import training_parity
from .measure.parity import ParityError, check, pytorchs_own
from .pixels import MEAN, STD, Pixels

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
PASSED, FAILED, DECLINED = "passed", "failed", "declined"


@dataclass(frozen=True)
class Convolution:
    """A convolution's problem: [n, c, h, w] to `k` channels by an r x r filter."""

    n: int
    c: int
    h: int
    w: int
    k: int
    r: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1

    def __str__(self) -> str:
        text = f"{self.n}x{self.c}x{self.h}x{self.w} {self.r}x{self.r} to {self.k}"
        extras = {"stride": self.stride, "dilation": self.dilation, "groups": self.groups}
        return text + "".join(f", {name} {value}" for name, value in extras.items() if value != 1)


# Sizes that no tile divides, more than one tile each way at both strides, images of 7 and of 1, channels that vector
# loads do not fit, and every kind of layer that the family has.
GEOMETRIES = (
    Convolution(2, 64, 15, 17, 256),
    Convolution(1, 256, 7, 7, 64),
    Convolution(3, 130, 9, 9, 72),
    Convolution(2, 96, 15, 15, 200, stride=2),
    Convolution(5, 32, 1, 1, 48),
    Convolution(1, 64, 14, 13, 64, 3, padding=1),
    Convolution(2, 48, 15, 17, 136, 3, 2, 1),
    Convolution(2, 40, 9, 7, 24, 3, padding=2, dilation=2),
    Convolution(1, 5, 6, 5, 7, 3, padding=1),
    Convolution(1, 512, 7, 7, 96, 3, padding=1),
    Convolution(2, 3, 33, 31, 64, 7, 2, 3),
    Convolution(2, 128, 8, 9, 128, 3, 1, 1, groups=32),
    Convolution(1, 96, 9, 9, 192, 3, 2, 1, groups=12),
)
PROJECTIONS = (
    (Convolution(2, 64, 15, 14, 256), Convolution(2, 64, 15, 14, 256)),
    (Convolution(2, 48, 7, 7, 136), Convolution(2, 40, 13, 14, 136, stride=2)),
    (Convolution(1, 24, 9, 9, 64, 3, padding=1), Convolution(1, 16, 17, 17, 64, stride=2)),
)
STEMS = (Convolution(2, 3, 64, 48, 64, 7, 2, 3), Convolution(1, 3, 33, 35, 64, 7, 2, 3))
# A stage of a projection block and two identity blocks: the second's residual is memory that may be written over.
STAGES = (Convolution(2, 24, 9, 11, 64, 3, stride=2, padding=1),)
# Blocks that train, by the geometry of their 3x3 (the basic one's both, the bottlenecks' between two 1x1), with a
# projection where the stride or the channels ask for one; and the stem.
TRAINED = (
    ("train_bottleneck", Convolution(2, 24, 9, 11, 64, 3, 2, 1)),
    ("train_basic", Convolution(3, 40, 7, 9, 40, 3, padding=1)),
    ("train_bottleneck", Convolution(2, 64, 6, 7, 64, 3, padding=1, groups=8)),
    ("train_stem", Convolution(2, 3, 21, 30, 64, 7, 2, 3)),
)
HEADS = (Convolution(3, 512, 7, 7, 1000), Convolution(1, 2048, 3, 5, 10))


@dataclass(frozen=True)
class Case:
    """One run of one operator. `special` plants NaN and infinities in the input; with `tf32`, float32 is TF32."""

    operator: str
    geometry: Convolution
    dtype: torch.dtype
    relu: bool = True
    residual: bool = False
    shortcut: Convolution | None = None
    special: bool = False
    tf32: bool = False

    @property
    def trains(self) -> bool:
        return self.operator.startswith("train_")

    def __str__(self) -> str:
        flags = [name for name in ("relu", "residual", "special") if getattr(self, name)]
        shortcut = "" if self.shortcut is None else f" and {self.shortcut}"
        numbers = "tf32" if self.tf32 else str(self.dtype).removeprefix("torch.")
        return f"{self.operator} {numbers} {self.geometry}{shortcut} [{' '.join(flags)}]"


@dataclass(frozen=True)
class Outcome:
    """What became of a case: PASSED with the errors, FAILED with what is wrong, or DECLINED with the reason."""

    case: Case
    status: str
    detail: str


def cases(dtypes: Sequence[torch.dtype] = FLOATS, device: str = "cpu") -> Iterator[Case]:
    """Every case for a type of device, the quick and common first; on "cuda", those of convolutions in TF32 as well."""
    for dtype in dtypes:
        yield from _of_dtype(dtype)
        if dtype == torch.float32 and device == "cuda":
            yield from (replace(case, tf32=True) for case in _of_dtype(dtype) if case.operator != "head")


def _of_dtype(dtype: torch.dtype) -> Iterator[Case]:
    for geometry, relu, residual in product(GEOMETRIES, (True, False), (False, True)):
        yield Case("conv_bn_act", geometry, dtype, relu, residual)
    for geometry, shortcut in PROJECTIONS:
        yield Case("projection", geometry, dtype, shortcut=shortcut)
    for geometry in STEMS:
        yield Case("stem", geometry, dtype)
        yield Case("stem_uint8", geometry, dtype)
    for geometry in STAGES:
        yield Case("stage", geometry, dtype)
    for operator, geometry in TRAINED:
        yield Case(operator, geometry, dtype)
    for geometry in HEADS:
        yield Case("head", geometry, dtype, relu=False)
    yield Case("conv_bn_act", GEOMETRIES[0], dtype, residual=True, special=True)
    yield Case("conv_bn_act", GEOMETRIES[6], dtype, relu=False, special=True)


def run(case: Case, backend: str, device: torch.device) -> Outcome:
    """Runs one case on `backend`, whatever the resolver would choose.

    Raises BackendError where the backend is not available at all; everything else is in the outcome.
    """
    with tf32.allowed(case.tf32) if case.dtype == torch.float32 else nullcontext():
        return (_run_training if case.trains else _run)(case, backend, device)


def _run_training(case: Case, backend: str, device: torch.device) -> Outcome:
    if registry.get(backend).steps() is None:
        return Outcome(case, DECLINED, f"backend {backend!r} does not train")
    given = _trained(case)
    expected = training_parity.plain(*(_to(value, torch.device("cpu"), torch.float64) for value in given))
    block, x, gradient = (
        _to(value, device, dtype) for value, dtype in zip(given, (torch.float32, case.dtype, case.dtype), strict=True)
    )
    with pytorchs_own():
        baseline = training_parity.plain(block, x, gradient)
    torch.full_like(baseline["output"][0], float("nan"))  # as below
    try:
        found = training_parity.fused(block, x, gradient, backend)
        return Outcome(case, PASSED, training_parity.compare(found, expected, baseline))
    except registry.BackendError as error:
        return Outcome(case, DECLINED, str(error))
    except (RuntimeError, ParityError) as error:
        return Outcome(case, FAILED, str(error).splitlines()[0])


def _run(case: Case, backend: str, device: torch.device) -> Outcome:
    problem = [_to(value, device, case.dtype) for value in _problem(case)]
    expected = _reference(case, [_to(value, torch.device("cpu"), torch.float64) for value in problem], torch.float64)
    with torch.no_grad():
        try:
            with pytorchs_own():
                baseline = _reference(case, problem, case.dtype)
        except RuntimeError as error:
            return Outcome(case, DECLINED, f"PyTorch cannot run it: {str(error).splitlines()[0]}")
        torch.full_like(baseline, float("nan"))  # freed at once: where the allocator will put the output
        try:
            result = _operator(case, problem, backend)
        except registry.BackendError as error:
            return Outcome(case, DECLINED, str(error))
        except RuntimeError as error:
            return Outcome(case, FAILED, str(error).splitlines()[0])
    try:
        return Outcome(case, PASSED, str(check(result, expected, baseline)))
    except ParityError as error:
        return Outcome(case, FAILED, str(error))


class Posed:
    """A case on a device for measuring: its images, repeated to a batch of `batch`, and what the result should be."""

    def __init__(self, case: Case, device: torch.device, batch: int) -> None:
        self.case, self._n = case, case.geometry.n
        problem = [_to(value, device, case.dtype) for value in _problem(case)]
        exact = [_to(value, torch.device("cpu"), torch.float64) for value in problem]
        self._expected = _reference(case, exact, torch.float64)
        with pytorchs_own():
            self._baseline = _reference(case, problem, case.dtype)
        repeats = -(-batch // self._n)
        self._problem = [v.repeat(repeats, 1, 1, 1)[:batch] if isinstance(v, Tensor) else v for v in problem]
        self._problem = [_nhwc(v) if isinstance(v, Tensor) else v for v in self._problem]

    def call(self, backend: str) -> Tensor:
        """The operator's result on `backend`, whatever the resolver would choose."""
        return _operator(self.case, self._problem, backend)

    def check(self, result: Tensor) -> None:
        """Raises ParityError unless the first and the last image of each kind are right."""
        batch, n = len(result), self._n
        check(result[:n], self._expected, self._baseline)
        last = torch.arange(batch - n, batch) % n
        check(result[-n:], self._expected[last], self._baseline[last.to(self._baseline.device)])


def verify(backend: str, device: torch.device, outcomes: Sequence[Outcome]) -> list[verification.Record]:
    """The records that `outcomes`, those of every case, amount to: of inference and of training, each where all of its
    cases passed, kernels of ours on a GPU.
    """
    fingerprint = registry.get(backend).fingerprint()
    if fingerprint is None or device.type != "cuda":
        return []
    records = []
    for work in (verification.INFERENCE, verification.TRAINING):
        statuses = {outcome.status for outcome in outcomes if outcome.case.trains == (work == verification.TRAINING)}
        if PASSED in statuses and FAILED not in statuses:
            records.append(verification.Record(backend, verification.architecture(device), fingerprint, work))
    return records


def layer(geometry: Convolution, generator: torch.Generator) -> ConvBN:
    """A float32 convolution and BatchNorm with nothing at its default: gammas negative and zero, variances tiny."""
    g = geometry

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device="cpu")

    gamma, var = normal(g.k) + 0.5, torch.rand(g.k, generator=generator, device="cpu") + 0.3
    gamma[::5] = 0
    weight = normal(g.k, g.c // g.groups, g.r, g.r) / (g.c // g.groups * g.r * g.r) ** 0.5
    weight[1::7] *= 1e-3
    var[1::7] = 1e-6
    vectors = normal(g.k) * 0.3, gamma, normal(g.k) * 0.3, normal(g.k) * 0.3, var, None, 1e-5
    return ConvBN(weight, *vectors, Geometry((g.stride,) * 2, (g.padding,) * 2, (g.dilation,) * 2, g.groups))


def _problem(case: Case) -> list[Any]:
    """The operator's inputs in float32: x, and by operator the layer, the residual, the second input and layer."""
    generator = torch.Generator("cpu").manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device="cpu")

    g = case.geometry
    x = normal(g.n, g.c, g.h, g.w)
    if case.operator == "stem_uint8":
        return [(x * 64 + 128).clamp(0, 255).to(torch.uint8), layer(g, generator)]
    if case.special:
        x[0, 0, 0, 0], x[-1, -1, -1, -1], x[0, 1, 2, 3] = float("nan"), float("inf"), float("-inf")
    if case.operator == "head":
        return [x, normal(g.k, g.c) / g.c**0.5, normal(g.k)]
    if case.operator == "stage":
        return [x, _blocks(g, generator)]
    first = layer(g, generator)
    if case.operator == "stem":
        return [x, first]
    if case.shortcut is not None:
        s = case.shortcut
        return [x, first, normal(s.n, s.c, s.h, s.w), layer(s, generator)]
    return [x, first, normal(*first.out_size(x)) if case.residual else None]


def _blocks(g: Convolution, generator: torch.Generator) -> list[Block]:
    """Bottlenecks: the first with `g`'s stride and a projection, two more."""
    shortcut = _projection(g, generator)
    further = replace(g, c=g.k, stride=1)
    return [Block(_bottleneck(g, generator), shortcut), *(Block(_bottleneck(further, generator), None) for _ in "12")]


def _bottleneck(g: Convolution, generator: torch.Generator) -> tuple[ConvBN, ...]:
    """1x1, `g` and 1x1: between them a quarter of the channels, or half of them in groups."""
    width = g.k // (4 if g.groups == 1 else 2)
    ends = Convolution(g.n, g.c, g.h, g.w, width), Convolution(g.n, width, g.h, g.w, g.k)
    return tuple(layer(geometry, generator) for geometry in (ends[0], replace(g, c=width, k=width), ends[1]))


def _projection(g: Convolution, generator: torch.Generator) -> ConvBN:
    return layer(Convolution(g.n, g.c, g.h, g.w, g.k, stride=g.stride), generator)


def _trained(case: Case) -> tuple[TrainBlock, Tensor, Tensor]:
    """The block, its input, and the gradient of its output: these of the case's dtype, the block in float32."""
    generator = torch.Generator("cpu").manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device="cpu").to(case.dtype)

    def bare(convolution: ConvBN) -> ConvBN:
        weight = convolution.weight.to(case.dtype).float()  # as the operator rounds it
        return convolution._replace(weight=weight, bias=None, mean=None, var=None)  # type: ignore[arg-type]

    g = case.geometry
    depth = {"train_stem": 1, "train_basic": 2, "train_bottleneck": 3}[case.operator]
    branch = _bottleneck(g, generator) if depth == 3 else tuple(layer(g, generator) for _ in range(depth))
    projected = depth > 1 and (g.stride, g.c) != (1, g.k)
    shortcut = bare(_projection(g, generator)) if projected else None
    norms, pool = (Norm.BATCH,) * (depth + projected), STEM_POOL if depth == 1 else (0, 0, 0)
    block = TrainBlock(tuple(map(bare, branch)), shortcut, norms, depth > 1 and not projected, True, pool)
    x = normal(g.n, g.c, g.h, g.w)
    if depth == 1:  # of few digits: sums are exact in every arithmetic, and no rounding decides what the pool picks
        only = block.branch[0]
        unit = only.weight.abs().amax((1, 2, 3), keepdim=True).log2().floor().exp2() / 4
        block = block._replace(branch=(only._replace(weight=(only.weight / unit).round() * unit),))
        x = x.round()
    block, size = training_parity.settled(block, x)
    return block, x, normal(*size) / 16  # in float16, a weight's gradient is to fit


def _to(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(value, ConvBN):
        return ConvBN._make(_to(field, device, dtype) if isinstance(field, Tensor) else field for field in value)
    if isinstance(value, list):
        return [_to(part, device, dtype) for part in value]
    if isinstance(value, Block | TrainBlock):
        branch = tuple(_to(part, device, dtype) for part in value.branch)
        return value._replace(branch=branch, shortcut=_to(value.shortcut, device, dtype))
    if value is None or value.dtype == torch.uint8:
        return None if value is None else value.to(device)
    return value.to(device, dtype)


def _nhwc(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _reference(case: Case, problem: list[Any], dtype: torch.dtype) -> Tensor:
    pixels = (Pixels(MEAN, STD), dtype) if case.operator == "stem_uint8" else ()
    return getattr(reference, case.operator)(*problem, *_flags(case), *pixels)


def _operator(case: Case, problem: list[Any], backend: str) -> Tensor:
    operator = getattr(torch.ops.fastres, case.operator).default
    if case.operator == "stage":
        return operator(problem[0], *flatten(problem[1]), backend)
    spread = [field for value in problem for field in (value.arguments() if isinstance(value, ConvBN) else (value,))]
    pixels = (case.dtype, MEAN, STD) if case.operator == "stem_uint8" else ()
    return operator(*spread, *_flags(case), *pixels, backend)


def _flags(case: Case) -> tuple[Any, ...]:
    return {"conv_bn_act": (case.relu,), "stem": STEM_POOL, "stem_uint8": STEM_POOL}.get(case.operator, ())
