"""The measuring harness: statistics, parity, processes, memory, rooflines and the record."""

import errno
import json
import math
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastres
from fastres import tf32
from fastres.measure import compare, contenders, memory, parity, processes, results, roofline, timing, workload
from fastres.measure import session as session_module
from fastres.measure.statistics import speedup, summarize

SMALL = workload.Workload("resnet18", batch=2, size=32)


@pytest.fixture(scope="module")
def material():
    return workload.prepare(SMALL)


@pytest.fixture
def saved(material, tmp_path):
    material.save(tmp_path / "material.pt")
    return tmp_path / "material.pt"


# statistics


@pytest.mark.parametrize("count", [1, 2, 3, 4, 15])
def test_quartiles_are_numpys(count):
    samples = np.random.default_rng(count).exponential(size=count).tolist()
    summary = summarize(samples)
    expected = np.percentile(samples, [0, 25, 50, 75])
    assert (summary.low, summary.q1, summary.median, summary.q3) == pytest.approx(tuple(expected))
    assert summary.count == count


def test_no_samples_are_no_summary():
    with pytest.raises(ValueError, match="at least one"):
        summarize([])


def test_ratios_are_paired_by_round():
    """The machine halves its speed from round to round; the ratio does not notice."""
    state = [2.0**i for i in range(15)]
    faster = speedup([3 * s for s in state], state)
    assert (faster.q1, faster.median, faster.q3) == (3, 3, 3)
    with pytest.raises(ValueError, match="as many as the baseline's 2"):
        speedup([1, 1], [1])


def test_rounds_alternate_in_both_directions():
    order = []
    samplers = {name: lambda name=name: order.append(name) or len(order) for name in "abc"}
    samples = timing.alternate(samplers, 3)
    assert "".join(order) == "abccbaabc"
    assert samples == {"a": [1, 6, 7], "b": [2, 5, 8], "c": [3, 4, 9]}


def test_a_time_limit_leaves_the_fewest_rounds():
    samples = timing.alternate({"a": lambda: 1.0}, 100, until=time.monotonic() - 1)
    assert len(samples["a"]) == timing.FEWEST_ROUNDS


def test_warm_up_chooses_calls_that_fill_a_sample():
    def timer(function, calls):
        function()
        return 0.003

    assert timing.warm_up(lambda: None, timer, torch.device("cpu")) == math.ceil(timing.SAMPLE_SECONDS["cpu"] / 0.003)


