"""The kernels compiled for GPUs that aren't there: what named models ask for, by its instructions and its resources."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import family
import pytest
import torch
from offline import MATRIX_INSTRUCTION, PLAIN_KERNELS, Compiled, target
from torch import Tensor

from fastres import tuning
from fastres.backends.steps import Affine, Relu, Running, Shortcut
from fastres.backends.triton_steps import TritonSteps
from fastres.block import Geometry
from fastres.kernels.conv import conv
from fastres.kernels.gemm import gemm
from fastres.kernels.projection import projection
from fastres.kernels.stem import stem
from fastres.measure.roofline import layers

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
ARCHITECTURES = [80, 90, 100, 120]


@pytest.fixture(autouse=True, scope="module")
def _empty_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def compiled(arch: int, run: Callable[[], object]) -> list[Compiled]:
    """What `run` makes Triton compile for `arch`. On tensors of the CPU that nothing reads: no kernel is launched."""
    with target(arch) as driver, torch.inference_mode():
        run()
    assert driver.compiled
    return driver.compiled


def check(kernel: Compiled, arch: int, folder: Path, exact: bool = False) -> None:
    """Fails if `kernel` spills, asks for too much shared memory, or uses other instructions than it should."""
    assert not kernel.uses_local_memory(folder), f"{kernel} spills"
    assert kernel.shared <= tuning.shared_memory(arch), str(kernel)
    if kernel.name in [plain.__name__ for plain in PLAIN_KERNELS] or kernel.constants.get("R") == 0:
        return
    assert (MATRIX_INSTRUCTION[arch] in kernel.ptx) != exact, str(kernel)
    if kernel.name != "stem_kernel":
        by_descriptor = kernel.constants.get("DESCRIPTORS", False)
        narrow = kernel.constants["PRECISION"] == "ieee" and not exact
        assert by_descriptor == (kernel.name == "gemm_kernel" and arch in (90, 100) and narrow)
        copy = "cp.async.bulk.tensor.2d.shared" if by_descriptor else "cp.async.cg.shared.global"  # cg: 16 bytes each
        assert copy in kernel.ptx, f"{kernel} loads without {copy}"
    if kernel.constants.get("RELU", kernel.name != "dgrad_kernel"):
        assert "max.NaN.f32" in kernel.ptx, f"{kernel} drops NaN"


@pytest.fixture
def matmul_tf32() -> Iterator[Callable[[bool], None]]:
    """Sets the classifier's switch for the test; its module has no attribute that monkeypatch could delete."""
    before = torch.backends.cuda.matmul.allow_tf32

    def switch(allowed: bool) -> None:
        torch.backends.cuda.matmul.allow_tf32 = allowed

    yield switch
    switch(before)


def _arithmetics() -> list[Any]:
    """bfloat16 always; what differs from it in types alone, and takes minutes, with `--sweep`."""
    others = ("float16", "tf32", "float32")
    return ["bfloat16", *(pytest.param(name, marks=pytest.mark.sweep) for name in others)]


@pytest.mark.parametrize("numbers", _arithmetics())
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_configuration_that_a_named_model_asks_for(
    arch: int,
    numbers: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    matmul_tf32: Callable[[bool], None],
) -> None:
    """Of every distinct convolution of every named model at batch 1, 32 and 256: the tile that `tuning` gives it."""
    dtype = torch.float32 if numbers == "tf32" else getattr(torch, numbers)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", numbers == "tf32")
    matmul_tf32(numbers == "tf32")

    def run() -> None:
        for problem in family.problems():
            family.launch(problem, dtype)

    kernels = compiled(arch, run)
    assert {kernel.name for kernel in kernels} == {
        "conv_kernel",
        "gemm_kernel",
        "projection_kernel",
        "stem_kernel",
        "average_pool_kernel",
    }
    for kernel in kernels:
        check(kernel, arch, tmp_path, exact=numbers == "float32")


