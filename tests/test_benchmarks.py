"""benchmarks/run_gpu.sh, in its dry run on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastres.measure import results

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "run_gpu.sh"


def _run(folder, *arguments):
    settings = {"FASTRES_BENCH_DEVICE": "cpu", "FASTRES_BENCH_ROUNDS": "2", "FASTRES_BENCH_RESULTS": str(folder)}
    environment = {**os.environ, **settings, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    return subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True, timeout=300)


def test_a_stage_checks_times_records_and_shows(tmp_path):
    extra = tmp_path / "benchmark.json"
    done = _run(tmp_path / "results", "layers", "-k", "layer1.1.conv1 or layer3.1", f"--benchmark-json={extra}")
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (tmp_path / "results").iterdir()
    record = results.load(path)
    found = {(row["name"], row["contender"]) for row in record["rows"]}
    names = ("layer1.1.conv1", "layer3.1")
    assert found == {(name, contender) for name in names for contender in ("eager-channels-last", "fastres")}
    for row in record["rows"]:
        assert row["parity"]["error"] <= row["parity"]["bound"]
        assert len(row["samples"]) == 2
    assert record["ceilings"]["float32"]["flops_per_second"] > 0
    for benchmark in json.loads(extra.read_text())["benchmarks"]:
        info = benchmark["extra_info"]
        names = ("images/s", "TFLOP/s", "GB/s", "bytes", "flops", "roofline", "peak memory")
        assert min(info[name] for name in names) > 0
        assert info["images/s"] == pytest.approx(1 / benchmark["stats"]["median"])
    last = done.stdout.splitlines()[-20:]
    assert any("1 x layer3.1 float32" in line for line in last)
    assert last[-1] == f"record: {path}"


def test_a_stage_that_measures_nothing_fails(tmp_path):
    done = _run(tmp_path, "layers", "-k", "no_such_layer")
    assert done.returncode == 1
    assert "stage layers left no record" in done.stderr
    assert list(tmp_path.iterdir()) == []


def _stand_in(folder, status):
    """A compute-sanitizer that notes its arguments, and runs the program or fails."""
    program = folder / "compute-sanitizer"
    program.write_text(f"""#!/bin/sh
echo "$*" >> {folder}/calls
while [ "$1" != "$PYTHON" ]; do shift; done
[ {status} != 0 ] && exit {status}
exec "$@"
""")
    program.chmod(0o755)


@pytest.mark.parametrize("status", [0, 9])
def test_the_sanitizer_s_four_tools_run_the_selftest(tmp_path, monkeypatch, status):
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    _stand_in(tmp_path, status)
    done = _run(tmp_path, "sanitizer", "--match", "head")
    assert done.returncode == (status != 0), done.stdout + done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[1] for call in calls] == ["memcheck", "racecheck", "initcheck", "synccheck"]
    assert all("-m fastres selftest --device cpu --dtype float32 --backend reference" in call for call in calls)
    assert done.stdout.count("reference on cpu: 2 passed") == (4 if status == 0 else 0)


def test_without_the_sanitizer_its_stage_fails_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    done = _run(tmp_path, "sanitizer")
    assert done.returncode == 1
    assert "compute-sanitizer: not found on PATH, nor in CUDA_HOME/bin" in done.stdout


def test_profile_is_asked_for_a_record_and_a_page(tmp_path, monkeypatch):
    """By a stand-in for Python that writes down its arguments: the command itself is tested elsewhere."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nwhile [ "$1" != --json ]; do echo "$1"; shift; done\necho {} > "$2"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("FASTRES_BENCH_MODELS", "resnet18,resnet50")
    monkeypatch.setenv("FASTRES_BENCH_BATCHES", "4,8")
    done = _run(tmp_path / "results", "profile")
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (tmp_path / "results").iterdir()
    asked = " ".join(done.stdout.splitlines()[:-1])
    assert asked.startswith("-m fastres profile resnet18 --batch 4 --device cpu --dtype float32 --rounds 2 ")
    assert done.stdout.splitlines()[-1] == f"record: {path}"


def test_selftest_leaves_what_it_printed(tmp_path):
    done = _run(tmp_path, "selftest", "--dtype", "float32")
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.iterdir()
    assert path.name.endswith("-selftest.txt")
    assert path.read_text() == done.stdout
    assert "onednn" in done.stdout


@pytest.mark.parametrize("arguments", [(), ("no_such_stage",)])
def test_an_unknown_stage_is_told_the_stages(tmp_path, arguments):
    done = _run(tmp_path, *arguments)
    assert done.returncode == 2
    assert "layers     ResNet-50's convolutions and blocks in bfloat16" in done.stderr


def test_a_folder_that_cannot_be_made_is_a_failure():
    assert _run("/dev/null/results", "layers").returncode == 1
