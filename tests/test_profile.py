"""`fastres profile` and what it is made of: variants of a step, kernels' names, the record, its tables."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from fastres.cli import main
from fastres.emulator.triton import emulated
from fastres.measure import kernels, memory, profile, profile_tables, results, traffic, variants
from fastres.measure.parity import check
from fastres.measure.roofline import Ceilings
from fastres.measure.workload import Workload

CPU = torch.device("cpu")
KINDS = ("stem", "conv", "residual", "projection")
SMALL = ["resnet18", "--batch", "2", "--size", "32", "--device", "cpu", "--threads", "1", "--rounds", "2"]


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A profile's record, and the folder that `fastres profile` left r.json and trace.json in."""
    folder = tmp_path_factory.mktemp("profile")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profile, "SAMPLE_SECONDS", {"cpu": 0.001})
        assert main(["profile", *SMALL, "--json", str(folder / "r.json"), "--trace", str(folder / "trace.json")]) == 0
    return results.load(folder / "r.json"), folder


def _steps(model: str, size: int) -> list[traffic.Step]:
    return list(dict.fromkeys(step.problem() for step in traffic.steps(model, 2, size)))


def _step(kind: str) -> traffic.Step:
    """A small one of its kind; "residual" is a convolution with a shortcut."""
    found = [s for s in _steps("resnet18", 32) if s.kind == kind.replace("residual", "conv")]
    return next(s for s in found if (kind == "residual") == (s.kind == "conv" and s.layers[0].residual))


@pytest.mark.parametrize(
    ("backend", "dtype", "kind"),
    [(name, torch.float32, kind) for name in ("", "reference") for kind in (*KINDS, "head")]
    + [("emulator", torch.bfloat16, kind) for kind in KINDS],
)
@torch.inference_mode()
def test_every_variant_of_a_step_is_the_same_function(backend: str, dtype: torch.dtype, kind: str) -> None:
    """Also when called again, once `restore` has undone what a call wrote over its inputs."""
    step = _step(kind)
    made = variants.concrete(step, dtype, CPU, backend)
    assert made.backend == (backend or ("reference" if kind == "head" else "onednn"))
    assert {*made.composed, *made.calls} == {variants.LIBRARY, *traffic.distinct_plans(step)}
    for call in made.calls.values():
        call()
        made.restore()
        check(call(), made.expected64, made.baseline)


@torch.inference_mode()
def test_what_a_backend_composes_is_told_from_what_it_fuses() -> None:
    composed = {
        name: {kind: variants.concrete(_step(kind), torch.bfloat16, CPU, name).composed for kind in KINDS}
        for name in ("emulator", "reference")
    }
    assert composed["emulator"] == {kind: [] for kind in KINDS}
    assert composed["reference"]["projection"] == ["bias-relu", "residual", "projection"]
    made = variants.concrete(_step("projection"), torch.float32, CPU)
    assert (made.composed, made.plan) == (["projection"], "residual")


def test_a_wrong_variant_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    right = variants._call

    def wrong(step: Any, operands: Any, backend: Any, plan: str) -> Any:
        call = right(step, operands, backend, plan)
        return (lambda: call() * 1.01) if plan == "bias-relu" else call

    monkeypatch.setattr(variants, "_call", wrong)
    settings = profile.Settings(Workload("resnet18", 2, 32), rounds=2)
    problem = profile._race(_step("conv"), settings, Ceilings(1e12, 1e11), 0)
    failed, right_one = problem["variants"]["bias-relu"], problem["variants"]["unfused"]
    assert failed["status"] == "failed"
    assert failed["reason"].startswith("wrong result, so no time: error")
    assert (failed["samples"], len(right_one["samples"])) == ([], 2)
    record = {"steps": [{"name": "conv", "problem": 0}], "problems": [problem], "rows": []}
    assert profile.failures(record) == [f"conv, bias-relu: {failed['reason']}"]
    (line,) = profile_tables.lines(record)
    assert line.time is line.against is line.roofline is None


def test_onednn_says_which_implementation_ran_and_what_it_fused() -> None:
    made = variants.concrete(_step("residual"), torch.float32, CPU)
    (name,) = kernels.names(made.calls["residual"], CPU)
    assert name.endswith("+sum")
    (apart,) = kernels.names(made.calls["unfused"], CPU)
    assert name == f"{apart}+sum"  # the ReLU, which keeps NaN, is PyTorch's
    assert kernels.names(lambda: None, CPU) == []


def test_triton_says_its_tiles() -> None:
    with emulated(80), torch.inference_mode():
        made = variants.concrete(_step("residual"), torch.bfloat16, CPU, "triton")
        made.restore()
        check(made.calls["residual"](), made.expected64, made.baseline)
    assert set(made.tiles) == set(made.calls)
    assert made.tiles["library"] == []
    (tile,) = made.tiles["residual"]
    assert re.fullmatch(r"conv \d+x\d+x\d+, \d warps, \d stages", tile)


def test_a_call_that_no_graph_can_hold_fails_when_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(call: Any, device: torch.device) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(variants, "captured", refuse)
    call = variants._on_gpu(lambda: torch.ones(1), torch.device("cuda"))
    with pytest.raises(RuntimeError, match="not permitted"):
        call()


def test_output_of_libraries_is_collected_and_ours_restored(capfd: pytest.CaptureFixture[str]) -> None:
    with kernels.written_to(1) as lines:
        os.write(1, b"theirs\n")
    os.write(1, b"ours\n")
    assert lines == ["theirs"]
    assert capfd.readouterr().out == "ours\n"


