"""docs/performance.md is what the records under benchmarks/results/ make, to the letter, and shows losses as wins."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from typing import Any

import browser
import pytest
from profiles import made_up

from fastres.measure import results
from fastres.measure.roofline import Ceilings

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import pages
import plots


def _row(contender: str, samples: list[float], **fields: Any) -> dict[str, Any]:
    row = {"name": "resnet18", "batch": 4, "size": 224, "dtype": "float32", "device": "cpu", "contender": contender}
    row |= {"status": "ok", "reason": "", "parity": None, "samples": samples, "memory": {"tensor_bytes": 5_000_000}}
    return row | {"flops": 2 * 10**9, "bytes": 10**8, "roofline_seconds": 0.01, **fields}


ROWS = [
    _row("eager", [0.10, 0.11, 0.12]),
    _row("quick", [0.05, 0.05, 0.05]),
    _row("alike", [0.08, 0.09, 0.085], memory={}),
    _row("absent", [], status="skipped", reason="not installed: a|b"),
    _row("fastres", [0.08, 0.085, 0.09]),
]


def _models(rows: list[dict[str, Any]] = ROWS) -> dict[str, Any]:
    return results.record("models", rows, {"float32": Ceilings(1e11, 1e10)}, {})


def _page(*records: dict[str, Any]) -> str:
    found = [(pages.RESULTS / "device" / f"{i}.json", record) for i, record in enumerate(records)]
    return pages.documents(found)[pages.PAGE]


def test_the_page_and_its_plots_are_what_the_records_make(capsys: pytest.CaptureFixture[str]) -> None:
    status = pages.main(["--check"])
    assert (status, capsys.readouterr().err) == (0, "")


def test_a_difference_is_told_and_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr(pages, "RESULTS", tmp_path / "results")
    (tmp_path / "results" / "cpu").mkdir(parents=True)
    results.save(_models(), tmp_path / "results" / "cpu" / "models.json")
    assert pages.main(["--check"]) == 1
    assert pages.main([]) == 0
    assert pages.main(["--check"]) == 0
    page = tmp_path / pages.PAGE
    page.write_text(page.read_text().replace("110.0", "100.0"))
    assert pages.main(["--check"]) == 1
    assert pages.main([]) == 0
    (tmp_path / pages.IMAGES / "old.svg").write_text("")
    assert pages.main(["--check"]) == 1
    assert pages.main([]) == 0
    assert [path.name for path in (tmp_path / pages.IMAGES).iterdir()] == ["cpu-models.svg"]


def test_every_figure_of_a_race_is_in_its_table() -> None:
    text = _page(_models())
    for row in ROWS:
        (line,) = (line for line in text.splitlines() if line.startswith(f"| {row['contender']} |"))
        if not row["samples"]:
            assert "| skipped: not installed: a&#124;b |" in line
            continue
        time = median(row["samples"])
        assert f"{1e3 * time:.2f} [" in line or f"{1e3 * time:.1f} [" in line
        assert f"| {row['flops'] / time / 1e12:.3g} | {row['bytes'] / time / 1e9:.4g} |" in line
        assert f"| {row['roofline_seconds'] / time:.0%} |" in line
        assert f"| {row['batch'] / time:.1f} |" in line
        assert line.endswith("| 5.0 |" if row["memory"] else "|  |")
        if row["contender"] != "eager":
            ratio = median(b / s for b, s in zip(ROWS[0]["samples"], row["samples"], strict=True))
            assert f"| {ratio:.2f} [" in line


def test_losses_come_first_and_what_the_quartiles_cannot_tell_is_even() -> None:
    text = _page(_models())
    assert "fastres is slower than quick (0.588); even with alike (1); faster than eager (1.29)." in text
    assert "fastres has no time here." in _page(_models(ROWS[:2]))


def test_the_plot_stripes_who_is_faster() -> None:
    svg = plots.speeds([("4 x resnet18", ROWS)], "title")
    bars = [line for line in svg.splitlines() if "<title>" in line and line.startswith("<rect")]
    fills = {line.split("<title>")[1].split(":")[0]: line.split('fill="')[1].split('"')[0] for line in bars}
    assert fills == {"eager": "#56B4E9", "quick": "url(#hatch)", "alike": fills["alike"], "fastres": "#0072B2"}
    lengths = {line.split("<title>")[1].split(":")[0]: float(line.split('width="')[1].split('"')[0]) for line in bars}
    ratios = {name: summary.median for name, summary in plots.ratios(ROWS).items()}
    assert lengths == pytest.approx({name: ratio * lengths["eager"] for name, ratio in ratios.items()}, rel=1e-3)


def test_where_no_gpu_has_run_the_page_says_so() -> None:
    assert "**There is no result of a GPU here**" in _page(_models())
    gpu = made_up("resnet50", "cuda", ())
    gpu["environment"]["gpus"] = [{"name": "NVIDIA H100"}]
    text = _page(_models(), gpu)
    assert "There is no result of a GPU" not in text
    assert text.index("## NVIDIA H100") < text.index("Whole models")


def test_a_profile_shows_steps_that_lost_and_fusions() -> None:
    record = made_up()
    name = record["steps"][2]["name"]
    variants = record["problems"][record["steps"][2]["problem"]]["variants"]
    variants["library"]["samples"] = [sample / 10 for sample in variants["library"]["samples"]]
    text = _page(record)
    assert f"Steps slower than PyTorch, unfused: {name}.\n" in text
    assert text.count("made of several calls") == 3


@pytest.mark.browser
def test_plots_in_a_browser_have_no_texts_that_touch(tmp_path: Path) -> None:
    files = pages.documents([*pages.records(pages.RESULTS), (Path("models.json"), _models())])
    drawn = [text for path, text in files.items() if path.suffix == ".svg"]
    html = f"<!doctype html><html><body>{''.join(drawn)}</body></html>"
    assert browser.ask(html, browser.COLLISIONS, tmp_path) == []
