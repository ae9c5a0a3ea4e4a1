"""The page of `fastres profile --html`: its figures are the record's, it stands alone, it looks right in a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import browser
import pytest
from PIL import Image
from profiles import made_up

from fastres.cli import main
from fastres.measure import charts, page, profile_tables, results, svg
from fastres.measure.statistics import summarize

EVERY = {
    "a CPU": made_up(),
    "a GPU, all fused": made_up("resnet50", "cuda", ()),
}


@pytest.fixture(params=EVERY, scope="module")
def record(request: pytest.FixtureRequest) -> dict[str, Any]:
    return json.loads(json.dumps(EVERY[request.param]))  # as it comes out of a file


def test_the_page_stands_alone(record: dict[str, Any]) -> None:
    html = page.page(record)
    assert "<script" not in html
    assert set(re.findall(r"(?:href|src|xmlns|url)\s*[=(]\s*[\"']?([^\"')\s>]+)", html)) == {
        "http://www.w3.org/2000/svg",
        "#hatch",
    }
    assert "@import" not in html


def test_what_the_record_says_is_escaped(record: dict[str, Any]) -> None:
    evil = "<script>alert(1)</script>"
    record = json.loads(json.dumps(record))
    record["settings"]["model"] = record["environment"]["cpu"]["model"] = evil
    record["steps"][0]["name"] = record["steps"][1]["name"] = evil
    record["problems"][0] |= {"backend": evil, "reason": evil}
    record["problems"][0]["variants"]["unfused"] |= {"status": "failed", "reason": evil}
    record["problems"][1]["variants"]["unfused"]["kernels"] = [evil]
    record["rows"][0]["contender"] = evil
    for launch in record["launches"] or []:
        launch["name"] = evil
    html = page.page(record)
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)" in html


def test_every_chart_is_well_formed_and_has_a_name(record: dict[str, Any]) -> None:
    drawn = [make(record) for make in (charts.steps, charts.plans, charts.roofline, charts.memory, charts.launches)]
    assert (drawn[-1] == "") == (record["launches"] is None)
    for text in filter(None, drawn):
        root = ElementTree.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root[0].tag.endswith("title")
        assert root[0].text


def test_the_pages_figures_are_the_records(record: dict[str, Any]) -> None:
    html = page.page(record)
    steps = html.partition("<h2>Every distinct step</h2>")[2]
    for line in profile_tables.lines(record):
        assert line.time is not None
        row = next(row for row in steps.split("<tr>") if f">{line.name}<" in row)
        assert f"<td>{svg.number(1e3 * line.time.median)}<small>" in row
        assert f"<td>{line.roofline:.0%}</td>" in row
        assert f"<td>{line.count}</td>" in row
        assert line.against is not None
        assert f"<td>{line.against.median:.2f}<small>" in row
    for worth in profile_tables.worths(record):
        row = next(row for row in html.split("<tr>")[1:] if f">{worth.fusion}: " in row)
        assert f"<td>{1e3 * worth.predicted:.3f}</td><td>{worth.predicted_ratio:.3f}</td>" in row
        assert (worth.saved is None) == ("made of several calls" in row)
        if worth.saved is not None:
            assert f"<td>{1e3 * worth.saved.median:.3f} [" in row
    time = summarize(record["rows"][1]["samples"]).median
    assert f"<b>{svg.number(8 / time)}</b><span>images a second</span>" in html
    assert ("On a CPU there are no launches" in html) == (record["launches"] is None)
    if record["launches"]:
        n = len(record["launches"])  # of 10 microseconds, with 2 between two
        assert f"The GPU waits {2 * (n - 1) / (12 * n - 2):.0%} of a forward" in html


def test_bars_are_as_long_as_their_times(record: dict[str, Any]) -> None:
    """In the chart of steps, blue and striped together are the step's time, on one scale."""
    root = ElementTree.fromstring(charts.steps(record))
    bars = [
        e
        for e in root.iter("{http://www.w3.org/2000/svg}rect")
        if e.find("{http://www.w3.org/2000/svg}title") is not None
    ]
    length: dict[float, float] = {}
    for bar in bars:
        length[float(bar.get("y", 0))] = length.get(float(bar.get("y", 0)), 0) + float(bar.get("width", 0))
    lengths = [length[y] for y in sorted(length)]
    times = [line.time.median for line in charts.in_order(record) if line.time]
    assert len(lengths) == len(times) == len(record["steps"])
    scale = sum(lengths) / sum(times)
    assert lengths == pytest.approx([time * scale for time in times], abs=0.1)


def test_a_failed_step_has_no_bar_and_is_named(record: dict[str, Any]) -> None:
    record = json.loads(json.dumps(record))
    problem = record["problems"][record["steps"][1]["problem"]]
    problem["variants"][problem["plan"]] |= {"status": "failed", "reason": "wrong result, so no time", "samples": []}
    html = page.page(record)
    assert f"{record['steps'][1]['name']}, {problem['plan']}: wrong result, so no time" in html
    assert html.count("<td>no time</td>") == 1


def test_a_saved_record_becomes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results.save(made_up(), tmp_path / "r.json")
    assert main(["profile", "--show", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html")]) == 0
    capsys.readouterr()
    assert (tmp_path / "r.html").read_text(encoding="utf-8") == page.page(results.load(tmp_path / "r.json"))
    assert main(["profile", "resnet18", "--html", str(tmp_path)]) == 2
    assert "argument --html: cannot write" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (12, "12"), (0.0123, "0.0123"), (1234.5, "1234"), (2.5e-7, "2.5e-07"), (10, "10")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert svg.number(value) == text


def test_ticks_are_round_and_reach_the_top() -> None:
    assert svg.ticks(1.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert svg.ticks(270) == [0, 50, 100, 150, 200, 250]
    assert svg.ticks(0) == [0]


@pytest.mark.browser
@pytest.mark.parametrize("width", [1000, 700])
def test_in_a_browser_nothing_overlaps_or_is_cut_off(record: dict[str, Any], width: int, tmp_path: Path) -> None:
    html = page.page(record)
    seen = browser.ask(
        html, f"[{browser.COLLISIONS}, document.documentElement.scrollWidth, innerWidth]", tmp_path, width
    )
    collisions, needed, given = seen
    assert collisions == []
    assert (needed, given) == (width, width)


@pytest.mark.browser
def test_in_a_browser_the_charts_are_in_their_colours(record: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page.page(record), encoding="utf-8")
    browser.picture(path, tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.size == (1000, 3000)
        counts = {f"#{r:02X}{g:02X}{b:02X}": n for n, (r, g, b) in picture.convert("RGB").getcolors(1 << 24)}
    for colour in (svg.BLUE, svg.SKY, svg.ORANGE, svg.VERMILLION, svg.GREEN):
        assert counts[colour] > 100
    assert counts["#FFFFFF"] > 1000 * 3000 / 2


@pytest.mark.browser
def test_in_print_it_takes_a_few_pages(record: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page.page(record), encoding="utf-8")
    browser.print_out(path, tmp_path / "page.pdf")
    pages = len(re.findall(rb"/Type /Page\b", (tmp_path / "page.pdf").read_bytes()))
    assert 3 <= pages <= 7
