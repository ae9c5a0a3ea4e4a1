"""A profile's record as tables for a terminal: steps against the roofline and the library, and what each fusion is
worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from . import results
from .compare import OK
from .profile import failures, round_sums
from .results import compact_table, spread
from .statistics import Summary, speedup, summarize
from .timing import ROUNDS
from .traffic import BOUNDS, FUSIONS, PLANS, UNFUSED
from .variants import LIBRARY


@dataclass(frozen=True)
class Line:
    """One distinct step of a record: its first name, how often the model runs it, and its times, None without one."""

    name: str
    count: int
    problem: dict[str, Any]
    time: Summary | None
    against: Summary | None  # how many times as fast as the library's call

    @property
    def roofline(self) -> float | None:
        return None if self.time is None else self.problem["roofline_seconds"] / self.time.median


@dataclass(frozen=True)
class Worth:
    """What a fusion saves, in seconds of a forward, on over off: predicted, and measured where the backend has it."""

    fusion: str
    predicted: float
    predicted_ratio: float
    saved: Summary | None
    ratio: Summary | None
    remark: str  # why there is no measurement


def lines(record: dict[str, Any]) -> list[Line]:
    counts = Counter(step["problem"] for step in record["steps"])
    names: dict[int, str] = {}
    for step in record["steps"]:
        names.setdefault(step["problem"], step["name"])
    return [_line(names[i], counts[i], problem) for i, problem in enumerate(record["problems"])]


def _line(name: str, count: int, problem: dict[str, Any]) -> Line:
    samples = problem["variants"][problem["plan"]]["samples"]
    of_library = problem["variants"][LIBRARY]["samples"]
    against = speedup(of_library, samples) if samples and of_library else None
    return Line(name, count, problem, summarize(samples) if samples else None, against)


def shape(problem: dict[str, Any]) -> str:
    """Such as "1x1 64->256, 56x56": filter, stride, channels and the size of the input's images."""
    x, weight = problem["layers"][0]["x"], problem["layers"][0]["weight"]
    if problem["kind"] == "head":
        return f"{x[1]}->{weight[0]}, {problem['x'][2]}x{problem['x'][3]}"
    layer = problem["layers"][0]
    stride = f"/{layer['stride']}" if layer["stride"] != 1 else ""
    groups = f" groups {layer['groups']}" if layer["groups"] != 1 else ""
    return f"{weight[2]}x{weight[3]}{stride}{groups} {x[1]}->{weight[0]}, {x[2]}x{x[3]}"


def worths(record: dict[str, Any]) -> list[Worth]:
    """What each fusion is worth, in the order of the plans."""
    found = []
    for before, fusion in zip(PLANS, FUSIONS, strict=False):
        off, on = record["plans"][before]["seconds"], record["plans"][fusion]["seconds"]
        having = [p for p in record["problems"] if fusion in (*p["variants"], *p["composed"])]
        backends = sorted({p["backend"] for p in having if fusion in p["composed"]})
        measured = any(fusion in p["variants"] for p in having)
        times = [round_sums(record, plan) for plan in (before, fusion)] if measured else [[], []]
        remark = "" if measured else f"{' and '.join(backends)}: made of several calls" if backends else "none in it"
        saved = ratio = None
        if all(times):
            rounds = min(map(len, times))
            slow, fast = (values[:rounds] for values in times)
            ratio, saved = speedup(slow, fast), summarize([a - b for a, b in zip(slow, fast, strict=True)])
        elif measured:
            remark = "a step has no time"
        found.append(Worth(fusion, off - on, off / on, saved, ratio, remark))
    return found


def tables(record: dict[str, Any], wide: bool = True) -> RenderableType:
    """The record for reading. What is not `wide`, 170 columns, goes without shapes, rates and kernels."""
    place = record["settings"]
    title = f"{place['model']}, batch {place['batch']}, {place['size']} px, {place['dtype']}, {place['device']}"
    parts: list[RenderableType] = [Text(results.heading(record)), "", _steps(record, title, wide)]
    parts += [Text(text) for text in _remarks(record)]
    parts += ["", _fusions(record, wide), *results.model_tables(record["rows"], wide)]
    return Group(*parts)


def _steps(record: dict[str, Any], title: str, wide: bool) -> Table:
    table = compact_table(title)
    library = "cuDNN" if record["settings"]["device"].startswith("cuda") else "PyTorch"
    headers = ["step", "x"]
    headers += ["shape", "GFLOP", "MB"] if wide else []
    headers += ["ms [quartiles]", f"times {library}'s"]
    headers += ["TFLOP/s", "GB/s"] if wide else []
    headers += ["roofline", "runs on"]
    headers += ["kernel"] if wide else []
    for header in headers:
        justify: Literal["left", "right"] = "left" if header in ("step", "shape", "runs on", "kernel") else "right"
        table.add_column(header, justify=justify, no_wrap=header != "kernel", overflow="fold")
    for line in lines(record):
        p, time = line.problem, line.time
        cells = [line.name, str(line.count)]
        if wide:
            cells += [shape(p), f"{p['flops'] / 1e9:.3g}", f"{p['bytes'] / 1e6:.3g}"]
        cells += [spread(time, 1e3) if time else "none", spread(line.against, 1) if line.against else ""]
        if wide:
            cells += (
                [f"{p['flops'] / time.median / 1e12:.3g}", f"{p['bytes'] / time.median / 1e9:.4g}"]
                if time
                else ["", ""]
            )
        cells += [f"{line.roofline:.0%}" if line.roofline is not None else "", p["backend"]]
        if wide:
            cells.append(", ".join(kernel_names(p)))
        table.add_row(*cells)
    return table


def kernel_names(problem: dict[str, Any]) -> list[str]:
    return problem["variants"][problem["plan"]]["kernels"]


def _remarks(record: dict[str, Any]) -> Iterator[str]:
    reasons = Counter((p["backend"], p["reason"]) for p in record["problems"])
    yield from (f"{backend}: {reason}" for backend, reason in reasons)
    yield from failures(record)
    counts = {len(v["samples"]) for p in record["problems"] for v in p["variants"].values() if v["status"] == OK}
    if counts and min(counts) < ROUNDS:
        yield f"only {min(counts)} rounds of {ROUNDS} or more: a glance, not a result"


def _fusions(record: dict[str, Any], wide: bool) -> Table:
    """By plan: kernels, bytes and the least time by the roofline; what is measured; what the fusion is worth."""
    table = compact_table("What each fusion is worth: the steps' sums under each plan")
    headers = ["plan", "kernels", "MB", "least ms", "measured ms", "on against off: predicted", "measured"]
    for header in headers if wide else [headers[0], *headers[2:]]:
        table.add_column(header, justify="left" if header == "plan" else "right", no_wrap=True)
    worth = {w.fusion: w for w in worths(record)}
    for plan in (*PLANS, *BOUNDS):
        predicted = record["plans"][plan]
        cells = [plan, *([str(predicted["kernels"])] if wide else []), f"{predicted['bytes'] / 1e6:.4g}"]
        cells.append(f"{predicted['seconds'] * 1e3:.4g}")
        if plan in BOUNDS:
            table.add_row(*cells, "a bound", "", "")
            continue
        sums = round_sums(record, plan)
        cells.append(spread(summarize(sums), 1e3) if sums else "none")
        if plan == UNFUSED:
            table.add_row(*cells, "1", "1")
            continue
        w = worth[plan]
        table.add_row(*cells, f"{w.predicted_ratio:.2f}", spread(w.ratio, 1) if w.ratio else w.remark)
    return table
