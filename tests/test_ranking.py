"""What `fastres tune` makes of backends: distinct problems, right before timed, the fastest kept and used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from models import image, small_pair
from torch import Tensor

from fastres.backends import ranking, registry
from fastres.backends.reference import Reference
from fastres.cli import main
from fastres.measure import ranking as measuring
from fastres.measure.ranking import Problem
from fastres.selftest import Case, Convolution

CPU = torch.device("cpu")


class Timed(Reference):
    """Runs right, and takes `seconds` by the clock below."""

    keeps_parameters = False  # as a backend with weights of its own

    def __init__(self, name: str, seconds: float) -> None:
        self.name, self.seconds = name, seconds


class Wrong(Timed):
    def conv(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = super().conv(x, *args, **kwargs)
        y[-1, -1, -1, -1] += 1e4  # of the last image alone
        return y


class Refuses(Timed):
    def unsupported(self, x: Tensor, layer: Any) -> str:
        return "not today"


class Gone(Timed):
    def unavailable(self) -> str:
        return "no such device"


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Timed]]:
    monkeypatch.setenv("FASTRES_CACHE", str(tmp_path))
    kinds = {"slow": (Timed, 3.0), "fast": (Timed, 1.0), "wrong": (Wrong, 0.1), "picky": (Refuses, 0.1)}
    made = {name: kind(name, seconds) for name, (kind, seconds) in {**kinds, "gone": (Gone, 0.1)}.items()}
    for name, backend in made.items():
        monkeypatch.setitem(registry._registered, name, backend)
    monkeypatch.setitem(ranking.ORDER, "cpu", tuple(made))
    monkeypatch.setattr(measuring, "warm_up", lambda *call: 1)
    ranking.refresh()
    yield made
    monkeypatch.undo()
    ranking.refresh()


def clock(function: Callable[[], Tensor], calls: int) -> float:
    return registry._registered[function.args[0]].seconds  # type: ignore[attr-defined]


@pytest.mark.parametrize("operator", ["conv_bn_act", "projection", "stem", "stem_uint8"])
def test_the_fastest_right_one_wins(backends: dict[str, Timed], operator: str) -> None:
    stem = operator.startswith("stem")
    geometry = Convolution(2, 3, 9, 9, 8, 7, 2, 3) if stem else Convolution(2, 8, 5, 5, 16)
    shortcut = Convolution(2, 4, 9, 9, 16, stride=2) if operator == "projection" else None
    case = Case(operator, geometry, torch.float32, residual=operator == "conv_bn_act", shortcut=shortcut)
    with torch.no_grad():
        ranked = measuring.measure(Problem("key", 5, case), CPU, clock, 5)
    assert list(ranked.seconds.items()) == [("fast", 1.0), ("slow", 3.0)]
    assert ranked.left_out.keys() == {"wrong", "picky", "gone"}
    assert ranked.left_out["wrong"].startswith("wrong: error ")
    assert "not today" in ranked.left_out["picky"]
    assert "no such device" in ranked.left_out["gone"]


def test_problems_are_a_model_s_own_and_distinct() -> None:
    ours, _ = small_pair()
    with torch.no_grad(), registry.recording() as choices:
        ours(image())
    problems = list(measuring.problems(choices, torch.bfloat16))
    keys = [problem.key for problem in problems]
    assert len(set(keys)) == len(keys)
    assert {key.split()[0] for key in keys} == {"stem", "stem_uint8", "conv", "residual", "projection"}
    assert {problem.batch for problem in problems} == {2}
    for problem in problems:
        assert problem.case.dtype == torch.bfloat16
        assert (problem.case.shortcut is not None) == (problem.case.operator == "projection")
        if problem.case.shortcut is not None:
            assert problem.case.shortcut.k == problem.case.geometry.k
    asked = {ranking.key(c.operator, c.x_shape, c.layer) for c in choices if c.operator != "shortcut"}
    assert asked == {key for key in keys if not key.startswith("stem_uint8")}


def test_the_command_records_what_auto_then_uses(
    backends: dict[str, Timed], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(registry._registered, "triton", Timed("triton", 9.0))
    monkeypatch.setattr("fastres.measure.timing.timer_for", lambda device: clock)
    small = small_pair()[0].train(False)
    monkeypatch.setattr("fastres.resnet18", lambda: small)
    assert main(["tune", "ResNet18", "--batch", "2", "--size", "64", "--dtype", "float32"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "0 tiles measured on cpu" in out
    assert "fast 1000000.0 us, slow 3000000.0 us; wrong: wrong: error" in out
    with torch.no_grad(), registry.recording() as choices:
        small(image())
    assert {choice.backend for choice in choices} == {"fast"}


def test_without_the_backend_whose_tiles_it_measures(
    backends: dict[str, Timed], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(registry._registered, "triton", Gone("triton", 0.1))
    assert main(["tune", "ResNet18", "--batch", "1", "--size", "32"]) == 1
    assert "backend 'triton' is not available: no such device" in capsys.readouterr().err
