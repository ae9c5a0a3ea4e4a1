"""Measuring tiles, with a clock that prefers one: what is found is right, is kept, and is used from then on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from problems import DEVICE, INTERPRETED, SMALL, Convolution
from torch import Tensor

from fastres import tuning
from fastres.cli import main
from fastres.measure import tiles
from fastres.measure.tiles import Measured, measuring
from fastres.tuning import Problem, Tile

FAST, SLOW = Tile(16, 32, 16, 4, 2), Tile(32, 16, 16, 4, 2)


@pytest.fixture(autouse=True)
def _two_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FASTRES_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "candidates", lambda *problem: iter([SLOW, FAST]))
    monkeypatch.setattr(tiles, "warm_up", lambda *call: 1)
    tuning.refresh()
    yield
    tuning.refresh()


def clock(function: Callable[[], Tensor], calls: int) -> float:
    return 1.0 if function.keywords["tile"] == FAST else 2.0  # type: ignore[attr-defined]


def test_the_fastest_is_reported_once_a_problem() -> None:
    problem, found = Convolution(n=1), list[Measured]()
    inputs = problem.inputs(torch.float32)
    with measuring(clock, 5, found.append):
        first = problem.fused(*inputs, tile=None)
        assert torch.equal(problem.fused(*inputs, tile=None), first)
    key = Problem("conv", 30, 24, 16, 9, 1)
    known = tuning.known(key, "float32", torch.device(DEVICE))
    assert found == [Measured(key, "float32", known, FAST, 2.0, 1.0)]
    assert tuning.known(key, "float32", torch.device(DEVICE)) == known  # nothing is kept that nobody records


def test_a_tile_that_changes_the_result_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(tile: Tile) -> Tensor:
        return torch.ones(4) if tile == SMALL else torch.full((4,), 1.01)

    monkeypatch.setattr(tuning, "known", lambda *problem: SMALL)
    with (
        measuring(clock, 5, lambda measured: None),
        pytest.raises(RuntimeError, match=r"conv m1 .* is off by 1\.000e-02"),
    ):
        tuning.choose(Problem("conv", 1, 1, 1, 1, 1), "float32", torch.device(DEVICE), run)


@pytest.mark.skipif(not INTERPRETED, reason="on a GPU nothing is missing")
def test_the_command_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "ResNet18", "--batch", "1", "--size", "32", "--dtype", "bfloat16"]) == 1
    assert "interpreter does not compute in bfloat16" in capsys.readouterr().err
    assert main(["tune", "NoNet"]) == 2
