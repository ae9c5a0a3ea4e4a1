"""Races: all contenders on one problem in alternating rounds, after parity, as rows of the record."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from functools import cache
from typing import Any

import torch
from problems import Problem
from settings import DEVICE, ROUNDS

from fastres.backends import BackendError
from fastres.measure import memory, results, roofline, timing
from fastres.measure.compare import FAILED, OK, SKIPPED, compare
from fastres.measure.contenders import Forward, use_best_settings
from fastres.measure.parity import ParityError, check
from fastres.measure.processes import one_line
from fastres.measure.workload import Workload

Rows = dict[str, dict[str, Any]]  # by contender


@cache
def ceilings(dtype: torch.dtype) -> roofline.Ceilings:
    """This device's, measured once a session."""
    return roofline.ceilings(DEVICE, dtype)


@cache
def problem_race(make: Callable[..., Problem], *arguments: Any, name: str, dtype: torch.dtype) -> Rows:
    """A race in this process on `make(*arguments, dtype, DEVICE)`."""
    use_best_settings()
    problem = make(*arguments, dtype, DEVICE)
    shape = {
        "batch": problem.batch or len(problem.expected64),
        "size": 224,
        "dtype": results.dtype_name(dtype),
        "device": str(DEVICE),
    }
    costs = results.cost_fields(problem.costs, ceilings(dtype))
    timer = timing.timer_for(DEVICE)
    rows: Rows = {}
    samplers = {}
    with nullcontext() if problem.train else torch.inference_mode():
        for contender, build in problem.builds.items():
            row = rows[contender] = {"name": name, **shape, "contender": contender, "status": OK, "reason": ""}
            row |= {"parity": None, "calls_per_sample": 0, "samples": [], "memory": {}, **costs}
            try:
                forward = build()
                row["parity"] = asdict(check(forward(), problem.expected64, problem.baseline))
                row["memory"] = {"tensor_bytes": memory.peak_bytes(forward, DEVICE)}
                row["calls_per_sample"] = timing.warm_up(forward, timer, DEVICE)
                samplers[contender] = _sampler(timer, forward, row["calls_per_sample"])
            except ParityError as error:
                row |= {"status": FAILED, "reason": f"wrong result, so no time: {error}"}
            except BackendError as error:
                row |= {"status": SKIPPED, "reason": str(error)}
            except RuntimeError as error:
                row |= {"status": FAILED, "reason": one_line(error)}
        for contender, samples in timing.alternate(samplers, ROUNDS).items():
            rows[contender]["samples"] = samples
    del problem, samplers
    gc.collect()
    return rows


@cache
def model_race(workload: Workload, names: tuple[str, ...]) -> Rows:
    """A race on a whole model: on a CPU, every contender in a process of its own."""
    limits = ceilings(workload.dtype)
    return {row.contender: results.model_row(row, limits) for row in compare(workload, names, ROUNDS)}


def _sampler(timer: timing.Timer, forward: Forward, calls: int) -> Callable[[], float]:
    return lambda: timer(forward, calls)
