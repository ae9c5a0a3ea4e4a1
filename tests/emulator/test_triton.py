"""Triton's own compiled kernels through the emulator: code that is known to be good, from the parser to mma and wgmma.

The oracle is float64. Sums are exact to float32, so a 16-bit result may be off by its own rounding and no more.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import triton_kernels as kernels

from fastres import emulator
from fastres.emulator import triton

TARGETS = (80, 90)
HALVES = (torch.float16, torch.bfloat16)


def assert_rounded(got: torch.Tensor, exact: torch.Tensor, terms: int) -> None:
    """Within one rounding to ``got``'s dtype of a sum of ``terms`` products made in float32."""
    slack = terms * 2.0**-24 * exact.abs().max()
    error = (got.double() - exact).abs()
    allowed = exact.abs() * torch.finfo(got.dtype).eps / 2 * 1.001 + slack
    assert (error <= allowed).all(), f"off by {(error - allowed).max()} more than allowed"


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("m", "n", "k"), [(128, 128, 128), (70, 90, 104)])
def test_matmul(target: int, dtype: torch.dtype, m: int, n: int, k: int) -> None:
    a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
    for seed in range(2):
        c = torch.full((m, n), float("nan"), dtype=dtype)
        grid = (-(-m // 64), -(-n // 64))
        report = triton.run(
            kernels.matmul, grid, a, b, emulator.Fresh(c), m, n, k, BM=64, BN=64, BK=32, target=target, seed=seed
        )
        assert report.findings == ()
        assert_rounded(c, a.double() @ b.double(), k)
    tensor_core = "wgmma.mma_async" if target == 90 else "mma.sync"
    used = [opcode for opcode in report.instructions if opcode.startswith(tensor_core)]
    assert used, f"no {tensor_core} among {sorted(report.instructions)}"
    assert report.macs >= m * n * k


@pytest.mark.parametrize("target", TARGETS)
def test_matmul_in_tf32(target: int) -> None:
    """Inputs that tf32 holds exactly, so that the products are exact."""
    a, b = torch.randn(64, 64).half().float(), torch.randn(64, 64).half().float()
    c = torch.full((64, 64), float("nan"))
    triton.run(kernels.matmul, (1, 1), a, b, emulator.Fresh(c), 64, 64, 64, BM=64, BN=64, BK=32, target=target)
    assert_rounded(c, a.double() @ b.double(), 64)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("target", TARGETS)
def test_convolution(target: int, dtype: torch.dtype) -> None:
    h, w, c, k = 9, 11, 40, 72
    x, weight = torch.randn(h, w, c).to(dtype), torch.randn(3, 3, c, k).to(dtype)
    exact = F.conv2d(x.double().permute(2, 0, 1)[None], weight.double().permute(3, 2, 0, 1), padding=1)
    exact = exact[0].permute(1, 2, 0).relu()
    for stages in (1, 3):
        y = torch.full((h, w, k), float("nan"), dtype=dtype)
        report = triton.run(
            kernels.conv3x3,
            (-(-h * w // 64), -(-k // 32)),
            x,
            weight,
            emulator.Fresh(y),
            h,
            w,
            c,
            k,
            relu=True,
            BM=64,
            BN=32,
            BK=32,
            target=target,
            num_stages=stages,
        )
        assert report.findings == ()
        assert_rounded(y, exact, 9 * c)


@pytest.mark.parametrize("target", TARGETS)
def test_softmax(target: int) -> None:
    x = torch.randn(5, 333).bfloat16()
    y = torch.full_like(x, float("nan"))
    report = triton.run(kernels.softmax, (5,), x, emulator.Fresh(y), 333, BLOCK=512, target=target)
    assert report.findings == ()
    exact = x.double().softmax(-1)
    assert (y.double() - exact).abs().max() <= torch.finfo(torch.bfloat16).eps * exact.max()


@pytest.mark.parametrize("target", TARGETS)
def test_atomics(target: int) -> None:
    x = torch.randint(0, 10, (1000,), dtype=torch.int32)
    counts = torch.zeros(10, dtype=torch.int32)
    triton.run(kernels.histogram, (4,), x, counts, 1000, BLOCK=256, target=target)
    assert torch.equal(counts, x.bincount(minlength=10).int())


@pytest.mark.parametrize("target", TARGETS)
def test_unmasked_access_is_caught(target: int) -> None:
    """The fault that Triton's interpreter lets pass."""
    x, y = torch.randn(1000), torch.zeros(1024)
    with pytest.raises(emulator.Fault) as fault:
        triton.run(kernels.unmasked, (4,), x, y, BLOCK=256, target=target)
    assert fault.value.finding.kind == "out-of-bounds"
    assert "triton_kernels.py" in fault.value.finding.source


def test_arguments_are_checked() -> None:
    x = torch.zeros(4)
    with pytest.raises(TypeError, match="missing 2 required positional arguments: 'y' and 'BLOCK'"):
        triton.run(kernels.unmasked, (1,), x)
    with pytest.raises(ValueError, match="target is 70, expected one of 80, 90"):
        triton.run(kernels.unmasked, (1,), x, x, BLOCK=4, target=70)
    with pytest.raises(ValueError, match="is on meta, expected a CPU tensor"):
        triton.run(kernels.unmasked, (1,), x.to("meta"), x, BLOCK=4)
