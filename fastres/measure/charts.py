"""The charts of a profile's page, each made of its record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from . import svg
from .kernels import Launch, gaps
from .profile import round_sums
from .profile_tables import Line, lines, shape, worths
from .statistics import Summary, summarize
from .svg import BLACK, BLUE, GREEN, GREY, HATCH, ORANGE, PALE, PURPLE, SKY, VERMILLION, Canvas, axis, legend, number
from .traffic import BOUNDS, FUSIONS, PLANS, UNFUSED

WIDTH = 960
LEFT = 190  # where bars begin
_STAGES = {"conv1": 0, "layer1": 1, "layer2": 2, "layer3": 3, "layer4": 4}
_COLOURS = (BLACK, BLUE, ORANGE, GREEN, PURPLE)


def library_name(record: dict[str, Any]) -> str:
    return "cuDNN, fused" if record["settings"]["device"].startswith("cuda") else "PyTorch, unfused"


def in_order(record: dict[str, Any]) -> list[Line]:
    """A Line for each step of the model, by its own name."""
    found = lines(record)
    return [
        Line(step["name"], 1, of.problem, of.time, of.against)
        for step in record["steps"]
        for of in [found[step["problem"]]]
    ]


def steps(record: dict[str, Any]) -> str:
    """A bar a step: solid what the roofline allows, striped what is beyond it, a mark for the library's call."""
    found = in_order(record)
    library = [_library_seconds(line) for line in found]
    times = [line.time.median for line in found if line.time] + [t for t in library if t]
    least = [line.problem["roofline_seconds"] for line in found]
    high = 1e3 * max([*times, *least], default=1.0) * 1.02
    row, top, right = 17, 62, WIDTH - 150
    canvas = Canvas(WIDTH, top + row * len(found) + 8, "Time of each step against the roofline and the library")

    def x(milliseconds: float) -> float:
        return LEFT + (right - LEFT) * milliseconds / high

    legend(
        canvas,
        LEFT,
        8,
        [
            (lambda a, b: canvas.rect(a, b, 14, 10, BLUE), "within the roofline"),
            (lambda a, b: canvas.rect(a, b, 14, 10, HATCH, ORANGE), "beyond it"),
            (lambda a, b: canvas.line(a + 7, b - 1, a + 7, b + 11, BLACK, 2), "the roofline"),
            (lambda a, b: canvas.mark(3, a + 7, b + 5, VERMILLION), library_name(record)),
        ],
    )
    axis(canvas, LEFT, right, top, top + row * len(found), high, "ms")
    canvas.text(WIDTH - 84, top - 5, "of roofline", "end", 11)
    canvas.text(WIDTH - 4, top - 18, "times", "end", 11)
    canvas.text(WIDTH - 4, top - 5, "library's", "end", 11)
    for i, (line, theirs) in enumerate(zip(found, library, strict=True)):
        y = top + row * i
        canvas.text(LEFT - 6, y + 12, line.name, "end", 11)
        limit = 1e3 * line.problem["roofline_seconds"]
        if line.time is None:
            canvas.text(LEFT + 4, y + 12, "wrong result, so no time", size=11)
            continue
        took = 1e3 * line.time.median
        hint = f"{line.name}: {number(took)} ms, {shape(line.problem)}, {line.problem['backend']}"
        canvas.rect(LEFT, y + 3, x(min(limit, took)) - LEFT, row - 6, BLUE, hint=hint)
        if took > limit:
            canvas.rect(x(limit), y + 3, x(took) - x(limit), row - 6, HATCH, ORANGE, hint)
        canvas.line(x(limit), y + 1, x(limit), y + row - 1, BLACK, 2)
        if theirs:
            said = f"{library_name(record)}: {number(1e3 * theirs)} ms"
            canvas.mark(3, x(1e3 * theirs), y + row / 2, VERMILLION, said, 4)
        canvas.text(WIDTH - 84, y + 12, f"{line.roofline:.0%}", "end", 11)
        if line.against:
            canvas.text(WIDTH - 4, y + 12, f"{line.against.median:.2f}", "end", 11)
    return str(canvas)


def _library_seconds(line: Line) -> float | None:
    samples = line.problem["variants"]["library"]["samples"]
    return summarize(samples).median if samples else None


