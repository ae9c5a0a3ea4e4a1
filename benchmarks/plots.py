"""The plots of docs/performance.md that are not on a profile's page already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastres.measure.statistics import Summary, speedup
from fastres.measure.svg import BLACK, BLUE, HATCH, ORANGE, SKY, Canvas, axis, legend

WIDTH, LEFT = 960, 190


def ratios(group: Sequence[dict[str, Any]]) -> dict[str, Summary]:
    """How many times as fast as the group's first contender each is, by name, in order; who has no time is left out."""
    timed = [row for row in group if row["samples"]]
    return {row["contender"]: speedup(timed[0]["samples"], row["samples"]) for row in timed}


def speeds(groups: Sequence[tuple[str, Sequence[dict[str, Any]]]], title: str) -> str:
    """Bars of speed for each (name, rows), the first row's being 1; fastres solid, who is faster than it striped."""
    row, gap, top, right = 18, 30, 62, WIDTH - 120
    found = [(name, ratios(group)) for name, group in groups]
    found = [(name, of) for name, of in found if of]
    high = max((s.q3 for _, of in found for s in of.values()), default=1.0) * 1.02
    height = top + sum(gap + row * len(of) for _, of in found)
    canvas = Canvas(WIDTH, height + 10, title)

    def x(ratio: float) -> float:
        return LEFT + (right - LEFT) * ratio / high

    legend(
        canvas,
        LEFT,
        8,
        [
            (lambda a, b: canvas.rect(a, b, 14, 10, BLUE), "fastres"),
            (lambda a, b: canvas.rect(a, b, 14, 10, HATCH, ORANGE), "faster than fastres"),
            (lambda a, b: canvas.rect(a, b, 14, 10, SKY, BLACK), "slower than fastres"),
            (lambda a, b: canvas.line(a, b + 5, a + 14, b + 5, BLACK, 2), "quartiles"),
        ],
    )
    axis(canvas, LEFT, right, top, height, high, "times the first, higher is faster")
    y = top + 4.0
    for name, of in found:
        canvas.text(4, y + 16, name, bold=True)
        y += gap - 4
        ours = max((s.median for contender, s in of.items() if contender.startswith("fastres")), default=0.0)
        for contender, s in of.items():
            mine = contender.startswith("fastres")
            fill, stroke = (BLUE, BLUE) if mine else (HATCH, ORANGE) if s.median > ours else (SKY, BLACK)
            canvas.text(LEFT - 6, y + 13, contender, "end", 11, mine)
            canvas.rect(LEFT, y + 3, x(s.median) - LEFT, row - 6, fill, stroke, f"{contender}: {s.median:.2f}")
            canvas.line(x(s.q1), y + row / 2, x(s.q3), y + row / 2, BLACK, 2)
            canvas.text(x(max(s.q3, s.median)) + 6, y + 13, f"{s.median:.2f}", size=11)
            y += row
        y += 4
    canvas.line(x(1), top, x(1), height, BLACK, 1, "4 3")
    return str(canvas)
