"""The record of a profile: a model's steps one by one, each plan of each, the whole model, its memory and launches.

Steps of one problem are measured once. Everything is checked against the float64 oracle before it is timed, and the
plans of a step and the library's call take turns in one process, on a GPU as CUDA graphs.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import files
from . import contenders, kernels, memory, results, roofline, timing, traffic
from .compare import FAILED, OK, PEER_FACTOR, Progress, compare
from .parity import FACTOR, ParityError, check
from .processes import one_line
from .session import Session
from .traffic import Step
from .variants import LIBRARY, Concrete, concrete
from .workload import Workload, prepare

KIND = "profile"
SAMPLE_SECONDS = {"cpu": 0.03, "cuda": 0.01}  # of a step: it is the sum over many that counts
TRACED_FORWARDS = 3


@dataclass(frozen=True)
class Settings:
    """What to profile: a workload, the backend asked for ("" for none), and how long to look."""

    workload: Workload
    backend: str = ""
    rounds: int = timing.ROUNDS
    seconds: float = 0  # to stay near on a busy machine; 0: no limit
    threads: int | None = None


def profile(settings: Settings, trace: Path | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Profiles and returns the record, of kind "profile"; a Chrome trace of some forwards goes to `trace`.

    Beside the fields of `results.record`, "rows" being the whole model beside PyTorch's:

        problems   each distinct step: "kind", "layers", "flops", fewest "bytes", "roofline_seconds"; "backend" and
                   "reason"; "plan", the plan under which the model runs it; "composed", fusions that the backend makes
                   of several calls; "variants" by plan and for the library: "status", "reason", "parity", "samples"
                   in seconds a call, "kernels" with the tiles of Triton's
        steps      in order: "name", and its "problem", an index
        plans      by plan and bound, predicted from shapes and ceilings: "kernels", "flops", "bytes", "seconds"
        memory     (microseconds, bytes alive) of a forward
        launches   of a forward: kernels with "name", "start" and "duration" in microseconds; None on a CPU

    Raises BackendError where the backend asked for cannot run the model, and what PyTorch raises on the workload.
    """
    w, progress = settings.workload, progress or Progress()
    begin = time.monotonic()
    contenders.use_best_settings()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    progress.step("this device's ceilings")
    ceilings = roofline.ceilings(w.device, w.dtype)
    steps = traffic.steps(w.model, w.batch, w.size)
    distinct = list(dict.fromkeys(step.problem() for step in steps))
    fastres = f"{contenders.FASTRES}:{settings.backend}" if settings.backend else contenders.FASTRES
    end = begin + settings.seconds if settings.seconds else float("inf")
    problems = []
    for i, step in enumerate(distinct):
        progress.step(next(s.name for s in steps if s.problem() == step))
        now = time.monotonic()
        problems.append(_race(step, settings, ceilings, now + (end - now) / (len(distinct) - i + 2)))
        progress.sample()
    names = ["eager-channels-last", fastres]
    rows = compare(w, names, settings.rounds, settings.threads, end, Progress(progress.step))
    progress.step("a forward's memory and launches")
    session = Session(fastres, prepare(w))
    try:
        with kernels.written_to(2):  # where the profiler says that it finds no GPU
            found = _forward(session, w.device)
            if trace is not None:
                save_trace(session, trace)
    finally:
        session.close()
    how = {"backend": settings.backend, "rounds": settings.rounds, "seconds": settings.seconds}
    described = _place(w) | how | {"threads": torch.get_num_threads()}
    model_rows = [results.model_row(row, ceilings) for row in rows]
    record = results.record(KIND, model_rows, {results.dtype_name(w.dtype): ceilings}, described)
    return record | {
        "problems": problems,
        "steps": [{"name": step.name, "problem": distinct.index(step.problem())} for step in steps],
        "plans": traffic.summary(steps, w.dtype, ceilings),
        **found,
    }


def failures(record: dict[str, Any]) -> list[str]:
    """What failed, one line each."""
    of_steps = [
        f"{step['name']}, {name}: {variant['reason']}"
        for step in record["steps"]
        for name, variant in record["problems"][step["problem"]]["variants"].items()
        if variant["status"] == FAILED
    ]
    return of_steps + [f"{row['name']}, {row['contender']}: {row['reason']}" for row in results.failures(record)]


def _place(w: Workload) -> dict[str, Any]:
    dtype = results.dtype_name(w.dtype)
    return {"model": w.model, "batch": w.batch, "size": w.size, "dtype": dtype, "device": str(w.device)}


