"""The record of a run: JSON that holds every sample. Tables are made of the record and of nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .compare import FAILED, OK, Row
from .environment import environment
from .roofline import Ceilings, costs
from .statistics import speedup, summarize
from .timing import ROUNDS

SCHEMA = 1


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
        "settings": settings,
        "ceilings": {dtype: asdict(c) for dtype, c in ceilings.items()},
        "rows": list(rows),
    }


def model_row(row: Row, ceilings: Ceilings) -> dict[str, Any]:
    """A `Row` of `compare` as a row of the record."""
    w = row.workload
    layers = costs(w.model, w.batch, w.size, w.dtype)
    return {
        "name": w.model,
        "batch": w.batch,
        "size": w.size,
        "dtype": dtype_name(w.dtype),
        "device": str(w.device),
        "contender": row.contender,
        "status": row.status,
        "reason": row.reason,
        "parity": asdict(row.parity) if row.parity else None,
        "calls_per_sample": row.calls,
        "samples": row.samples,
        "flops": sum(c.flops for c in layers),
        "bytes": sum(c.bytes for c in layers),
        "roofline_seconds": ceilings.seconds(layers),
        "memory": row.memory,
    }


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def save(result: dict[str, Any], path: Path) -> None:
    """Writes `result` to `path`, whole or not at all. Raises OSError where it cannot."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)  # mkstemp's files are private
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def load(path: Path) -> dict[str, Any]:
    """Reads a record. Raises OSError where it cannot be read, ValueError where it is none of this schema."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        raise ValueError(f"{path}: expected a fastres record of schema {SCHEMA}")
    return result


def tables(result: dict[str, Any]) -> RenderableType:
    """The record for reading: its environment, and a table for each thing measured.

    Ratios are against the first contender of a table, round by round; brackets hold quartiles.
    """
    parts: list[RenderableType] = [Text(_heading(result["environment"]))]
    for rows in _groups(result["rows"]):
        parts += ["", _table(rows)]
        parts += [Text(f"{row['contender']} {row['status']}: {row['reason']}") for row in rows if row["status"] != OK]
        counts = {len(row["samples"]) for row in rows if row["status"] == OK}
        if counts and min(counts) < ROUNDS:
            parts.append(Text(f"only {min(counts)} rounds of {ROUNDS} or more: a glance, not a result"))
    return Group(*parts)


def failures(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in result["rows"] if row["status"] == FAILED]


def _groups(rows: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in ("name", "batch", "size", "dtype", "device")), []).append(row)
    yield from groups.values()


def _heading(env: dict[str, Any]) -> str:
    versions = env["versions"]
    named = [f"{name} {versions[name]}" for name in ("fastres", "torch", "triton", "cuda") if versions.get(name)]
    if versions.get("nvidia_driver"):
        named.append(f"driver {versions['nvidia_driver']}")
    gpus = [gpu["name"] for gpu in env["gpus"]]
    cpu = env["cpu"]
    devices = gpus or [f"{cpu['model'] or 'unknown processor'}, {cpu['isa']}, {cpu['threads']} threads"]
    return f"{', '.join(devices)}; {', '.join(named)}"


def _table(rows: list[dict[str, Any]]) -> Table:
    first = rows[0]
    title = f"{first['name']}, batch {first['batch']}, {first['size']} px, {first['dtype']}, {first['device']}"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    baseline = first["contender"]
    table.add_column("contender", no_wrap=True)
    for header in ("images/s", "ms [quartiles]", f"times {baseline} [quart.]", "TFLOP/s", "of roofline", "peak MB"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        if row["status"] == OK:
            table.add_row(*_cells(row, first))
    return table


def _cells(row: dict[str, Any], baseline: dict[str, Any]) -> list[str]:
    time = summarize(row["samples"])
    ratio = ""
    if baseline["status"] == OK:
        faster = speedup(baseline["samples"], row["samples"])
        ratio = f"{faster.median:.2f} [{faster.q1:.2f} {faster.q3:.2f}]" if row is not baseline else "1"
    memory = row["memory"].get("tensor_bytes")
    return [
        row["contender"],
        f"{row['batch'] / time.median:.1f}",
        f"{1e3 * time.median:.2f} [{1e3 * time.q1:.2f} {1e3 * time.q3:.2f}]",
        ratio,
        f"{row['flops'] / time.median / 1e12:.3g}",
        f"{row['roofline_seconds'] / time.median:.0%}",
        "" if memory is None else f"{memory / 1e6:.1f}",
    ]