def test_the_family_is_every_convolution_of_every_named_model() -> None:
    """Counted another way: by listening to torchvision's own models as they run."""
    for name, batch in (("resnet50", 1), ("resnext101_64x4d", 32), ("wide_resnet50_2", 256)):
        heard = {(layer.x, layer.weight, layer.stride, layer.groups) for layer in layers(name, batch, family.SIZE)}
        asked = {
            (c.x, (c.filters, c.x[1] // c.groups, *c.kernel), c.stride[0], c.groups)
            for problem in family.problems()
            for c in (problem.conv, *([problem.shortcut] if problem.shortcut else []))
        }
        pooled = {(x[:2], weight, stride, groups) for x, weight, stride, groups in asked}
        assert {(x[:2], *rest) for x, *rest in heard} <= pooled
        assert {key for key in heard if key[0][2:] != (1, 1)} <= asked  # all but the classifier, which pools as well


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    tensor = torch.empty(shape, dtype=dtype)
    return tensor.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else tensor


def every_kernel(dtype: torch.dtype) -> None:
    """Each kernel once, on the problems of a ResNeXt's second stage at batch 8, and the stem from 8-bit pixels."""
    x, residual = empty(8, 128, 28, 28, dtype=dtype), empty(8, 256, 28, 28, dtype=dtype)
    bias, vector = torch.empty(256), torch.empty(128)
    conv(x, torch.empty(256, 3, 3, 128, dtype=dtype), bias, residual, relu=True, padding=(1, 1))
    conv(x, torch.empty(128, 3, 3, 32, dtype=dtype), vector, relu=True, padding=(1, 1), groups=4)
    conv(x, torch.empty(256, 1, 1, 128, dtype=dtype), bias, residual, relu=True)
    branch = torch.empty(256, 1, 1, 128, dtype=dtype), bias, (1, 1), (0, 0), (1, 1)
    projection(x, branch, x, branch)
    normalize = torch.empty(3), torch.empty(3)
    pixels = torch.empty(8, 3, 224, 224, dtype=torch.uint8)
    stem(pixels, torch.empty(64, 7, 7, 3, dtype=dtype), torch.empty(64), normalize=normalize)


def trained_convolutions(dtype: torch.dtype) -> None:
    """Their passes on the problems of a ResNet-50's second stage at batch 32."""
    steps, affine = TritonSteps(), Affine(torch.empty(128), torch.empty(128))
    x, y = empty(32, 128, 56, 28, dtype=dtype), empty(32, 128, 28, 28, dtype=dtype)
    weight, small = torch.empty(128, 128, 3, 3, dtype=dtype), torch.empty(128, 128, 1, 1, dtype=dtype)
    strided = Geometry((2, 1), (1, 1))
    steps.conv(x, weight, strided, affine)
    wide = Affine(torch.empty(256), torch.empty(256))
    third = empty(32, 256, 14, 14, dtype=dtype), torch.empty(256, 256, 3, 3, dtype=dtype)  # 64 rows a tile on sm_80
    steps.conv(*third, Geometry((1, 1), (1, 1)), wide)
    steps.wgrad(y, x, weight, strided, affine)
    steps.dgrad(y, weight, x, strided)
    steps.dgrad(y, weight, y, Geometry((1, 1), (1, 1)))
    steps.dgrad(y, small, x, Geometry((2, 1)), x)


def trained_norm(dtype: torch.dtype) -> None:
    """The other passes, of a projection block's end."""
    steps, y, vector = TritonSteps(), empty(32, 128, 28, 28, dtype=dtype), torch.empty(128)
    running = Running(vector, vector, 0.1)
    moments, affine = steps.finalize(torch.empty(128, 3), 32 * 28 * 28, vector, vector, 1e-5, running)
    shortcut = Shortcut(y, affine)
    steps.apply(y, affine, shortcut)
    sums = steps.gradient_sums(y, y, vector, Relu(affine, shortcut))
    steps.bn_backward(y, y, moments, sums, Relu(affine, shortcut), keep_masked=True)


@pytest.mark.parametrize(
    "numbers", ["bfloat16", *(pytest.param(n, marks=pytest.mark.sweep) for n in ("float16", "tf32"))]
)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_trained_convolutions(arch: int, numbers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", numbers == "tf32")
    dtype = torch.float32 if numbers == "tf32" else getattr(torch, numbers)
    kernels = compiled(arch, lambda: trained_convolutions(dtype))
    expected = {"conv_kernel", "dgrad_kernel", "wgrad_kernel", "merge_kernel", "ordered_sum_kernel"}
    assert {kernel.name for kernel in kernels} == expected
    for kernel in kernels:
        check(kernel, arch, tmp_path)


def test_trained_convolutions_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside the tensor cores, where operands take registers too."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    for kernel in compiled(80, lambda: trained_convolutions(torch.float32)):
        check(kernel, 80, tmp_path, exact=True)


def test_trained_norm_in_bfloat16(tmp_path: Path) -> None:
    kernels = compiled(90, lambda: trained_norm(torch.bfloat16))
    expected = {"finalize_kernel", "apply_kernel", "sums_kernel", "backward_kernel", "ordered_sum_kernel"}
    assert {kernel.name for kernel in kernels} == expected
    for kernel in kernels:
        check(kernel, 90, tmp_path)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_kernel_in_float16(arch: int, tmp_path: Path) -> None:
    for kernel in compiled(arch, lambda: every_kernel(torch.float16)):
        check(kernel, arch, tmp_path)


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("tf32", [False, True], ids=["exact", "tf32"])
def test_float32_follows_the_switch(tf32: bool, arch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
    for kernel in compiled(arch, lambda: every_kernel(torch.float32)):
        check(kernel, arch, tmp_path, exact=not tf32)


def test_exact_float32_of_8_bit_pixels_on_sm_100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton would multiply in TF32 what was 8 bits: the backend normalises ahead, the launcher refuses."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    ones = torch.ones(64)
    layer = torch.empty(64, 3, 7, 7), None, ones, ones, ones, ones, None, 1e-5, (2, 2), (3, 3), (1, 1), 1
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)

    def run() -> None:
        operator = torch.ops.fastres.stem_uint8
        operator(pixels, *layer, 3, 2, 1, torch.float32, [0.5] * 3, [0.5] * 3, "triton")

    (kernel,) = compiled(100, run)
    check(kernel, 100, tmp_path, exact=True)
    assert kernel.name == "stem_kernel"
    refused = pytest.raises(ValueError, match="normalize: expected None in exact float32 on sm_100")
    with target(100), refused:
        stem(pixels, torch.empty(64, 7, 7, 3), ones, normalize=(torch.ones(3), torch.ones(3)))


def test_sizes_are_not_specialised() -> None:
    """One compilation for every image size: a server that sees odd ones does not stop to compile."""
    weight, bias = torch.empty(64, 3, 3, 64, dtype=torch.float16), torch.empty(64)
    tile = tuning.Tile(64, 64, 64, 4, 3)

    def run() -> None:
        for size in ((1, 1), (7, 16), (33, 32)):
            conv(empty(1, 64, *size, dtype=torch.float16), weight, bias, padding=(1, 1), tile=tile)

    assert len(compiled(80, run)) == 1


def test_addresses_are_64_bits_past_2_to_the_30() -> None:
    weight, bias = torch.empty(16, 3, 3, 16, dtype=torch.float16), torch.empty(16)
    tile = tuning.Tile(64, 16, 16, 4, 2)
    big = torch.empty(1, 8200, 8200, 16, dtype=torch.float16).permute(0, 3, 1, 2)  # never touched
    small = empty(1, 16, 820, 820, dtype=torch.float16)
    indices = []
    for x in (small, big):
        (kernel,) = compiled(80, lambda x=x: conv(x, weight, bias, padding=(1, 1), tile=tile))
        indices.append(str(kernel.constants["INDEX"]))
    assert indices == ["int32", "int64"]


def test_table_is_asked_before_the_heuristic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTRES_CACHE", str(tmp_path))
    x, y = torch.empty(256, 64, dtype=torch.float16), torch.empty(256, 64, dtype=torch.float16)
    problem = tuning.Problem("gemm", 256, 64, 64, 1, 1)
    measured = tuning.Tile(64, 16, 32, 4, 2, 4)
    tuning.record({problem: measured}, "float16", 90)

    def run() -> None:
        tile = tuning.known(problem, "float16", x.device)
        gemm(x, torch.empty(64, 64, dtype=torch.float16), None, None, y, 256, tile, False, "float16")

    (kernel,) = compiled(90, run)
    assert [kernel.constants[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M")] == [64, 16, 32, 4]