def test_the_cpu_timer_returns_the_mean_of_its_calls(monkeypatch):
    clock = iter([10.0, 16.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    calls = []
    assert timing.cpu_timer(lambda: calls.append(0), 3) == 2.0
    assert len(calls) == 3


# parity


def test_parity_allows_twice_pytorchs_error_and_an_ulp():
    exact = torch.tensor([1.0, 2.0], dtype=torch.float64)
    baseline = torch.tensor([1.0, 2.0 + 2**-10])
    found = parity.check(torch.tensor([1.0 + 2**-9, 2.0]), exact, baseline)
    assert (found.error, found.baseline_error, found.bound) == (2**-9, 2**-10, 2**-9 + 2**-22)
    with pytest.raises(parity.ParityError, match=r"error 0.00195, allowed 0.00195 \(PyTorch's own 0.000977\)"):
        parity.check(torch.tensor([1.0 + 2**-9 + 2**-21, 2.0]), exact, baseline)


def test_parity_holds_the_norm_too():
    """Every error is allowed by the largest of PyTorch's, and all together are more than twice as much."""
    exact = torch.zeros(100, dtype=torch.float64)
    baseline, actual = torch.full((100,), 1e-4), torch.full((100,), 6e-4)
    baseline[0] = 1e-3
    assert parity.check(actual.where(torch.arange(100) < 4, 0), exact, baseline).error < 2 * baseline.max()
    with pytest.raises(parity.ParityError, match=r"in norm, error 0\.006, allowed 0\.0028"):
        parity.check(actual, exact, baseline)


@given(n=st.integers(2, 2000), seed=st.integers(0, 2**16))
def test_parity_of_equally_good_results_is_no_matter_of_luck(n, seed):
    """Two draws of the same error, however few: a largest error alone would now and then be half of another."""
    errors = torch.randn(2, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    errors *= n**0.5 / errors.norm(dim=1, keepdim=True)
    exact = torch.zeros(n, dtype=torch.float64)
    actual, baseline = (1e-3 * errors).float()
    parity.check(actual, exact, baseline)
    with pytest.raises(parity.ParityError):
        parity.check(actual * 2.1, exact, baseline)


def test_pytorchs_own_convolutions_are_in_channels_last():
    x, weight = torch.randn(2, 8, 9, 8), torch.randn(6, 8, 3, 3)
    with parity.pytorchs_own():
        y = torch.nn.functional.conv2d(x, weight)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, torch.nn.functional.conv2d(x.contiguous(memory_format=torch.channels_last), weight))


def test_pytorchs_own_in_tf32_is_of_rounded_operands_forward_and_backward():
    """On a CPU, which has no TF32, told to be the device: every other operator is as it was."""
    operands = [torch.randn(size, requires_grad=True) for size in ((2, 4, 9, 8), (6, 4, 3, 3))]
    gradient = torch.randn(2, 6, 7, 6)
    near = [tf32.rounded(t.detach()).requires_grad_() for t in operands]
    with parity._AsFastresComputes(tf32="cpu"):
        y = torch.nn.functional.conv2d(*operands)
        found = torch.autograd.grad(y, operands, gradient)
        assert torch.equal(operands[0] * operands[0], operands[0].square())
    expected = torch.nn.functional.conv2d(near[0].contiguous(memory_format=torch.channels_last), near[1])
    assert torch.equal(y, expected)
    for ours, right in zip(found, torch.autograd.grad(expected, near, tf32.rounded(gradient)), strict=True):
        assert torch.equal(ours, right)
    assert not torch.equal(y, torch.nn.functional.conv2d(*operands))


@pytest.mark.parametrize("allowed", [False, True])
def test_pytorchs_own_switches_tf32_off_and_back(allowed):
    with tf32.allowed(allowed):
        with parity.pytorchs_own():
            assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.allow_tf32 == allowed


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_parity_wants_nan_and_infinities_where_pytorch_has_them(value):
    exact, odd = torch.ones(3, dtype=torch.float64), torch.tensor([1.0, value, 1.0])
    assert parity.check(odd, exact, odd).error == 0
    for actual, baseline in [(odd, torch.ones(3)), (torch.ones(3), odd), (-odd, odd)]:
        if not math.isnan(value) or not torch.equal(actual.isnan(), baseline.isnan()):
            with pytest.raises(parity.ParityError):
                parity.check(actual, exact, baseline)


def test_a_peers_error_may_be_larger_and_ours_may_not():
    exact, baseline = torch.ones(1, dtype=torch.float64), torch.full((1,), 1 + 2**-10)
    actual = torch.full((1,), 1 + 7 * 2**-10)
    assert parity.check(actual, exact, baseline, compare.error_factor("openvino")).error == 7 * 2**-10
    for name in ("fastres", "fastres:reference", "fastres-graph"):
        with pytest.raises(parity.ParityError):
            parity.check(actual, exact, baseline, compare.error_factor(name))


def test_parity_refuses_another_shape_dtype_or_oracle():
    exact, ones = torch.ones(3, dtype=torch.float64), torch.ones(3)
    with pytest.raises(parity.ParityError, match=r"got \(1, 3\)"):
        parity.check(ones[None], exact, ones)
    with pytest.raises(parity.ParityError, match="float16"):
        parity.check(ones.half(), exact, ones)
    with pytest.raises(ValueError, match="expected64: expected float64"):
        parity.check(ones, ones, ones)
    with pytest.raises(ValueError, match="baseline: expected shape"):
        parity.check(ones, exact, ones[:2])


# workload


def test_a_workload_is_the_same_every_time_and_its_batchnorms_are_random(material):
    workload._foundation.cache_clear()
    again = workload.prepare(SMALL)
    assert all(torch.equal(again.state[name], tensor) for name, tensor in material.state.items())
    assert torch.equal(again.x, material.x)
    for name, tensor in material.state.items():
        if name.endswith("bn1.weight"):
            assert (tensor == 0).any()
            assert (tensor < 0).any()
        if name.endswith(("bn1.running_mean", "bn1.bias")):
            assert tensor.abs().min() > 0
    assert 0.1 < material.expected64.abs().max() < 100


def test_material_survives_its_file(material, saved):
    again = workload.Material.load(saved)
    assert again.workload == SMALL
    assert torch.equal(again.expected64, material.expected64)
    x = material.x
    with torch.inference_mode():
        assert torch.equal(again.model()(x), material.model()(x))


def test_the_oracle_covers_batches_larger_than_its_distinct_images():
    found = workload.prepare(workload.Workload("resnet18", batch=workload.DISTINCT + 2, size=32))
    assert torch.equal(found.expected64[0], found.expected64[workload.DISTINCT])
    assert not torch.equal(found.expected64[0], found.expected64[1])
    parity.check(found.baseline, found.expected64, found.baseline)
    assert (found.baseline - found.expected64).abs().max() < 1e-4


# contenders and processes


@pytest.mark.parametrize("name", ["nobody", "fastres:nobody", "no_such_module:nobody", "odd_contenders:nobody"])
def test_unknown_contenders_are_named(name):
    with pytest.raises(ValueError, match="nobody"):
        contenders.get(name)


def test_contenders_say_what_they_cannot_run():
    half = workload.Workload("resnet18", 1, dtype=torch.bfloat16)
    assert "cuda only" in contenders.get("eager-graph").unavailable(SMALL)
    assert contenders.get("eager").unavailable(half) is None
    missing = contenders.Contender("x", lambda model, x: None, needs=("no_such_package",))
    assert missing.unavailable(SMALL) == "not installed: no_such_package"
    assert contenders.get("openvino").unavailable(half)
    assert contenders.get("tensorrt").unavailable(SMALL)


def test_compare_times_the_right_and_only_those():
    """Contenders that give a wrong result, raise, die or fail when timed keep their rows, without a time."""
    odd = ["wrong", "raises", "dies", "raises_when_timed"]
    names = ["eager", "fastres", "eager-graph", *(f"odd_contenders:{name}" for name in odd)]
    steps, samples = [], []
    progress = compare.Progress(steps.append, lambda: samples.append(1))
    rows = {
        row.contender.removeprefix("odd_contenders:"): row
        for row in compare.compare(SMALL, names, 3, 1, progress=progress)
    }
    for name in ("eager", "fastres"):
        row = rows[name]
        assert (row.status, row.reason, len(row.samples)) == ("ok", "", 3)
        assert min(row.samples) > 0
        assert row.parity.error <= row.parity.bound
        assert row.memory["tensor_bytes"] > 0
        assert row.memory["resident_bytes"] > row.memory["tensor_bytes"]
    assert rows["eager-graph"].status == "skipped"
    for name in odd:
        assert (rows[name].status, rows[name].samples) == ("failed", [])
    assert "wrong result, so no time: error" in rows["wrong"].reason
    assert rows["raises"].reason == "RuntimeError: cannot build"
    assert rows["dies"].reason == "its process ended with exit status 3: last words"
    assert "StopIteration" in rows["raises_when_timed"].reason
    assert "fastres: building" in steps
    assert len(samples) >= 6


def test_a_session_in_this_process(material):
    session = session_module.Session("eager-channels-last", material)
    parity.check(session.output(), material.expected64, material.baseline)
    assert session.warm_up() >= 1
    assert session.sample() > 0
    assert session.memory()["tensor_bytes"] > 0
    session.close()
    assert not hasattr(session, "forward")


def test_a_contender_that_hangs_meets_the_deadline(saved):
    session = processes.RemoteSession("odd_contenders:hangs", saved, 1, deadline=0.5)
    try:
        with pytest.raises(processes.ContenderError, match=r"no answer within 0.5 s"):
            session.started()
    finally:
        session.close()
    assert session.process.returncode == -9


def test_closing_ends_what_the_contender_started(saved):
    session = processes.RemoteSession("odd_contenders:leaves_a_process", saved, 1)
    session.started()
    assert len(_group(session.process.pid)) == 2
    session.close()
    session.close()
    _wait_until(lambda: not _group(session.process.pid))


def test_a_child_ends_when_its_parent_is_killed(saved):
    script = (
        "import sys, time; sys.path[:0] = sys.argv[2:]\n"
        "from fastres.measure.processes import RemoteSession\n"
        "print(RemoteSession('odd_contenders:hangs', sys.argv[1], 1).process.pid, flush=True)\n"
        "time.sleep(3600)"
    )
    paths = [str(Path(fastres.__file__).parents[1]), str(Path(__file__).parent)]
    parent = subprocess.Popen([sys.executable, "-c", script, saved, *paths], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    assert _group(child) == [child]
    parent.kill()
    parent.communicate()
    _wait_until(lambda: not _group(child))


def _group(leader):
    """The living members of a process group."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as file:
                state, _, group = file.read().rpartition(")")[2].split()[:3]
        except OSError:  # it ended meanwhile
            continue
        if int(group) == leader and state != "Z":
            found.append(int(entry))
    return found


def _wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


# memory


def test_peak_memory_counts_what_lives_at_once():
    mega = 1 << 20

    def forward():
        a = torch.empty(4 * mega, dtype=torch.uint8)
        b = torch.empty(2 * mega, dtype=torch.uint8)
        del a
        return b, torch.empty(mega, dtype=torch.uint8)

    assert memory.peak_bytes(forward, torch.device("cpu")) == 6 * mega


def test_peak_memory_sees_what_operators_allocate_inside():
    """A softmax of transposed data copies it first: three tensors of the input's size, of which two live at the end."""
    x = torch.rand(256, 1024).t()
    size = x.numel() * 4
    assert memory.peak_bytes(lambda: torch.softmax(x.double(), 0).float(), torch.device("cpu")) >= 4 * size


def test_resident_memory_sees_every_allocator():
    def fill_pages() -> None:
        with mmap.mmap(-1, 128 << 20) as pages:  # not of malloc, which may have as much free memory resident already
            for _ in range(128):
                pages.write(bytes(1 << 20))

    low = memory.peak_resident_bytes(lambda: None)
    high = memory.peak_resident_bytes(fill_pages)
    assert 0 < low < high
    assert high - low > 100 << 20


# on a GPU


@pytest.mark.gpu
def test_the_cuda_timer_flushes_calls_and_returns_a_mean():
    device = torch.device("cuda")
    timer = timing.CudaTimer(device)
    timer.flush.fill_(1)
    calls = []
    seconds = timer(lambda: calls.append(torch.ones(1 << 20, device=device)), 3)
    assert len(calls) == 3
    assert 0 < seconds < 60
    assert timer.flush.count_nonzero() == 0
    assert timer.flush.numel() >= torch.cuda.get_device_properties(device).L2_cache_size


@pytest.mark.gpu
def test_peak_memory_on_a_gpu_counts_what_lives_at_once():
    mega = 1 << 20

    def forward():
        a, b = (torch.empty(size * mega, dtype=torch.uint8, device="cuda") for size in (4, 2))
        del a
        return b, torch.empty(mega, dtype=torch.uint8, device="cuda")

    assert memory.peak_bytes(forward, torch.device("cuda")) == 6 * mega


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_compare_on_a_gpu(dtype):
    small = workload.Workload("resnet18", batch=10, size=64, dtype=dtype, device=torch.device("cuda"))
    names = ["eager", "eager-channels-last", "eager-graph", "fastres", "fastres:cudnn", "fastres-graph"]
    rows = compare.compare(small, [*names, "openvino", "odd_contenders:opposite"], rounds=3)
    for row in rows[:-2]:
        assert (row.contender, row.status, row.reason, len(row.samples)) == (row.contender, "ok", "", 3)
        assert row.memory["tensor_bytes"] >= 0
    assert [row.status for row in rows[-2:]] == ["skipped", "failed"]


# rooflines


def _flops(batch):
    return sum(layer.cost(torch.float32).flops for layer in roofline.layers("resnet50", batch, 224))


def test_costs_of_resnet50_are_the_papers():
    """Table 1 of the paper: 3.8 billion multiply-adds; torchvision's has the stride in the 3x3: 4.09."""
    assert len(roofline.layers("resnet50", 1, 224)) == 54
    assert _flops(1) / 2 == pytest.approx(4.089e9, rel=1e-3)
    assert _flops(4) == 4 * _flops(1)


def test_the_bytes_of_a_layer_count_the_residual_once():
    by_name = {layer.name: layer for layer in roofline.layers("resnet50", 2, 224)}
    costs = {name: layer.cost(torch.bfloat16) for name, layer in by_name.items()}
    assert costs["conv1"].bytes == 2 * (2 * 3 * 224**2 + 64 * 3 * 49 + 2 * 64 * 112**2)
    assert costs["layer1.1.conv3"].flops == 2 * 2 * 256 * 56**2 * 64
    assert costs["layer1.1.conv3"].bytes == 2 * (2 * 64 * 56**2 + 256 * 64 + 2 * 2 * 256 * 56**2)
    assert costs["layer1.1.conv2"].bytes == 2 * (2 * 2 * 64 * 56**2 + 64 * 64 * 9)
    assert costs["fc"].flops == 2 * 2 * 2048 * 1000
    assert not by_name["layer1.0.downsample.0"].relu
    assert by_name["layer1.1.conv1"].problem() == by_name["layer1.2.conv1"].problem()


def test_a_grouped_convolution_costs_its_group():
    layer = next(layer for layer in roofline.layers("resnext50_32x4d", 1, 224) if layer.groups == 32)
    assert layer.cost(torch.float32).flops == 2 * 128 * 56**2 * 4 * 9


def test_the_roofline_takes_the_slower_of_arithmetic_and_memory():
    ceilings = roofline.Ceilings(flops_per_second=10, bytes_per_second=100)
    assert ceilings.seconds([roofline.Cost(20, 100), roofline.Cost(10, 300)]) == 2 + 3


# the record


def _record():
    row = {
        "name": "resnet18",
        "batch": 2,
        "size": 32,
        "dtype": "float32",
        "device": "cpu",
        "status": "ok",
        "reason": "",
    }
    row |= {
        "parity": {"error": 3e-6, "baseline_error": 2e-6},
        "flops": 2e9,
        "roofline_seconds": 0.05,
        "bytes": 1e9,
        "memory": {"tensor_bytes": 3e6},
    }
    rows = [
        {**row, "contender": "eager", "samples": [0.2] * 15},
        {**row, "contender": "fastres", "samples": [0.1] * 15},
        {**row, "contender": "bad", "samples": [], "status": "failed", "reason": "wrong result"},
    ]
    return results.record("models", rows, {"float32": roofline.Ceilings(1e12, 1e11)}, {"rounds": 15})


def _text(result, width=140):
    from rich.console import Console

    console = Console(width=width)
    with console.capture() as capture:
        console.print(results.tables(result, wide=width >= 115))
    return capture.get()


def test_a_record_survives_its_file_and_the_table_is_made_of_it(tmp_path):
    result = _record()
    results.save(result, tmp_path / "r.json")
    again = results.load(tmp_path / "r.json")
    assert again == json.loads(json.dumps(result))
    assert os.listdir(tmp_path) == ["r.json"]
    text = _text(again)
    assert text == _text(result)
    line = next(line for line in text.splitlines() if line.strip().startswith("fastres "))
    assert " ".join(line.split()) == "fastres 20.0 100.0 [100.0 100.0] 2.00 [2.00 2.00] 0.02 10 50% 1.5 3.0"
    assert "resnet18: bad failed: wrong result" in text
    assert [row["contender"] for row in results.failures(again)] == ["bad"]


def test_a_narrow_table_cuts_no_figure():
    lines = _text(_record(), width=80).splitlines()
    line = next(line for line in lines if line.strip().startswith("fastres "))
    assert " ".join(line.split()) == "fastres 20.0 100.0 [100.0 100.0] 2.00 [2.00 2.00] 3.0"


def test_a_table_says_when_rounds_are_few():
    result = _record()
    assert "rounds of" not in _text(result)
    for row in result["rows"]:
        row["samples"] = row["samples"][:5]
    assert "only 5 rounds of 15 or more" in _text(result)


def test_a_full_disk_leaves_the_old_record(tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    path.write_text("old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        results.save(_record(), path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["r.json"]


def test_what_is_no_record_is_refused(tmp_path):
    path = tmp_path / "r.json"
    for text, message in [("{", "not JSON"), ("[]", "expected a fastres record"), ('{"schema": 99}', "schema 1")]:
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            results.load(path)


def test_records_hold_no_path_or_host_name():
    text = json.dumps(_record())
    assert os.uname().nodename not in text
    assert os.getcwd() not in text
