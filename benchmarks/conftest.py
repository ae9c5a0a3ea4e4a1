"""How the suites use pytest-benchmark, and the record that they leave.

A suite's test is one contender on one problem. The first test of a problem runs its whole race with fastres's own
harness; each test then replays its contender's samples to pytest-benchmark, which prints, keeps and compares them.
`--record FILE` saves them for `fastres bench --show FILE`. What is measured is set in the environment: settings.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from races import Rows, ceilings
from settings import DTYPES, ROUNDS

from fastres.measure import results
from fastres.measure.compare import OK, SKIPPED

Replay = Callable[[Rows, str], None]

_now = 0.0
_rows: dict[int, dict[str, Any]] = {}  # by identity: races return the same rows to each of their tests


def replayed_time() -> float:
    """pytest-benchmark's clock: it advances by what has been measured."""
    return _now


def pytest_xdist_auto_num_workers() -> int:
    """None: what is timed has the machine to itself."""
    return 0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path, help="save the record of this run, every sample in it")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=replayed_time))


@pytest.fixture
def replay(request: pytest.FixtureRequest, benchmark: Any) -> Replay:
    """Gives pytest-benchmark the samples of one contender out of a race's rows. Fails where it has none."""

    def run(rows: Rows, contender: str) -> None:
        _rows.update((id(row), row) for row in rows.values())
        if path := request.config.getoption("--record"):  # after each test: a run that is cut short loses nothing
            limits = {results.dtype_name(dtype): ceilings(dtype) for dtype in DTYPES}
            kind = "models" if request.module.__name__ == "bench_models" else "layers"
            results.save(results.record(kind, [*_rows.values()], limits, {"rounds": ROUNDS}), path)
        row = rows[contender]
        if row["status"] == SKIPPED:
            pytest.skip(row["reason"])
        assert row["status"] == OK, row["reason"]
        seconds = median(row["samples"])
        benchmark.extra_info |= {key: row[key] for key in ("flops", "bytes", "parity", "memory")}
        benchmark.extra_info["images/s"] = row["batch"] / seconds
        benchmark.extra_info["TFLOP/s"] = row["flops"] / seconds / 1e12
        benchmark.extra_info["GB/s"] = row["bytes"] / seconds / 1e9
        benchmark.extra_info["roofline"] = row["roofline_seconds"] / seconds
        benchmark.extra_info["peak memory"] = row["memory"].get("tensor_bytes") or row["memory"].get("resident_bytes")
        samples = iter(row["samples"])

        def advance() -> None:
            global _now
            _now += next(samples)

        benchmark.pedantic(advance, rounds=len(row["samples"]))

    return run