def _race(step: Step, settings: Settings, ceilings: roofline.Ceilings, until: float) -> dict[str, Any]:
    """The step's variants: parity, then alternating rounds."""
    w = settings.workload
    cost = step.best(w.dtype)
    with torch.inference_mode():
        made = concrete(step, w.dtype, w.device, settings.backend)
        variants = {name: _variant(made, name, w.device) for name in made.calls}
        timer = timing.timer_for(w.device)
        samplers = {}
        for name, variant in variants.items():
            if variant["status"] == OK:
                calls = timing.warm_up(made.calls[name], timer, w.device, SAMPLE_SECONDS[w.device.type])
                variant["calls_per_sample"] = calls
                samplers[name] = partial(timer, made.calls[name], calls)
        gc.collect()
        gc.disable()
        try:
            samples = timing.alternate(samplers, settings.rounds, until)
        finally:
            gc.enable()
        for name in samples:
            variants[name]["samples"] = samples[name]
    return {
        "kind": step.kind,
        "x": step.x,
        "out": step.out,
        "layers": [_layer(layer) for layer in step.layers],
        "flops": cost.flops,
        "bytes": cost.bytes,
        "roofline_seconds": ceilings.seconds([cost]),
        "backend": made.backend,
        "reason": made.reason,
        "plan": made.plan,
        "composed": made.composed,
        "variants": variants,
    }


def _layer(layer: roofline.Layer) -> dict[str, Any]:
    fields = asdict(layer)
    del fields["name"]
    return fields


def _variant(made: Concrete, name: str, device: torch.device) -> dict[str, Any]:
    """Its parity and kernels, and no time yet."""
    row: dict[str, Any] = {"status": OK, "reason": "", "parity": None, "kernels": [], "samples": []}
    call = made.calls[name]
    try:
        made.restore()
        factor = PEER_FACTOR if name == LIBRARY else FACTOR
        row["parity"] = asdict(check(call(), made.expected64, made.baseline, factor))
        row["kernels"] = kernels.names(call, device) + made.tiles.get(name, [])
    except ParityError as error:
        row |= {"status": FAILED, "reason": f"wrong result, so no time: {error}"}
    except RuntimeError as error:
        row |= {"status": FAILED, "reason": one_line(error)}
    return row


def _forward(session: Session, device: torch.device) -> dict[str, Any]:
    """Memory over time and launches of one forward that is warm."""
    with torch.inference_mode():
        for _ in range(timing.WARM_UP_CALLS):
            session.forward()
        found = memory.timeline(session.forward, device)
        launched = kernels.launches(session.forward, device)
    return {"memory": found, "launches": [asdict(launch) for launch in launched] if device.type == "cuda" else None}


def save_trace(session: Session, path: Path) -> None:
    """Writes a Chrome trace of TRACED_FORWARDS forwards, whole or not at all. Raises OSError where it cannot."""
    from torch.profiler import ProfilerActivity, record_function
    from torch.profiler import profile as torch_profile

    cuda = session.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    with torch.inference_mode(), torch_profile(activities=activities, record_shapes=True, acc_events=True) as profiler:
        for i in range(TRACED_FORWARDS):
            with record_function(f"forward {i + 1}"):
                session.forward()
        if cuda:
            torch.cuda.synchronize(session.device)
    with files.replacing(path, ".json.gz" if path.suffix == ".gz" else ".json") as temporary:
        profiler.export_chrome_trace(str(temporary))


def round_sums(record: dict[str, Any], plan: str) -> list[float]:
    """By round, the seconds of all steps under `plan`, each with the fusions that its backend has; of the library's
    calls for `variants.LIBRARY`. Empty where a step has no time."""
    found = [_samples(record["problems"][step["problem"]], plan) for step in record["steps"]]
    return [sum(of_round) for of_round in zip(*found, strict=False)]


def _samples(problem: dict[str, Any], plan: str) -> Sequence[float]:
    return problem["variants"][variant_of(problem, plan)]["samples"]


def variant_of(problem: dict[str, Any], plan: str) -> str:
    """Which variant runs the step under `plan`: the last fusion up to it that the step has and its backend makes."""
    if plan == LIBRARY:
        return LIBRARY
    level = traffic.PLANS.index(plan)
    return [name for name in problem["variants"] if name != LIBRARY and traffic.PLANS.index(name) <= level][-1]