def plans(record: dict[str, Any]) -> str:
    """By plan: the least time by the roofline, and the steps' measured sum with its quartiles."""
    sums = {plan: round_sums(record, plan) for plan in PLANS}
    measured: dict[str, Summary | None] = {plan: summarize(s) if s else None for plan, s in sums.items()}
    least = {plan: record["plans"][plan]["seconds"] for plan in (*PLANS, *BOUNDS)}
    high = 1e3 * max([*least.values(), *(m.q3 for m in measured.values() if m)]) * 1.02
    row, top, right = 36, 62, WIDTH - 110
    canvas = Canvas(WIDTH, top + row * len(least) + 8, "Time of a forward under each plan, predicted and measured")

    def x(seconds: float) -> float:
        return LEFT + (right - LEFT) * 1e3 * seconds / high

    legend(
        canvas,
        LEFT,
        8,
        [
            (lambda a, b: canvas.rect(a, b, 14, 10, SKY, BLACK), "predicted: the roofline's least"),
            (lambda a, b: canvas.rect(a, b, 14, 10, BLUE), "measured, with quartiles"),
        ],
    )
    axis(canvas, LEFT, right, top, top + row * len(least), high, "ms a forward")
    owns = {w.fusion: w.saved is not None for w in worths(record)}
    for i, plan in enumerate(least):
        y = top + row * i + 4
        label = plan if plan in (UNFUSED, *BOUNDS) else f"+ {plan}"
        canvas.text(LEFT - 6, y + 18, label, "end", bold=plan in FUSIONS)
        canvas.rect(LEFT, y, x(least[plan]) - LEFT, 12, SKY, BLACK, f"{plan}: {number(1e3 * least[plan])} ms at least")
        canvas.text(x(least[plan]) + 5, y + 10, number(1e3 * least[plan]), size=11)
        found = measured.get(plan)
        if plan in BOUNDS:
            canvas.text(LEFT + 4, y + 25, "a bound: nothing here runs so", size=11)
        elif found is None:
            canvas.text(LEFT + 4, y + 25, "a step has no time", size=11)
        elif plan == UNFUSED or owns[plan]:
            canvas.rect(LEFT, y + 15, x(found.median) - LEFT, 12, BLUE, hint=f"{number(1e3 * found.median)} ms")
            canvas.line(x(found.q1), y + 21, x(found.q3), y + 21, BLACK, 2)
            canvas.text(x(found.q3) + 5, y + 25, number(1e3 * found.median), size=11)
        else:
            remark = next(w.remark for w in worths(record) if w.fusion == plan)
            canvas.text(LEFT + 4, y + 25, f"not measured: {remark}", size=11)
    return str(canvas)


def roofline(record: dict[str, Any]) -> str:
    """Rate over intensity, both logarithmic, a mark for each distinct step and the two roofs."""
    (ceilings,) = record["ceilings"].values()
    flops, rate = ceilings["flops_per_second"], ceilings["bytes_per_second"]
    found = [line for line in lines(record) if line.time]
    points = [(p.problem["flops"] / p.problem["bytes"], p.problem["flops"] / p.time.median) for p in found if p.time]
    ridge = flops / rate
    low_x, high_x = _decades([*(a for a, _ in points), ridge], 0.7, 1.5)
    low_y, high_y = _decades([*(r for _, r in points), flops], 0.7, 1.3)
    left, right, top, bottom = 80, WIDTH - 20, 40, 380
    canvas = Canvas(WIDTH, bottom + 42, "Roofline: floating-point rate over arithmetic intensity")

    def x(value: float) -> float:
        return left + (right - left) * math.log(value / low_x) / math.log(high_x / low_x)

    def y(value: float) -> float:
        return bottom - (bottom - top) * math.log(value / low_y) / math.log(high_y / low_y)

    for tick in _log_ticks(low_x, high_x):
        canvas.line(x(tick), top, x(tick), bottom, PALE)
        canvas.text(x(tick), bottom + 16, number(tick), "middle", 11)
    for tick in _log_ticks(low_y, high_y):
        canvas.line(left, y(tick), right, y(tick), PALE)
        canvas.text(left - 6, y(tick) + 4, number(tick / 1e12), "end", 11)
    canvas.text(right, bottom + 34, "flops a byte that must move", "end", 11)
    canvas.text(8, 14, "TFLOP/s", size=11)
    foot = max(low_x, low_y / rate)
    canvas.path([(x(foot), y(foot * rate)), (x(ridge), y(flops)), (x(high_x), y(flops))], BLACK, width=2)
    canvas.text(right - 4, y(flops) - 6, f"{number(flops / 1e12)} TFLOP/s in products", "end", 11)
    middle = math.sqrt(foot * ridge)
    canvas.text(x(middle) - 8, y(middle * rate) - 8, f"{number(rate / 1e9)} GB/s in copies", "end", 11)
    for line, (intensity, speed) in zip(found, points, strict=True):
        stage = _stage(line.name)
        canvas.mark(stage, x(intensity), y(speed), _COLOURS[stage], f"{line.name}: {line.roofline:.0%} of the roofline")
    place = 150.0
    for name, stage in {"stem and head": 0, **{f"layer{i}": i for i in range(1, 5)}}.items():
        canvas.mark(stage, place, 11, _COLOURS[stage])
        canvas.text(place + 10, 15, name, size=11)
        place += 36 + 6.2 * len(name)
    return str(canvas)