def test_gaps_are_where_nothing_runs() -> None:
    """Kernels may overlap, and one may end within another."""
    found = kernels.in_order(
        iter([("c", 19_000, 1_000), ("a", 10_000, 4_000), ("b", 12_000, 1_000), ("d", 20_000, 500)])
    )
    assert [(launch.name, launch.start) for launch in found] == [("a", 0), ("b", 2), ("c", 9), ("d", 10)]
    assert kernels.gaps(found) == kernels.Gaps(launches=4, busy=5.5, idle=5.0, longest=5.0)
    assert kernels.gaps([]) == kernels.Gaps(0, 0.0, 0.0, 0.0)


def test_memory_over_time_ends_where_it_began() -> None:
    mega = 1 << 20

    def forward() -> torch.Tensor:
        a = torch.empty(4 * mega, dtype=torch.uint8)
        b = torch.empty(2 * mega, dtype=torch.uint8)
        del a
        return b

    points = memory.timeline(forward, CPU)
    assert [live for _, live in points] == [4 * mega, 6 * mega, 2 * mega]
    assert [time for time, _ in points] == sorted(time for time, _ in points)


def test_the_record_has_every_step_with_parity_before_time(profiled: tuple[dict[str, Any], Path]) -> None:
    record, _ = profiled
    expected = traffic.steps("resnet18", 2, 32)
    assert [step["name"] for step in record["steps"]] == [step.name for step in expected]
    for place, step in zip(record["steps"], expected, strict=True):
        problem = record["problems"][place["problem"]]
        cost = step.best(torch.float32)
        assert (problem["flops"], problem["bytes"]) == (cost.flops, cost.bytes)
        assert problem["roofline_seconds"] > 0
        assert problem["plan"] in problem["variants"]
        assert {*problem["variants"], *problem["composed"]} == {"library", *traffic.distinct_plans(step)}
        for name, variant in problem["variants"].items():
            assert variant["parity"]["error"] <= variant["parity"]["bound"]
            assert len(variant["samples"]) == 2
            if step.kind != "head" and name != "library":
                assert any("conv" in kernel for kernel in variant["kernels"])
    assert {row["contender"] for row in record["rows"]} == {"eager-channels-last", "fastres"}
    assert max(live for _, live in record["memory"]) > 0
    assert record["launches"] is None
    assert record["settings"]["threads"] == 1


def test_the_table_is_made_of_the_record(
    profiled: tuple[dict[str, Any], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    record, folder = profiled
    assert main(["profile", "--show", str(folder / "r.json")]) == 0
    out = capsys.readouterr().out
    assert "resnet18, batch 2, 32 px, float32, cpu" in out
    for line in profile_tables.lines(record):
        (row,) = (row for row in out.splitlines() if row.startswith(f"{line.name} "))
        assert f"{1e3 * line.time.median:.2f}" in row or f"{1e3 * line.time.median:.4f}" in row
        assert f"{line.roofline:.0%}" in row
        assert kernels_of(line.problem) in row or line.problem["kind"] in ("head", "projection")
    for worth in profile_tables.worths(record):
        (row,) = (row for row in out.splitlines() if row.startswith(f"{worth.fusion} "))
        assert f"{worth.predicted_ratio:.2f}" in row
        if worth.ratio is None:
            assert "made of several calls" in row
        else:
            assert f"{worth.ratio.median:.2f} [" in row
    assert "only 2 rounds of 15 or more: a glance, not a result" in out


def kernels_of(problem: dict[str, Any]) -> str:
    return ", ".join(profile_tables.kernel_names(problem))


def test_sums_of_rounds_take_each_step_under_the_plan(profiled: tuple[dict[str, Any], Path]) -> None:
    record, _ = profiled
    for plan, named in (("unfused", "unfused"), ("library", "library")):
        samples = [record["problems"][step["problem"]]["variants"][named]["samples"] for step in record["steps"]]
        assert profile.round_sums(record, plan) == [sum(s[i] for s in samples) for i in range(2)]
    # under "residual", a plain convolution runs as under "bias-relu", the last fusion that it has
    problem = next(p for p in record["problems"] if p["kind"] == "conv" and not p["layers"][0]["residual"])
    assert profile.variant_of(problem, "residual") == "bias-relu"


def test_the_trace_is_chromes(profiled: tuple[dict[str, Any], Path]) -> None:
    _, folder = profiled
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    names = [event.get("name") for event in events]
    assert names.count("forward 1") == names.count("forward 3") == 1
    assert names.count("fastres::stage") == profile.TRACED_FORWARDS
    assert sorted(path.name for path in folder.iterdir()) == ["r.json", "trace.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected MODEL, or --show FILE"),
        (["vgg16"], "argument MODEL: unknown model 'vgg16', expected one of resnet18"),
        (["resnet18", "--batch", "0"], "argument --batch: expected a whole number from 1"),
        (["resnet18", "--backend", "magic"], "argument --backend: unknown backend 'magic'"),
        (["resnet18", "--json", "/no/such/folder/r.json"], "argument --json: cannot write '/no/such/folder/r.json'"),
        (["resnet18", "--trace", "."], "argument --trace: cannot write '.'"),
        (["--show", "/no/such/file"], "argument --show: "),
        (["--show", "r.json", "--trace", "t.json"], "argument --trace: a record has no trace in it"),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_argument(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_record_of_another_kind_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bench.json"
    results.save(results.record("models", [], {}, {}), path)
    assert main(["profile", "--show", str(path)]) == 2
    assert "expected a profile's record, got one of models" in capsys.readouterr().err


def test_a_backend_that_cannot_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """The emulator computes no float32 in exactly."""
    assert main(["profile", *SMALL, "--backend", "emulator"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("fastres: error: backend 'emulator' cannot run this convolution: ")
    assert captured.err.count("\n") == 1
