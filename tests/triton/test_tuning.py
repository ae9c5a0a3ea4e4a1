"""The tuning table: precedence, versions, damage, concurrent writers, and the heuristic's promises."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastres import tuning
from fastres.tuning import Problem, Tile

PROBLEM = Problem("conv", 3136, 64, 64, 9, 1)
TILE = Tile(64, 32, 32, 4, 2, 1)
ARCHITECTURES = [80, 86, 89, 90, 100, 120]
MULTIPROCESSORS = 108


def chosen(numbers: str = "bfloat16", arch: int = 90) -> Tile:
    return tuning._choose(PROBLEM, numbers, arch, MULTIPROCESSORS)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the user's table would be, in a folder of its own."""
    monkeypatch.setenv("FASTRES_CACHE", str(tmp_path / "cache"))
    tuning.refresh()
    yield tuning.user_table()
    tuning.refresh()


def test_measured_comes_before_guessed(table: Path) -> None:
    guess = chosen()
    assert guess != TILE
    assert tuning.record({PROBLEM: TILE}, "bfloat16", 90) == table
    assert chosen() == TILE
    assert chosen(arch=80) == tuning.heuristic(PROBLEM, "bfloat16", 80, MULTIPROCESSORS)
    assert chosen("float16") == guess  # what was measured in another arithmetic says nothing


def test_records_add_up(table: Path) -> None:
    other = PROBLEM._replace(m=49)
    tuning.record({PROBLEM: TILE}, "bfloat16", 90)
    tuning.record({other: TILE}, "bfloat16", 90)
    tuning.record({PROBLEM: TILE}, "float16", 80)
    tiles = json.loads(table.read_text())["tiles"]
    assert tiles == {
        "sm_90": {"bfloat16": {PROBLEM.key(): list(TILE), other.key(): list(TILE)}},
        "sm_80": {"float16": {PROBLEM.key(): list(TILE)}},
    }
    assert {path.name for path in table.parent.iterdir()} == {"tuning.json", ".lock"}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"version": 1}',
        '{"version": 1, "tiles": 3}',
        '{"version": 1, "tiles": {"sm_90": {"bfloat16": {"conv": [1, 2]}}}}',
        '{"version": 1, "tiles": {"sm_90": {"bfloat16": {"conv": [64, 64, 64, 4, "3"]}}}}',
        '{"version": 1, "tiles": {"sm_90": {"bfloat16": {"conv": [64, 64, 64, 4, -3]}}}}',
        "\x00\xff",
    ],
)
def test_a_damaged_table_is_passed_over_and_replaced(content: str, table: Path) -> None:
    guess = tuning.heuristic(PROBLEM, "bfloat16", 90, MULTIPROCESSORS)
    table.parent.mkdir()
    table.write_bytes(content.encode("latin-1"))
    with pytest.warns(UserWarning, match=r"tuning\.json cannot be used"):
        assert chosen() == guess
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen() == guess  # told once
    with pytest.warns(UserWarning, match=r"tuning\.json cannot be used"):
        tuning.record({PROBLEM: TILE}, "bfloat16", 90)
    assert chosen() == TILE


@pytest.mark.parametrize("stale", [{"version": 0}, {"kernels": "0123456789abcdef"}])
def test_a_table_of_other_kernels_is_passed_over(stale: dict[str, object], table: Path) -> None:
    tuning.record({PROBLEM: TILE}, "bfloat16", 90)
    table.write_text(json.dumps(json.loads(table.read_text()) | stale))
    tuning.refresh()
    assert chosen() == tuning.heuristic(PROBLEM, "bfloat16", 90, MULTIPROCESSORS)


def test_user_table_s_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FASTRES_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tuning.user_table() == tmp_path / "fastres" / "tuning.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert tuning.user_table() == Path.home() / ".cache" / "fastres" / "tuning.json"


def test_the_package_s_table_is_whole(table: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(tuning._tables()[1], dict)


PROBLEMS = st.builds(
    Problem,
    st.sampled_from(["conv", "gemm", "projection", "stem", "conv_train", "dgrad", "wgrad"]),
    st.integers(1, 1 << 22),
    st.integers(1, 4096),
    st.integers(1, 64),
    st.integers(1, 49),
    st.integers(1, 64),
)
NUMBERS = st.sampled_from(["bfloat16", "float16", "float32", "tf32"])


@given(PROBLEMS, NUMBERS, st.sampled_from(ARCHITECTURES), st.integers(1, 200))
def test_the_heuristic_s_tiles_can_be_launched(problem: Problem, numbers: str, arch: int, processors: int) -> None:
    tile = tuning.heuristic(problem, numbers, arch, processors)
    size = 2 if numbers in ("bfloat16", "float16") else 4
    assert all(side & (side - 1) == 0 and side >= 16 for side in tile[:3])
    assert tile.m >= 64  # a warpgroup's wgmma has 64 rows
    assert tile.warps in (4, 8)
    assert (tile.m + tile.n) * tile.k * size * tile.stages <= tuning.shared_memory(arch)


@given(PROBLEMS, NUMBERS, st.sampled_from(ARCHITECTURES))
def test_candidates_fit_and_differ(problem: Problem, numbers: str, arch: int) -> None:
    tiles = list(tuning.candidates(problem, numbers, arch))
    size = 2 if numbers in ("bfloat16", "float16") else 4
    assert len(set(tiles)) == len(tiles) >= 6
    assert all((t.m + t.n) * t.k * size * t.stages <= tuning.shared_memory(arch) for t in tiles)


def test_small_problems_get_small_tiles() -> None:
    """At batch 1 a ResNet-50's last stage has 49 pixels: eight tiles of 64 x 64 would leave most of a GPU idle."""
    tile = tuning.heuristic(Problem("conv", 49, 512, 512, 9, 1), "bfloat16", 90, 132)
    assert (tile.m, tile.n) == (64, 32)
    tile = tuning.heuristic(Problem("conv", 256 * 49, 512, 512, 9, 1), "bfloat16", 90, 132)
    assert (tile.m, tile.n) == (128, 128)