def _stage(name: str) -> int:
    return _STAGES.get(name.split(".")[0].split(" ")[0], 0)


def _decades(values: Sequence[float], below: float, above: float) -> tuple[float, float]:
    return min(values) * below, max(values) * above


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    multiples = (1, 2, 5) if high / low < 1e3 else (1,)
    return [m * 10.0**p for p in powers for m in multiples if low <= m * 10.0**p <= high]


def memory(record: dict[str, Any]) -> str:
    """Bytes of tensors alive over a forward, its peak marked."""
    points = [(0.0, 0)] + [(time, max(live, 0)) for time, live in record["memory"]]
    high_t, high_b = max(t for t, _ in points) or 1.0, max(b for _, b in points) or 1
    left, right, top, bottom = 70, WIDTH - 20, 26, 240
    canvas = Canvas(WIDTH, bottom + 40, "Memory of tensors alive over one forward")

    def x(time: float) -> float:
        return left + (right - left) * time / high_t

    def y(count: float) -> float:
        return bottom - (bottom - top) * count / (high_b * 1.1)

    for tick in svg.ticks(high_b / 1e6 * 1.1, 5):
        canvas.line(left, y(tick * 1e6), right, y(tick * 1e6), PALE)
        canvas.text(left - 6, y(tick * 1e6) + 4, number(tick), "end", 11)
    for tick in svg.ticks(high_t / 1e3):
        canvas.text(x(tick * 1e3), bottom + 16, number(tick), "middle", 11)
    canvas.text(8, 14, "MB", size=11)
    canvas.text(right, bottom + 34, "ms under the profiler", "end", 11)
    outline = [(x(0), y(0))]
    for time, live in points[1:]:
        outline += [(x(time), outline[-1][1]), (x(time), y(live))]
    outline.append((x(high_t), y(0)))
    canvas.path(outline, BLUE, SKY)
    peak_time, peak = max(points, key=lambda point: point[1])
    canvas.mark(2, x(peak_time), y(peak) - 8, VERMILLION, r=4)
    anchor = "end" if peak_time > 0.7 * high_t else "start"
    canvas.text(x(peak_time) + (-9 if anchor == "end" else 9), y(peak) - 5, f"peak {number(peak / 1e6)} MB", anchor)
    return str(canvas)


def launches(record: dict[str, Any]) -> str:
    """The kernels of a forward on a line of time, what is white between them being gaps; none on a CPU."""
    found = [Launch(**launch) for launch in record["launches"] or []]
    if not found:
        return ""
    end = max(launch.start + launch.duration for launch in found)
    left, right, top = 20, WIDTH - 20, 40
    canvas = Canvas(WIDTH, 104, "Kernels of a forward over time")
    axis(canvas, left, right, top, top + 40, end / 1e3, "ms")
    for launch in found:
        x, width = left + (right - left) * launch.start / end, (right - left) * launch.duration / end
        canvas.rect(x, top + 4, max(width, 0.4), 32, BLUE, hint=f"{launch.name}: {number(launch.duration)} us")
    seen = gaps(found)
    said = f"{seen.launches} launches, {number(seen.busy)} us busy, {number(seen.idle)} us in gaps"
    canvas.text(left, 98, f"{said}, the longest {number(seen.longest)} us", size=11)
    canvas.line(left, top + 40, right, top + 40, GREY)
    return str(canvas)
