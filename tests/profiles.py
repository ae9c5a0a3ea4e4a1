"""Records of profiles that nobody measured, for tests of what is made of records: one of a CPU, one of a GPU."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from fastres.measure import profile, results, traffic
from fastres.measure.kernels import Launch
from fastres.measure.roofline import Ceilings
from fastres.measure.variants import LIBRARY
from fastres.measure.workload import Workload

CPU_CEILINGS, GPU_CEILINGS = Ceilings(2e11, 2e10), Ceilings(8e14, 4e12)


def made_up(
    model: str = "resnet18", device: str = "cpu", composed: tuple[str, ...] = ("projection", "stem", "head")
) -> dict[str, Any]:
    """A record as `profile.profile` makes it: a step takes 1.5 times its plan's roofline, the library's call twice."""
    workload = Workload(model, 8, 224, torch.float32, torch.device(device))
    ceilings = GPU_CEILINGS if device == "cuda" else CPU_CEILINGS
    steps = traffic.steps(model, 8, 224)
    distinct = list(dict.fromkeys(step.problem() for step in steps))
    record = results.record(profile.KIND, [], {"float32": ceilings}, profile._place(workload) | {"backend": ""})
    launches = [asdict(Launch(f"kernel {i}", 12.0 * i, 10.0)) for i in range(len(steps))]
    return record | {
        "rows": [_row(workload, name, seconds) for name, seconds in (("eager-channels-last", 0.2), ("fastres", 0.1))],
        "problems": [_problem(step, ceilings, composed) for step in distinct],
        "steps": [{"name": step.name, "problem": distinct.index(step.problem())} for step in steps],
        "plans": traffic.summary(steps, torch.float32, ceilings),
        "memory": [(0.0, 4_000_000), (900.0, 9_000_000), (1800.0, 1_000_000)],
        "launches": launches if device == "cuda" else None,
    }


def _row(workload: Workload, contender: str, seconds: float) -> dict[str, Any]:
    row = {"name": workload.model, "batch": 8, "size": 224, "dtype": "float32", "device": str(workload.device)}
    row |= {"contender": contender, "status": "ok", "reason": "", "parity": None, "samples": [seconds] * 15}
    return row | {"memory": {"tensor_bytes": 9_000_000}, "flops": 10**10, "bytes": 10**8, "roofline_seconds": 0.05}


def _problem(step: traffic.Step, ceilings: Ceilings, composed: tuple[str, ...]) -> dict[str, Any]:
    plans = traffic.distinct_plans(step)
    cost = step.best(torch.float32)
    seconds = {
        plan: 1.5 * ceilings.seconds([p.cost for p in traffic.passes(step, torch.float32, plan)]) for plan in plans
    }
    seconds[LIBRARY] = 2 * ceilings.seconds([cost])
    variants = {
        name: {
            "status": "ok",
            "reason": "",
            "parity": None,
            "kernels": ["a_kernel+relu"],
            "samples": [time * (1 + i / 100) for i in range(15)],
        }
        for name, time in seconds.items()
        if name not in composed
    }
    return {
        "kind": step.kind,
        "x": step.x,
        "out": step.out,
        "layers": [profile._layer(layer) for layer in step.layers],
        "flops": cost.flops,
        "bytes": cost.bytes,
        "roofline_seconds": ceilings.seconds([cost]),
        "backend": "onednn",
        "reason": "first choice",
        "plan": [plan for plan in plans if plan not in composed][-1],
        "composed": [plan for plan in plans if plan in composed],
        "variants": variants,
    }
