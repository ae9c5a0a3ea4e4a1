"""Triton's own sm_90 code, which is known to work: wgmma fed by cp.async and by TMA, every seed without a finding."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from fastres.emulator import triton as emulated


@triton.jit
def matmul(a_ptr, b_ptr, c_ptr, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    accumulator = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        a = tl.load(a_ptr + m[:, None] * K + k[None, :], mask=(m[:, None] < M) & (k[None, :] < K), other=0.0)
        b = tl.load(b_ptr + k[:, None] * N + n[None, :], mask=(k[:, None] < K) & (n[None, :] < N), other=0.0)
        accumulator = tl.dot(a, b, accumulator)
    mask = (m[:, None] < M) & (n[None, :] < N)
    tl.store(c_ptr + m[:, None] * N + n[None, :], accumulator.to(c_ptr.dtype.element_ty), mask=mask)


@triton.jit
def relu_matmul(a_ptr, b_ptr, c_ptr, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """A goes through registers, so that wgmma takes it from there."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    accumulator = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        a = tl.maximum(tl.load(a_ptr + m[:, None] * K + k[None, :]), 0.0).to(tl.float16)
        b = tl.load(b_ptr + k[:, None] * N + n[None, :])
        accumulator = tl.dot(a, b, accumulator)
    tl.store(c_ptr + m[:, None] * N + n[None, :], accumulator.to(c_ptr.dtype.element_ty))


@triton.jit
def tma_matmul(a_map, b_map, c_map, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    m, n = tl.program_id(0) * BM, tl.program_id(1) * BN
    accumulator = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        accumulator = tl.dot(a_map.load([m, k]), b_map.load([n, k]).T, accumulator)
    c_map.store([m, n], accumulator.to(c_map.dtype))


def integers(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Small integers: their products and sums are exact in float, whatever the order."""
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("m", "n", "k"), [(256, 128, 192), (200, 72, 104)])
@pytest.mark.parametrize("seed", [0, 1])
def test_cp_async_and_wgmma(dtype: torch.dtype, m: int, n: int, k: int, seed: int) -> None:
    a, b, c = integers(m, k, dtype=dtype), integers(k, n, dtype=dtype), torch.full((m, n), torch.nan, dtype=dtype)
    grid = (-(-m // 128), -(-n // 64))
    report = emulated.run(matmul, grid, a, b, c, m, n, k, BM=128, BN=64, BK=64, target=90, seed=seed)
    assert any(opcode.startswith("wgmma.mma_async") for opcode in report.instructions)
    assert report.findings == ()
    assert torch.equal(c, (a.double() @ b.double()).to(dtype))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_wgmma_with_a_from_registers(seed: int) -> None:
    a, b = integers(128, 128, dtype=torch.float16), integers(128, 64, dtype=torch.float16)
    c = torch.full((128, 64), torch.nan, dtype=torch.float16)
    lines: list[str] = []
    tiles = {"BM": 64, "BN": 64, "BK": 64}
    report = emulated.run(
        relu_matmul, (2, 1), a, b, c, 64, 128, **tiles, target=90, num_stages=2, seed=seed, trace=lines.append
    )
    wgmma = next(line for line in lines if "wgmma.mma_async" in line)
    assert wgmma.count("{") == 2  # D and A
    assert report.findings == ()
    assert torch.equal(c, (a.relu().double() @ b.double()).half())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("m", "n", "k"), [(256, 128, 192), (136, 72, 200)])
@pytest.mark.parametrize("target", [90, 80])
def test_tensor_descriptors(dtype: torch.dtype, m: int, n: int, k: int, target: int) -> None:
    """TMA on sm_90; for sm_80 Triton makes pointers of the descriptors."""
    a, b, c = integers(m, k, dtype=dtype), integers(n, k, dtype=dtype), torch.full((m, n), torch.nan, dtype=dtype)
    maps = [
        TensorDescriptor.from_tensor(tensor, [rows, columns])
        for tensor, rows, columns in ((a, 128, 64), (b, 64, 64), (c, 128, 64))
    ]
    grid = (-(-m // 128), -(-n // 64))
    for seed in range(3):
        c.fill_(torch.nan)
        report = emulated.run(tma_matmul, grid, *maps, k, BM=128, BN=64, BK=64, target=target, seed=seed)
        tma = any(opcode.startswith("cp.async.bulk.tensor") for opcode in report.instructions)
        assert tma == (target == 90)
        assert report.findings == ()
        assert torch.equal(c, (a.double() @ b.double().T).to(dtype))
