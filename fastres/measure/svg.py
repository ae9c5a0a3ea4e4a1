"""Charts as SVG text: a canvas, scales with round ticks, and colours that the colour-blind can tell apart.

The palette is Okabe and Ito's (Color Universal Design, 2008). A series is told by its pattern or its label too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape

BLACK, GREY, PALE = "#000000", "#666666", "#dddddd"
ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
HATCH = "url(#hatch)"  # orange stripes

_HATCH = (
    '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    f'<rect width="6" height="6" fill="#ffffff"/><rect width="3" height="6" fill="{ORANGE}"/></pattern></defs>'
)
FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
SIZE = 12  # of text, in units of the canvas


class Canvas:
    """A drawing `width` by `height`; `title` is what a screen reader says. Text given to it is escaped."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []

    def rect(
        self, x: float, y: float, width: float, height: float, fill: str, stroke: str = "none", hint: str = ""
    ) -> None:
        inside = f"<title>{escape(hint)}</title>" if hint else ""
        size = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.2f}" height="{height:.1f}"'
        self.parts.append(f'<rect {size} fill="{fill}" stroke="{stroke}">{inside}</rect>')

    def line(
        self, x1: float, y1: float, x2: float, y2: float, stroke: str = BLACK, width: float = 1, dash: str = ""
    ) -> None:
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
        self.parts.append(f'<line {ends} stroke="{stroke}" stroke-width="{width}"{dashed}/>')

    def text(
        self, x: float, y: float, text: str, anchor: str = "start", size: float = SIZE, bold: bool = False
    ) -> None:
        weight = ' font-weight="600"' if bold else ""
        place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
        self.parts.append(f"<text {place}{weight}>{escape(text)}</text>")

    def path(self, points: Iterable[tuple[float, float]], stroke: str, fill: str = "none", width: float = 1.5) -> None:
        steps = " ".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))
        self.parts.append(f'<path d="{steps}" stroke="{stroke}" stroke-width="{width}" fill="{fill}"/>')

    def mark(self, kind: int, x: float, y: float, colour: str, hint: str = "", r: float = 5) -> None:
        """One of MARKS shapes, so that a series is told without its colour."""
        sides = [(0, 3, -90), (4, 0, 0), (3, 0, -90), (4, 0, 45), (3, 0, 90)][kind % MARKS]
        inside = f"<title>{escape(hint)}</title>" if hint else ""
        style = f'fill="{colour}" stroke="#ffffff" stroke-width="0.8"'
        if not sides[0]:
            self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r * 0.9}" {style}>{inside}</circle>')
            return
        turns = (math.radians(sides[2] + 360 * i / sides[0]) for i in range(sides[0]))
        corners = " ".join(f"{x + 1.2 * r * math.cos(a):.1f},{y + 1.2 * r * math.sin(a):.1f}" for a in turns)
        self.parts.append(f'<polygon points="{corners}" {style}>{inside}</polygon>')

    def __str__(self) -> str:
        size = f'viewBox="0 0 {self.width:g} {self.height:g}" width="{self.width:g}" height="{self.height:g}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" font-family="{FONT}">'
        return "\n".join([head, f"<title>{escape(self.title)}</title>", _HATCH, *self.parts, "</svg>"])


MARKS = 5


def ticks(high: float, about: int = 6) -> list[float]:
    """Round values from 0 to `high` or just below: multiples of 1, 2 or 5 times a power of ten."""
    if high <= 0:
        return [0.0]
    rough = high / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    return [i * step for i in range(int(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """Three digits, without an exponent where people would not write one."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
        text = f"{value:.{digits}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.2g}"


def axis(canvas: Canvas, left: float, right: float, top: float, bottom: float, high: float, unit: str) -> None:
    """A horizontal axis from 0 to `high` above a chart, with its grid."""
    for tick in ticks(high):
        x = left + (right - left) * tick / high
        canvas.line(x, top, x, bottom, PALE)
        canvas.text(x, top - 5, number(tick), "middle", 11)
    canvas.text(right, top - 20, unit, "end", 11)


def legend(canvas: Canvas, x: float, y: float, entries: Sequence[tuple[Callable[[float, float], None], str]]) -> None:
    """Entries in a row: each draws its sample at a left top corner, 14 by 10, and has a name."""
    for draw, name in entries:
        draw(x, y)
        canvas.text(x + 20, y + 9, name, size=11)
        x += 36 + 6.2 * len(name)
