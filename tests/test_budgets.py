"""A forward costs what the table says, counted rather than timed: `python tests/budgets.py` renews it."""

from __future__ import annotations

import budgets
import pytest

# Another Python compiles the same source to other instructions: fewer in some releases, more in others.
OTHER_PYTHON = 1.5


@pytest.mark.parametrize("name", budgets.EXACT)
def test_a_forward_costs_what_the_table_says(name: str) -> None:
    assert budgets.EXACT[name]() == budgets.table()[name], "if this is meant: python tests/budgets.py"


def test_a_call_executes_no_more_instructions_than_the_table_says() -> None:
    budget = budgets.table()["instructions of a call"]
    allowed = 1.0 if budget.pop("python") == budgets.PYTHON else OTHER_PYTHON
    for name, count in budgets.instructions().items():
        assert count <= allowed * budget[name], f"{name}: if this is meant: python tests/budgets.py"


def test_an_import_loads_no_more_modules_than_the_table_says_and_nobody_elses() -> None:
    found, budget = budgets.imports(), budgets.table()["import"]
    assert found["modules"] <= budget["modules"], "if this is meant: python tests/budgets.py"
    assert found["packages"] == budget["packages"] == ["fastres"]


def test_instructions_are_counted_in_every_frame_and_the_same_each_time() -> None:
    def inner() -> int:
        return sum(i for i in range(10))

    def outer() -> int:
        return inner() + inner()

    once, twice = budgets._executed(inner), budgets._executed(outer)
    assert once > 10
    assert 2 * once < twice < 3 * once
    assert budgets._executed(inner) == once


def test_the_table_guards_what_matters() -> None:
    """A ResNet-50 is 3 operators; on CUDA kernels a stem, 44 convolutions and 4 projections, more where K is split."""
    table = budgets.table()
    assert sum(n for name, n in table["operators of a CPU forward"]["resnet50"].items() if name[:7] == "fastres") == 3
    launches = table["CUDA kernels of a forward"]["resnet50, batch 32"]
    assert (launches["stem"], launches["conv_sm80"]) == (1, 48)
    hopper = table["CUDA kernels of a forward on an H100"]["resnet50, batch 32"]
    assert (hopper["stem"], hopper["conv_sm90"]) == (1, 48)
    step = table["CUDA kernels of a training step on an H100"]["resnet50"]
    assert step["conv_sm90"] == 52 + 46  # all but the stem's, and of those that have stride 1, dgrad
    triton = table["Triton kernels of a forward"]["resnet50, batch 32"]
    assert (triton["stem_kernel"], triton["projection_kernel"]) == (1, 4)
    for model in budgets.MODELS:
        order = list(table["bytes of a plan"][model].values())
        assert order == sorted(order, reverse=True)
