"""The record of a run: JSON that holds every sample. Tables are made of the record and of nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import torch
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .. import files
from .compare import FAILED, OK, Row
from .environment import environment
from .roofline import Ceilings, Cost, layers
from .statistics import Summary, speedup, summarize
from .timing import ROUNDS

SCHEMA = 1
_PARTS = {"kind": str, "date": str, "environment": dict, "settings": dict, "ceilings": dict, "rows": list}
_LONGEST = 1 << 28  # characters


def record(
    kind: str, rows: Sequence[dict[str, Any]], ceilings: dict[str, Ceilings], settings: dict[str, Any]
) -> dict[str, Any]:
    """A JSON object of `kind` ("models", "layers"): date (UTC), environment, settings, measured ceilings and rows.

    A row says what ran ("name", "batch", "size", "dtype", "device", "contender"), what became of it ("status",
    "reason", "parity"), seconds per call in "samples", "flops" and "bytes" of a call, "roofline_seconds", "memory".
    `ceilings` are by dtype.
    """
    return {
        "schema": SCHEMA,
        "kind": kind,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": environment(),
        "settings": {**settings, "conv_tf32": torch.backends.cudnn.allow_tf32},
        "ceilings": {dtype: asdict(c) for dtype, c in ceilings.items()},
        "rows": list(rows),
    }


def model_row(row: Row, ceilings: Ceilings) -> dict[str, Any]:
    """A `Row` of `compare` as a row of the record."""
    w = row.workload
    # A layer's backward has the operations and the traffic of two forwards: gradients of its input and of its weight.
    costs = [layer.cost(w.dtype) for layer in layers(w.model, w.batch, w.size)] * (3 if w.train else 1)
    place = {"batch": w.batch, "size": w.size, "dtype": dtype_name(w.dtype), "device": str(w.device)}
    outcome = {
        "contender": row.contender,
        "status": row.status,
        "reason": row.reason,
        "parity": asdict(row.parity) if row.parity else None,
        "calls_per_sample": row.calls,
        "samples": row.samples,
        "memory": row.memory,
    }
    return {
        "name": f"{w.model} training step" if w.train else w.model,
        **place,
        **outcome,
        **cost_fields(costs, ceilings),
    }


def cost_fields(costs: Sequence[Cost], ceilings: Ceilings) -> dict[str, Any]:
    """The fields of a row for layers that run one after the other."""
    return {
        "flops": sum(c.flops for c in costs),
        "bytes": sum(c.bytes for c in costs),
        "roofline_seconds": ceilings.seconds(costs),
    }


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def save(result: dict[str, Any], path: Path) -> None:
    """Writes `result` to `path`, whole or not at all. Raises OSError if it cannot."""
    files.write(path, json.dumps(result, indent=1) + "\n")


def load(path: Path) -> dict[str, Any]:
    """Reads a record. Raises OSError if it cannot be read, ValueError if it is none of this schema, or damaged."""
    with open(path, encoding="utf-8") as file:  # perhaps a pipe, or a device without end
        try:
            text = file.read(_LONGEST + 1)
            if len(text) > _LONGEST:
                raise ValueError(f"expected at most {_LONGEST:,} characters")
            result = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        raise ValueError(f"{path}: expected a fastres record of schema {SCHEMA}")
    for name, kind in _PARTS.items():
        if not isinstance(result.get(name), kind):
            raise ValueError(f"{path}: damaged: {name}: expected a {kind.__name__}, got {result.get(name)!r:.40}")
    if odd := next((row for row in result["rows"] if not isinstance(row, dict)), None):
        raise ValueError(f"{path}: damaged: rows: expected objects, got {odd!r:.40}")
    return result


def tables(result: dict[str, Any], wide: bool = True) -> RenderableType:
    """The record for reading: its environment, and for models a table each, for layers one of all.

    Ratios are against the first contender of a thing measured, round by round; brackets hold quartiles.
    "error" is in units of PyTorch's own. What is not `wide`, 115 columns, goes without it and without rates.
    """
    parts: list[RenderableType] = [Text(heading(result))]
    if result["kind"] == "models":
        parts += model_tables(result["rows"], wide)
    elif groups := groups_of(result["rows"]):
        parts += ["", _table(groups, "", wide), *(remark for rows in groups for remark in _remarks(rows))]
    return Group(*parts)


def model_tables(rows: Sequence[dict[str, Any]], wide: bool = True) -> list[RenderableType]:
    """A table for each model, batch and dtype of `rows`, with what is to be said about it."""
    parts: list[RenderableType] = []
    for group in groups_of(rows):
        parts += ["", _table([group], _title(group[0]), wide), *_remarks(group)]
    return parts


def failures(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in result["rows"] if row["status"] == FAILED]


def groups_of(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows by the thing measured, in order: in each group one for each contender."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in ("name", "batch", "size", "dtype", "device")), []).append(row)
    return list(groups.values())


def heading(result: dict[str, Any]) -> str:
    """When, on what and with what a record was made, and the ceilings that were measured."""
    env = result["environment"]
    versions = env["versions"]
    named = [f"{name} {versions[name]}" for name in ("fastres", "torch", "triton", "cuda") if versions.get(name)]
    if versions.get("nvidia_driver"):
        named.append(f"driver {versions['nvidia_driver']}")
    cpu = env["cpu"]
    cpu_text = f"{cpu['model'] or 'unknown processor'}, {cpu['isa']}, {cpu['threads']} threads"
    if (load := cpu.get("load")) is not None:
        cpu_text += f", load {load}"
    devices = [gpu["name"] for gpu in env["gpus"]] or [cpu_text]
    lines = [f"{result['date']}; {', '.join(devices)}; {', '.join(named)}"]
    for dtype, rates in result["ceilings"].items():
        flops, bytes_ = rates["flops_per_second"] / 1e12, rates["bytes_per_second"] / 1e9
        lines.append(f"ceilings measured: {flops:.3g} TFLOP/s in {dtype} products, {bytes_:.4g} GB/s in copies")
    return "\n".join(lines)


def _title(row: dict[str, Any]) -> str:
    return f"{row['name']}, batch {row['batch']}, {row['size']} px, {row['dtype']}, {row['device']}"


def _remarks(rows: list[dict[str, Any]]) -> Iterator[Text]:
    for row in rows:
        if row["status"] != OK:
            yield Text(f"{row['name']}: {row['contender']} {row['status']}: {row['reason']}")
    counts = {len(row["samples"]) for row in rows if row["status"] == OK}
    if counts and min(counts) < ROUNDS:
        yield Text(f"{rows[0]['name']}: only {min(counts)} rounds of {ROUNDS} or more: a glance, not a result")


# Headers and cells: of a row, the seconds of its samples, and its group's baseline.
_COLUMNS: dict[str, Callable[[dict[str, Any], Summary, dict[str, Any]], str]] = {
    "contender": lambda row, time, baseline: row["contender"],
    "images/s": lambda row, time, baseline: f"{row['batch'] / time.median:.1f}",
    "ms [quartiles]": lambda row, time, baseline: spread(time, 1e3),
    "times {baseline}": lambda row, time, baseline: _ratio(row, baseline),
    "TFLOP/s": lambda row, time, baseline: f"{row['flops'] / time.median / 1e12:.3g}",
    "GB/s": lambda row, time, baseline: f"{row['bytes'] / time.median / 1e9:.4g}",
    "roofline": lambda row, time, baseline: f"{row['roofline_seconds'] / time.median:.0%}",
    "error": lambda row, time, baseline: _error(row["parity"]),
    "peak MB": lambda row, time, baseline: _megabytes(row["memory"].get("tensor_bytes")),
}
_WIDE = ("TFLOP/s", "GB/s", "roofline", "error")  # what a narrow table goes without


def compact_table(title: str = "") -> Table:
    compact: dict[str, Any] = {"box": box.SIMPLE_HEAD, "show_edge": False, "pad_edge": False, "collapse_padding": True}
    return Table(title=title or None, title_justify="left", title_style="bold", **compact)


def _table(groups: Sequence[list[dict[str, Any]]], title: str, wide: bool) -> Table:
    """With a `title`, of one group; without, of several, which begin with what was measured."""
    table = compact_table(title)
    left_out = [*(() if wide else _WIDE), *(() if title else ("images/s", "peak MB"))]
    columns = {header: cell for header, cell in _COLUMNS.items() if header not in left_out}
    if not title:
        table.add_column("batch x what", no_wrap=True)
    for header in columns:
        justify: Literal["left", "right"] = "left" if header == "contender" else "right"
        table.add_column(header.format(baseline=groups[0][0]["contender"]), justify=justify, no_wrap=True)
    for rows in groups:
        name = [] if title else [f"{rows[0]['batch']} x {rows[0]['name']} {rows[0]['dtype']}"]
        for row in rows:
            if row["status"] == OK:
                time = summarize(row["samples"])
                table.add_row(*name, *(cell(row, time, rows[0]) for cell in columns.values()))
                name = [""] if name else []
    return table


def spread(summary: Summary, scale: float) -> str:
    """Median [quartiles], scaled."""
    digits = 4 if summary.median * scale < 0.1 else 2 if summary.median * scale < 100 else 1
    low, middle, high = (f"{scale * value:.{digits}f}" for value in (summary.q1, summary.median, summary.q3))
    return f"{middle} [{low} {high}]"


def _ratio(row: dict[str, Any], baseline: dict[str, Any]) -> str:
    if baseline["status"] != OK:
        return ""
    return "1" if row is baseline else spread(speedup(baseline["samples"], row["samples"]), 1)


def _error(parity: dict[str, Any] | None) -> str:
    return f"{parity['error'] / parity['baseline_error']:.1f}" if parity and parity["baseline_error"] else ""


def _megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.1f}"
