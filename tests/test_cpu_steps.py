"""The passes of a training step in native code on the CPU, against autograd in float64 (tests/passes.py)."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from passes import Layer, Norm, affine, nhwc
from torch import Tensor

import fastres
from fastres import native
from fastres.backends.cpu_steps import CpuSteps, track
from fastres.backends.reference_steps import ReferenceSteps
from fastres.backends.steps import Moments, Relu, Shortcut
from fastres.block import Geometry, Pool

FLOATS = (torch.float32, torch.float64)
every_float = pytest.mark.parametrize("dtype", FLOATS, ids=str)

# One slab is 64 Ki elements in rows of 64 columns or more: below, at and past both, and what is left at the end.
NORMS = {
    "one channel": Norm(n=3, c=1, image=(7, 5)),
    "one row": Norm(n=2, c=70, image=(1, 1), relu=False),
    "rows left over": Norm(n=3, c=9, image=(7, 3)),
    "no ReLU": Norm(relu=False),
    "shortcut": Norm(c=24, shortcut=True),
    "projected": Norm(c=20, shortcut=True, projected=True),
    "slabs": Norm(n=2, c=33, image=(50, 41), shortcut=True),
    "slabs of one channel": Norm(n=2, c=1, image=(210, 201)),
    "slabs of many": Norm(n=1, c=1030, image=(11, 13), shortcut=True, projected=True),
}
every_norm = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS.keys())


@pytest.fixture
def steps() -> CpuSteps:
    return CpuSteps()


@every_norm
def test_norm(steps: CpuSteps, norm: Norm) -> None:
    norm.check(steps, torch.float32)


@pytest.mark.parametrize("projected", [False, True])
def test_a_gradient_passes_nan(steps: CpuSteps, projected: bool) -> None:
    Norm(c=24, shortcut=True, projected=projected).check(steps, torch.float32, not_finite=True)


@pytest.mark.parametrize(
    "layer",
    [Layer(), Layer(c=7, k=13, stride=(2, 2)), Layer(k=1, image=(40, 45)), Layer(c=8, k=64, image=(37, 33))],
)
def test_conv_and_wgrad(steps: CpuSteps, layer: Layer) -> None:
    layer.check_conv(steps, torch.float32)
    layer.check_wgrad(steps, torch.float32)


def given(norm: Norm, dtype: torch.dtype) -> tuple[Tensor, Tensor, Moments, Relu | None]:
    """y, gradient, moments and ReLU."""
    y, _, _, shortcut, gradient = norm.inputs(torch.float32)
    vectors = torch.randn(3, norm.c).to(dtype)
    known = affine(norm.c)
    relu = Relu(known._make(v.to(dtype) for v in known), shortcut and to(shortcut, dtype)) if norm.relu else None
    return y.to(dtype), gradient.to(dtype), Moments(*vectors, y.numel() // norm.c), relu


def to(shortcut: Shortcut, dtype: torch.dtype) -> Shortcut:
    scaled = shortcut.affine
    return Shortcut(shortcut.x.to(dtype), scaled and scaled._make(v.to(dtype) for v in scaled))


@every_norm
def test_every_bit_is_the_same_on_any_number_of_threads(steps: CpuSteps, norm: Norm) -> None:
    y, gradient, moments, relu = given(norm, torch.float32)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in 1, 2, 3:
            torch.set_num_threads(threads)
            dy, masked, sums = steps.norm_backward(y, gradient, moments, relu, reduce=None, keep_masked=True)
            assert masked is not None
            out = torch.zeros(()) if relu is None else steps.apply(y, relu.affine, relu.shortcut)
            found.append([t.clone() for t in (dy, masked, sums, out)])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@every_norm
@pytest.mark.parametrize("keep_masked", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
def test_norm_backward_is_the_reference_in_float64(
    steps: CpuSteps, norm: Norm, overwrite: bool, keep_masked: bool
) -> None:
    y, gradient, moments, relu = given(norm, torch.float64)
    for reduce in None, torch.zeros_like, lambda sums: sums * 3:
        expected = ReferenceSteps().norm_backward(y, gradient, moments, relu, reduce=reduce, keep_masked=keep_masked)
        mine = gradient.clone(memory_format=torch.preserve_format)
        found = steps.norm_backward(y, mine, moments, relu, reduce=reduce, overwrite=overwrite, keep_masked=keep_masked)
        assert overwrite or torch.equal(mine, gradient)
        for ours, theirs in zip(found, expected, strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                torch.testing.assert_close(ours, theirs)


POOLS = {
    "3x3": ((3, 2, 1), Norm(c=9, image=(9, 11))),
    "bands of rows": ((3, 2, 1), Norm(n=1, c=270, image=(31, 12))),
    "bands of windows": ((3, 1, 1), Norm(c=70, image=(67, 31), relu=False)),
    "more stride than kernel": ((2, 3, 0), Norm(c=1, image=(8, 9))),
    "windows that overlap": ((5, 2, 2), Norm(n=1, c=64, image=(60, 40))),
    "one window": ((3, 2, 1), Norm(c=24, image=(1, 1))),
    "with a shortcut": ((3, 2, 1), Norm(shortcut=True)),
}


@every_float
@pytest.mark.parametrize("filled", [None, "nan", "inf", "ties"])
@pytest.mark.parametrize(("pool", "norm"), POOLS.values(), ids=POOLS.keys())
def test_pool(steps: CpuSteps, pool: Pool, norm: Norm, filled: str | None, dtype: torch.dtype) -> None:
    """Maxima and their places, as autograd has them of the same activations."""
    y, _, _, shortcut, _ = norm.inputs(torch.float32)
    if filled == "ties":
        y = y.round()
    elif filled is not None:
        y[:, ::2, ::3, ::2] = float(filled)
        y[:, ::3, 1::3] = -float(filled)
    y, known = y.to(dtype), affine(norm.c)._make(v.to(dtype) for v in affine(norm.c))
    relu = Relu(known, shortcut and to(shortcut, dtype))
    out = steps.apply(y, relu.affine, relu.shortcut, norm.relu).requires_grad_()
    expected = F.max_pool2d(out, *pool)
    end = *relu, norm.relu, pool
    found = steps.apply_pool(y, *end)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    gradient = nhwc(torch.randn(expected.shape, dtype=dtype))
    dx = steps.pool_backward(y, gradient, *end)
    torch.testing.assert_close(dx, torch.autograd.grad(expected, out, gradient)[0])


def test_a_pooling_without_windows(steps: CpuSteps) -> None:
    y, known = nhwc(torch.randn(1, 4, 2, 2)), affine(4)
    with pytest.raises(ValueError, match=r"^pool: \(3, 2, 0\) has no window"):
        steps.apply_pool(y, known, None, True, (3, 2, 0))
    with pytest.raises(ValueError, match=r"^pool: expected kernel and stride of 1 or more, and padding of half"):
        steps.apply_pool(y, known, None, True, (2, 2, 2))


@every_float
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_statistics_of_what_is_not_finite(steps: CpuSteps, dtype: torch.dtype, value: str) -> None:
    x = torch.randn(2, 5, 9, 8).to(dtype)
    x[1, 3, 4, 4] = float(value)
    y, statistics = steps.conv(nhwc(x), torch.ones(5, 1, 1, 1, dtype=dtype), Geometry(groups=5))
    mean, var = torch.zeros(5, dtype=dtype), torch.ones(5, dtype=dtype)
    F.batch_norm(y, mean, var, training=True, momentum=1.0)
    assert not mean[3].isfinite()
    torch.testing.assert_close(statistics[:, 1], mean, equal_nan=True)
    torch.testing.assert_close(statistics[:, 2] / 143, var, equal_nan=True)


def test_variances_far_from_zero(steps: CpuSteps) -> None:
    """Sums of squares would have no digit of these; float32's own rounding of y leaves them three."""
    y, statistics = steps.conv(
        nhwc(torch.randn(4, 3, 40, 40) * torch.tensor([1e-2, 1.0, 1e3]).view(3, 1, 1) + 100.0),
        nhwc(torch.eye(3).view(3, 3, 1, 1)),
        Geometry(),
    )
    var, mean = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(statistics[:, 1].double(), mean, rtol=1e-7, atol=0)
    torch.testing.assert_close(statistics[:, 2].double() / 6400, var, rtol=1e-6, atol=0)


