"""Measures the candidate tiles of every problem that a model poses to the Triton kernels, on the device at hand."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .. import tuning
from ..tuning import Problem, Run, Tile
from .timing import Timer, alternate, warm_up


@dataclass(frozen=True)
class Measured:
    """One problem: the tile that `fastres.tuning` knew, the fastest one, and both medians in seconds."""

    problem: Problem
    numbers: str
    known: Tile
    fastest: Tile
    known_seconds: float
    fastest_seconds: float


@contextmanager
def measuring(timer: Timer, rounds: int, report: Callable[[Measured], None]) -> Iterator[None]:
    """Within it, each problem that a kernel is launched for is measured when it is first seen, and `report`ed.

    Every candidate is compiled, its result held against the known tile's, and only then timed, all taking turns. One
    that asks for more than the device has is left out. Raises RuntimeError where a tile changes the result.
    """
    seen: dict[tuple[Problem, str], Tile] = {}

    def choose(problem: Problem, numbers: str, device: torch.device, run: Run) -> Tile:
        if (problem, numbers) not in seen:
            measured = _measure(problem, numbers, device, run, timer, rounds)
            seen[problem, numbers] = measured.fastest
            report(measured)
        return seen[problem, numbers]

    with tuning.asking(choose):
        yield


def _measure(problem: Problem, numbers: str, device: torch.device, run: Run, timer: Timer, rounds: int) -> Measured:
    from triton.runtime.errors import OutOfResources

    known = tuning.known(problem, numbers, device)
    expected = run(tile=known)
    tiles = [known]
    for tile in tuning.candidates(problem, numbers, tuning.architecture(device)):
        if tile != known:
            try:
                _check(problem, tile, run(tile=tile), expected, numbers)
            except OutOfResources:
                continue
            tiles.append(tile)
    calls = warm_up(partial(run, tile=known), timer, device)
    samples = alternate(
        {str(i): partial(timer, partial(run, tile=tile), calls) for i, tile in enumerate(tiles)}, rounds
    )
    seconds = [statistics.median(samples[str(i)]) for i in range(len(tiles))]
    best = min(range(len(tiles)), key=seconds.__getitem__)
    return Measured(problem, numbers, known, tiles[best], seconds[0], seconds[best])


def _check(problem: Problem, tile: Tile, result: Tensor, expected: Tensor, numbers: str) -> None:
    """Two tiles differ by the order of a sum in float32 and one rounding; TF32 rounds its operands alike in both."""
    scale = expected.abs().max().item()
    terms = problem.m if problem.family == "wgrad" else problem.c * problem.taps
    allowed = 4 * max(torch.finfo(result.dtype).eps, terms * 2.0**-24) * scale
    if not (error := (result.float() - expected.float()).abs().max().item()) <= allowed:
        raise RuntimeError(f"{problem.key()} in {numbers}: {tile} is off by {error:.3e}, more than {allowed:.3e}")
