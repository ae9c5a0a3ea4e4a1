"""`fastres bench`, driven as a user does."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fastres
from fastres.cli import bench, main
from fastres.measure import contenders, results
from fastres.measure.workload import Workload

SMALL = ["--models", "resnet18", "--size", "32", "--batch", "2", "--rounds", "3", "--device", "cpu", "--threads", "1"]


def test_bench_checks_times_prints_and_saves(tmp_path, capsys):
    """A wrong contender gets no time, and makes the exit status 1; the others get theirs."""
    path = tmp_path / "r.json"
    arguments = ["bench", *SMALL, "--against", "eager", "odd_contenders:wrong", "--json", str(path)]
    assert main(arguments) == 1
    printed = capsys.readouterr().out
    assert "resnet18, batch 2, 32 px, float32, cpu" in printed
    timed = [line.split()[0] for line in printed.splitlines() if "[" in line and "[quartiles]" not in line]
    assert timed == ["eager", "fastres"]
    assert "odd_contenders:wrong failed: wrong result, so no time: error" in printed
    rows = {row["contender"]: row for row in results.load(path)["rows"]}
    for name in timed:
        assert len(rows[name]["samples"]) == 3
        assert rows[name]["parity"]["error"] <= rows[name]["parity"]["bound"]
        assert rows[name]["flops"] > 0
    assert rows["odd_contenders:wrong"]["samples"] == []
    assert main(["bench", "--show", str(path)]) == 1
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], ["eager", "eager-channels-last", "fastres"]),
        (["--against", "openvino", "eager"], ["openvino", "eager", "fastres"]),
        (["--against", "fastres", "eager", "eager"], ["eager", "fastres"]),
        (["--backend", "reference", "--against", "fastres"], ["fastres", "fastres:reference"]),
        (["--backend", "auto", "--against", "fastres:reference"], ["fastres:reference", "fastres"]),
    ],
)
def test_the_baseline_is_first_and_fastres_last(arguments, names, monkeypatch):
    monkeypatch.setattr(contenders.Contender, "unavailable", lambda self, workload: None)
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    assert bench._contenders(parser.parse_args(arguments), Workload("resnet18", 1)) == names


def test_all_contenders_are_those_of_the_device():
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    names = bench._contenders(parser.parse_args(["--against", "all"]), Workload("resnet18", 1))
    assert names[0] == "eager"
    assert names[-1] == "fastres"
    assert set(names) == {name for name in contenders.NAMES if "cpu" in contenders.get(name).devices}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "vgg16"], "argument --models: unknown model 'vgg16', expected one of resnet18"),
        (["--batch", "0"], "argument --batch: expected a whole number from 1"),
        (["--dtype", "int8"], "argument --dtype: unknown dtype 'int8'"),
        (["--device", "tpu"], "argument --device: unknown device 'tpu'"),
        (["--backend", "magic"], "argument --backend: unknown backend 'magic'"),
        (["--against", "nobody"], "argument --against: unknown contender 'nobody', expected one of fastres, eager"),
        (["--against", "eager-graph", "--device", "cpu"], "'eager-graph' is not available: runs on cuda only"),
        (["--rounds", "many"], "argument --rounds: expected a whole number"),
        (["--json", "/no/such/folder/r.json"], "argument --json: cannot write '/no/such/folder/r.json'"),
        (["--json", "."], "argument --json: cannot write '.'"),
        (["--show", "/no/such/file"], "argument --show: "),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_argument(arguments, message, capsys):
    assert main(["bench", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_dtype_that_pytorch_cannot_run_is_wrong_usage(monkeypatch, capsys):
    import torch

    def conv2d(*args, **kwargs):
        raise RuntimeError("could not create a primitive descriptor\nsecond line")

    monkeypatch.setattr(torch.nn.functional, "conv2d", conv2d)
    assert main(["bench", *SMALL, "--dtype", "float16"]) == 2
    error = capsys.readouterr().err
    assert "argument --dtype: PyTorch cannot run float16 convolutions on cpu: could not create a primitive" in error


def test_a_disk_that_fills_up_still_shows_the_table(tmp_path, monkeypatch, capsys):
    path = tmp_path / "old.json"
    row = {"name": "resnet18", "batch": 2, "size": 32, "dtype": "float32", "device": "cpu", "contender": "eager"}
    row |= {"status": "skipped", "reason": "because", "samples": [], "memory": {}}
    results.save(results.record("models", [row], {}, {}), path)

    def full(result, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results, "save", full)
    assert main(["bench", "--show", str(path), "--json", str(tmp_path / "new.json")]) == 1
    captured = capsys.readouterr()
    assert "eager skipped: because" in captured.out
    assert "No space left on device" in captured.err


@pytest.mark.parametrize(
    ("how", "status", "told"), [(signal.SIGINT, 130, ["fastres: interrupted"]), (signal.SIGTERM, 143, [])]
)
def test_an_interrupt_leaves_no_child_and_no_file_behind(how, status, told, tmp_path):
    paths = [Path(fastres.__file__).parents[1], Path(__file__).parent]
    process = subprocess.Popen(
        [sys.executable, "-m", "fastres", "bench", *SMALL, "--against", "odd_contenders:hangs"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 100
        while len(children := _children(process.pid)) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(how)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == status
    assert errors.splitlines() == told
    assert os.listdir(tmp_path) == []
    deadline = time.monotonic() + 30  # they were told to end, and do so when the system lets them
    while any(map(_runs, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(_runs, children))


def _children(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_json_is_utf8_and_ends_with_a_newline(tmp_path):
    path = tmp_path / "r.json"
    results.save(results.record("models", [], {}, {"name": "é"}), path)
    assert path.read_bytes().endswith(b"}\n")
    assert json.loads(path.read_text(encoding="utf-8"))["settings"]["name"] == "é"
