"""CUDA C++ through the compiler that comes with torch, and the PTX through the emulator."""

from __future__ import annotations

import struct
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from nvrtc import compile_ptx

from fastres import emulator

PROBES = Path(__file__).parent / "probes.cu"


@lru_cache
def probes(arch: str = "compute_80", *defines: str) -> emulator.Module:
    return emulator.load(compile_ptx(PROBES.read_text(), PROBES.name, arch, defines))


@pytest.fixture(params=["compute_80", "compute_90a"])
def arch(request: pytest.FixtureRequest) -> str:
    return request.param


def test_structure_by_value(arch: str) -> None:
    x, y = torch.randn(1000), torch.full((1000,), float("nan"))
    argument = struct.pack("<QQif", x.data_ptr(), y.data_ptr(), 1000, 2.0)
    report = probes(arch).launch("scale", (8,), (128,), [argument], memory=[x, emulator.Fresh(y)])
    expected = torch.addcmul(torch.tensor([1.0, 2.0, 3.0, 4.0]).repeat(250), x, torch.tensor(2.0))
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)
    assert report.traffic["global"].write_unique == 4000 + 4  # y and the counter of launches
    assert report.traffic["const"].read_unique == 16


def test_memory_outside_the_arguments_is_nobody_s() -> None:
    x, y = torch.randn(8), torch.zeros(8)
    argument = struct.pack("<QQif", x.data_ptr(), y.data_ptr(), 8, 2.0)
    with pytest.raises(emulator.Fault, match=r"out-of-bounds(.|\n)*probes.cu:15"):
        probes().launch("scale", (1,), (32,), [argument], memory=[y])


@pytest.mark.parametrize("threads", [64, 256, 1024])
def test_block_sums(arch: str, threads: int) -> None:
    x = torch.randn(5000)
    for seed in range(3):
        sums = torch.full((3,), float("nan"))
        arguments = [x, emulator.Fresh(sums), 5000]
        report = probes(arch).launch("block_sums", (3,), (threads,), arguments, shared=4 * threads, seed=seed)
        assert report.findings == ()
        exact = torch.stack([x.double()[torch.arange(5000) // threads % 3 == block].sum() for block in range(3)])
        torch.testing.assert_close(sums.double(), exact, rtol=0, atol=1e-3)


def test_a_missing_barrier_is_located() -> None:
    x, sums = torch.randn(512), torch.zeros(1)
    for seed in range(10):
        with pytest.raises(emulator.Fault) as fault:
            probes("compute_80", "NO_BARRIER").launch(
                "block_sums", (1,), (256,), [x, sums, 512], shared=1024, seed=seed
            )
        assert fault.value.finding.kind in ("race", "uninitialized")
        assert "probes.cu" in fault.value.finding.source


def test_divergent_loop(arch: str) -> None:
    start = torch.arange(1, 200, dtype=torch.int32)
    steps = torch.zeros_like(start)
    probes(arch).launch("collatz", (2,), (128,), [start, emulator.Fresh(steps), len(start)])

    def count(value: int) -> int:
        turns = 0
        while value != 1:
            value = 3 * value + 1 if value % 2 else value // 2
            turns += 1
        return turns

    assert steps.tolist() == [count(value) for value in start.tolist()]


def test_local_array(arch: str) -> None:
    x = torch.randint(1, 2**31 - 1, (64,), dtype=torch.int32)
    y = torch.zeros_like(x)
    probes(arch).launch("reverse_digits", (1,), (64,), [x, emulator.Fresh(y)])
    assert [value & 0xFFFFFFFF for value in y.tolist()] == [int(str(v)[::-1]) % 2**32 for v in x.tolist()]


def test_last_block_sums_up(arch: str) -> None:
    x = torch.randn(3000)
    for seed in range(5):
        partial, done = torch.zeros(6), torch.zeros(1, dtype=torch.int32)
        result = torch.full((1,), float("nan"))
        arguments = [x, emulator.Fresh(partial), done, emulator.Fresh(result), 3000]
        report = probes(arch).launch("total", (6,), (128,), arguments, seed=seed)
        assert report.findings == ()
        torch.testing.assert_close(result.double()[0], x.double().sum(), rtol=0, atol=1e-3)
        done.zero_()
        with pytest.raises(emulator.Fault, match="race"):
            probes(arch, "NO_FENCE").launch("total", (6,), (128,), arguments, seed=seed)


def test_compiles_say_where_they_fail() -> None:
    with pytest.raises(RuntimeError, match=r"broken\.cu"):
        compile_ptx("__global__ void k() { nonsense }", "broken.cu")
