"""A profile as one HTML page that stands alone: charts as inline SVG, no script, nothing fetched, fit for print."""

from __future__ import annotations

from collections import Counter
from html import escape
from typing import Any

from . import charts
from .charts import library_name
from .kernels import Launch, gaps
from .profile import failures
from .profile_tables import kernel_names, lines, shape, worths
from .results import heading
from .statistics import speedup, summarize
from .svg import number
from .timing import ROUNDS
from .traffic import FUSIONS

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; color: #111; background: #fff;
  max-width: 960px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .3rem; }
p { margin: .3rem 0 .8rem; max-width: 75ch; } .quiet { color: #555; font-size: 13px; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 1.2rem 0; }
.tile { border: 1px solid #bbb; border-radius: 6px; padding: .5rem .9rem; min-width: 8.5rem; flex: 1; }
.tile b { display: block; font-size: 1.45rem; line-height: 1.3; } .tile span { color: #555; font-size: 13px; }
.wrong { border: 2px solid #D55E00; padding: .5rem .9rem; }
svg { max-width: 100%; height: auto; display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; width: 100%; }
th { text-align: right; border-bottom: 2px solid #111; padding: 3px 7px; vertical-align: bottom; }
td { text-align: right; border-bottom: 1px solid #ddd; padding: 3px 7px; white-space: nowrap; }
th.l, td.l { text-align: left; } td.w { white-space: normal; overflow-wrap: anywhere; }
td small, th small { display: block; color: #555; }
@page { margin: 12mm; }
@media print { body { margin: 0; max-width: none; font-size: 11px; }
  h2 { break-after: avoid; } section, tr { break-inside: avoid; }
  table { font-size: 9px; } th, td { padding: 2px 4px; } .scroll { overflow: visible; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""


def page(record: dict[str, Any]) -> str:
    """The page of a record of kind "profile"."""
    s = record["settings"]
    title = f"{s['model']}, batch {s['batch']}, {s['size']} px, {s['dtype']}, {s['device']}"
    parts = [f"<h1>{escape(title)}</h1>", *(f'<p class="quiet">{escape(t)}</p>' for t in heading(record).split("\n"))]
    if wrong := failures(record):
        parts.append(f'<div class="wrong">{"<br>".join(map(escape, wrong))}</div>')
    parts += [_tiles(record), *_sections(record), _how(record)]
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _tiles(record: dict[str, Any]) -> str:
    """The whole model in a few figures."""
    found: list[tuple[str, str]] = []
    rows = {row["contender"]: row for row in record["rows"]}
    ours = next((row for name, row in rows.items() if name.startswith("fastres") and row["samples"]), None)
    if ours is not None:
        time = summarize(ours["samples"])
        found += [(f"{number(1e3 * time.median)} ms", f"a forward of {ours['batch']}")]
        found += [(number(ours["batch"] / time.median), "images a second")]
        found += [(f"{ours['roofline_seconds'] / time.median:.0%}", "of the layers' roofline")]
        for name, row in rows.items():
            if row is not ours and row["samples"]:
                ratio = speedup(row["samples"], ours["samples"])
                spread = f"{number(ratio.q1)} to {number(ratio.q3)}"
                found.append((f"{number(ratio.median)} times", f"as fast as {name} ({spread})"))
    found.append((f"{number(max(live for _, live in record['memory']) / 1e6)} MB", "peak of tensors alive"))
    tiles = "".join(f'<div class="tile"><b>{escape(a)}</b><span>{escape(b)}</span></div>' for a, b in found)
    return f'<div class="tiles">{tiles}</div>'


def _sections(record: dict[str, Any]) -> list[str]:
    return [
        _section(
            "Step by step, against the roofline",
            "What fastres runs as one operator is a step. The black line is the least time that this device's measured "
            f"ceilings allow for its flops and its fewest bytes; the mark is {library_name(record)}. A bar that ends "
            "before its line ran from cache, or faster than the product that measured the ceiling.",
            charts.steps(record),
        ),
        _section(
            "Compute or memory",
            "Left of the bend memory is the limit, right of it arithmetic. Distance below the roof is time to be won.",
            charts.roofline(record),
        ),
        _section(
            "What each fusion is worth",
            "Each plan includes the ones above it. Predicted: from shapes and ceilings alone. Measured: the same "
            "backend's kernels with the fusion on and off, summed over the steps.",
            f'{charts.plans(record)}\n<div class="scroll">{_worth_table(record)}</div>',
        ),
        _section("Gaps between launches", _gaps(record), charts.launches(record)),
        _section(
            "Memory over a forward",
            "Bytes of tensors alive beyond the model and its input.",
            charts.memory(record),
        ),
        f'<h2>Every distinct step</h2>\n<div class="scroll">{_step_table(record)}</div>',
    ]


def _section(title: str, text: str, content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n<p>{escape(text)}</p>\n{content}\n</section>"


def _gaps(record: dict[str, Any]) -> str:
    if not record["launches"]:
        return (
            "On a CPU there are no launches: an operator runs when it is called. A profile of a GPU shows the gaps "
            "between its kernels here."
        )
    seen = gaps([Launch(**launch) for launch in record["launches"]])
    share = seen.idle / max(seen.idle + seen.busy, 1e-9)
    return f"The GPU waits {share:.0%} of a forward, run eagerly under the profiler."


def _worth_table(record: dict[str, Any]) -> str:
    rows = []
    for w in worths(record):
        measured = [w.remark, ""]
        if w.saved is not None and w.ratio is not None:
            saved = f"{1e3 * w.saved.median:.3f} [{1e3 * w.saved.q1:.3f} {1e3 * w.saved.q3:.3f}]"
            measured = [saved, f"{w.ratio.median:.3f} [{w.ratio.q1:.3f} {w.ratio.q3:.3f}]"]
        predicted = [f"{1e3 * w.predicted:.3f}", f"{w.predicted_ratio:.3f}"]
        rows.append([f"{w.fusion}: {FUSIONS[w.fusion]}", *predicted, *measured])
    headers = ["fusion", "predicted ms saved", "times", "measured ms saved [quartiles]", "times [quartiles]"]
    return _table(headers, rows, 1)


def _step_table(record: dict[str, Any]) -> str:
    headers = ["step", "x", "GFLOP", "MB", "ms\nquartiles", "TFLOP/s", "GB/s", "roofline", "times\nlibrary's"]
    rows = []
    for line in lines(record):
        p, time = line.problem, line.time
        cells = [f"{line.name}\n{shape(p)}", str(line.count), number(p["flops"] / 1e9), number(p["bytes"] / 1e6)]
        if time is None:
            cells += ["no time", *[""] * 4]
        else:
            cells.append(f"{number(1e3 * time.median)}\n{number(1e3 * time.q1)} to {number(1e3 * time.q3)}")
            cells += [number(p["flops"] / time.median / 1e12), number(p["bytes"] / time.median / 1e9)]
            against = line.against
            ratio = f"{against.median:.2f}\n{against.q1:.2f} to {against.q3:.2f}" if against else ""
            cells += [f"{line.roofline:.0%}", ratio]
        rows.append([*cells, "\n".join([p["backend"], ", ".join(kernel_names(p))])])
    return _table([*headers, "runs on"], rows, 1, wrapped=len(headers))


def _table(headers: list[str], rows: list[list[str]], left: int, wrapped: int = -1) -> str:
    """The first `left` columns flush left, and `wrapped`, which may take several lines; a cell's second is small."""

    def cell(text: str) -> str:
        first, newline, second = text.partition("\n")
        return escape(first) + (f"<small>{escape(second)}</small>" if newline else "")

    def classes(i: int) -> str:
        return ' class="l w"' if i == wrapped else ' class="l"' if i < left else ""

    head = "".join(f"<th{classes(i)}>{cell(text)}</th>" for i, text in enumerate(headers))
    body = "\n".join(
        "<tr>" + "".join(f"<td{classes(i)}>{cell(text)}</td>" for i, text in enumerate(row)) + "</tr>" for row in rows
    )
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _how(record: dict[str, Any]) -> str:
    why = Counter((p["backend"], p["reason"]) for p in record["problems"])
    said = [f"{backend}: {reason}." for backend, reason in why]
    said.append("Each result was checked against a float64 oracle before it was timed; contenders took turns.")
    counts = [len(v["samples"]) for p in record["problems"] for v in p["variants"].values() if v["samples"]]
    if counts:
        low, high = min(counts), max(counts)
        said.append(f"{low} rounds." if low == high else f"{low} to {high} rounds.")
        if low < ROUNDS:
            said.append(f"Fewer than {ROUNDS} rounds are a glance, not a result.")
    return f"<h2>How it was measured</h2>\n<p>{escape(' '.join(said))}</p>"