@every_float
@pytest.mark.parametrize("scaled", [False, True])
def test_vectors_and_running_statistics(steps: CpuSteps, scaled: bool, dtype: torch.dtype) -> None:
    y = torch.randn(4, 13, 3, 3).mul(3).add(torch.randn(13, 1, 1) * 10).to(dtype)
    gamma, beta = (v.to(dtype) for v in affine(13)) if scaled else (None, None)
    _, statistics = steps.conv(nhwc(y), torch.ones(13, 1, 1, 1, dtype=dtype), Geometry(groups=13))
    mean, invstd, scale, shift = steps.vectors(statistics, 36, gamma, beta, 1e-3)
    running = torch.randn(13, dtype=dtype), torch.rand(13, dtype=dtype)
    expected = [t.clone() for t in running]
    out = F.batch_norm(y, *expected, gamma, beta, True, 0.3, 1e-3)
    torch.testing.assert_close(y * scale.view(-1, 1, 1) + shift.view(-1, 1, 1), out)
    var64, mean64 = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(mean, mean64.to(dtype))
    torch.testing.assert_close(invstd, (var64 + 1e-3).rsqrt().to(dtype))
    version = running[0]._version
    assert track(*running, statistics, 0.3)
    assert running[0]._version == version + 1
    torch.testing.assert_close(running, tuple(expected))
    assert not track(*(t.half() for t in running), statistics, 0.3)


