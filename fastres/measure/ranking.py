"""Times the backends that can run each problem of a model, on the device at hand: which is the fastest?"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from ..backends import BackendError, ranking, registry
from ..backends.registry import Choice
from ..block import ConvBN
from ..selftest import Case, Convolution, Posed
from .parity import ParityError
from .timing import Timer, alternate, warm_up

DISTINCT = 2  # images that differ: the oracle is computed for these
_OPERATORS = {
    ranking.CONV: "conv_bn_act",
    ranking.RESIDUAL: "conv_bn_act",
    ranking.PROJECTION: "projection",
    ranking.STEM: "stem",
    ranking.STEM_UINT8: "stem_uint8",
}


@dataclass(frozen=True)
class Problem:
    """One problem of the resolver: its key in `backends.ranking`, its batch, and the case that poses it."""

    key: str
    batch: int
    case: Case


@dataclass(frozen=True)
class Ranked:
    """One problem measured: seconds by backend, the fastest first, and why others were left out."""

    problem: Problem
    seconds: dict[str, float]
    left_out: dict[str, str]


def problems(choices: Iterable[Choice], dtype: torch.dtype) -> Iterator[Problem]:
    """The distinct problems among the resolver's choices of one forward. A stem is posed for 8-bit pixels, too."""
    seen: set[str] = set()
    listed = [choice for choice in choices if choice.layer is not None]
    for choice, following in zip(listed, [*listed[1:], None], strict=True):
        assert choice.layer is not None
        shortcut = None
        if choice.operator == ranking.PROJECTION and following is not None and following.layer is not None:
            shortcut = _geometry(following.x_shape, following.layer)
        for operator in (choice.operator, *([ranking.STEM_UINT8] if choice.operator == ranking.STEM else [])):
            key = ranking.key(operator, choice.x_shape, choice.layer)
            if operator in _OPERATORS and key not in seen:
                seen.add(key)
                geometry, residual = _geometry(choice.x_shape, choice.layer), operator == ranking.RESIDUAL
                case = Case(_OPERATORS[operator], geometry, dtype, residual=residual, shortcut=shortcut)
                yield Problem(key, choice.x_shape[0], case)


def measure(problem: Problem, device: torch.device, timer: Timer, rounds: int) -> Ranked:
    """Every backend of `auto` that is available and runs the problem: its result is checked, and only then timed."""
    posed = Posed(problem.case, device, problem.batch)
    calls = {}
    left_out = {}
    for name in ranking.ORDER.get(device.type, ()):
        try:
            registry.get(name)
            posed.check(posed.call(name))
        except BackendError as error:
            left_out[name] = str(error)
        except ParityError as error:
            left_out[name] = f"wrong: {error}"
        else:
            calls[name] = partial(posed.call, name)
    samplers = {name: partial(timer, call, warm_up(call, timer, device)) for name, call in calls.items()}
    medians = {name: statistics.median(samples) for name, samples in alternate(samplers, rounds).items()}
    return Ranked(problem, dict(sorted(medians.items(), key=lambda pair: pair[1])), left_out)


def _geometry(x: tuple[int, ...], layer: ConvBN) -> Convolution:
    (n, c, h, w), (k, _, r, _) = x, layer.weight.shape
    (stride, _), (padding, _), (dilation, _), groups = layer.geometry
    return Convolution(min(n, DISTINCT), c, h, w, k, r, stride, padding, dilation, groups)