def test_without_the_native_module(monkeypatch: pytest.MonkeyPatch) -> None:
    why = "the native module fastres._C was not built"
    monkeypatch.setattr(native, "load", lambda: None)
    monkeypatch.setattr(native, "why_missing", lambda: why)
    model = fastres.ResNet18(num_classes=3).train()
    assert {(layer.backend, layer.reason) for layer in fastres.explain(model, torch.randn(2, 3, 32, 32)).layers} == {
        ("aten", f"native: {why}")
    }


def test_views(steps: CpuSteps) -> None:
    """Off a vector's alignment, and with gaps, which cost a copy."""
    memory = torch.randn(3 * 6 * 5 * 24 + 1)
    y = memory[1:].view(3, 6, 5, 24).permute(0, 3, 1, 2)
    known = affine(24)
    expected = steps.apply(y.clone(), known)
    assert torch.equal(steps.apply(y, known), expected)
    padded = torch.randn(3, 6, 7, 24)
    padded[:, :, 1:6] = y.permute(0, 2, 3, 1)
    assert torch.equal(steps.apply(padded[:, :, 1:6].permute(0, 3, 1, 2), known), expected)
    spaced = torch.stack([torch.stack(tuple(known)), torch.zeros(2, 24)], 2)[..., 0]
    assert torch.equal(steps.apply(y, known._make(spaced)), expected)


def test_what_does_not_fit(steps: CpuSteps) -> None:
    y, gradient, moments, relu = given(Norm(c=24), torch.float32)
    assert relu is not None
    with pytest.raises(ValueError, match=r"^gradient: expected torch.float32 \(2, 24, 3, 3\) on cpu, got"):
        steps.pool_backward(y, gradient, relu.affine, None, True, (3, 2, 1))
    with pytest.raises(ValueError, match=r"^gradient: expected torch.float32 \(2, 24, 6, 5\) on cpu, got"):
        steps.norm_backward(y, gradient[:1], moments, relu, reduce=None)
    with pytest.raises(ValueError, match=r"^shortcut: expected .* got torch.float64"):
        steps.apply(y, relu.affine, Shortcut(y.double()))
    with pytest.raises(ValueError, match=r"^scale: expected torch.float32 \[24\], got torch.float32 \(23,\)"):
        steps.apply(y, relu.affine._replace(scale=torch.ones(23)))
    with pytest.raises(ValueError, match=r"^sums: expected torch.float32 \[24, 2\], got"):
        steps.norm_backward(y, gradient, moments, relu, reduce=Tensor.double)


def test_narrow_dtypes_take_the_reference(steps: CpuSteps) -> None:
    norm = Norm(shortcut=True)
    norm.check(steps, torch.bfloat16)


# Pages that a tensor of 24 MiB costs where several of its size were freed, after a step that trains.
_REUSE = """
import json, resource, torch, fastres
model = fastres.ResNet18().train()
model(torch.zeros(2, 3, 32, 32)).sum().backward()

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(24 << 18).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(json.dumps([pages() for _ in range(8)][4:]))
"""


def _pages_of_equal_tensors(folder: Path, **environment: str) -> list[int]:
    path = os.pathsep.join([str(Path(fastres.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", _REUSE],
        cwd=folder,  # away from the sources, which Python would look at first
        env={**clean, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc's malloc")
def test_memory_of_one_step_serves_the_next(tmp_path: Path) -> None:
    assert max(_pages_of_equal_tensors(tmp_path)) < 100  # of 6,144 of 4 KiB


def test_malloc_settings_of_the_user_stay(tmp_path: Path) -> None:
    """Blocks over the threshold asked for are mapped anew, in pages of 4 KiB or of 2 MiB."""
    assert min(_pages_of_equal_tensors(tmp_path, MALLOC_MMAP_THRESHOLD_="1000000")) >= 12
