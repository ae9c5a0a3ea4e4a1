"""csrc/kernels/bn_pool.cu against bn_act.cu's apply and PyTorch's max pool, bit for bit, and the float64 oracle."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tolerance import assert_right
from torch import Tensor

from fastres.backends import bn_plans, plans, pool_plans
from fastres.backends.emulator import emulate
from fastres.backends.steps import Affine
from fastres.block import Pool

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
STEM = 3, 2, 1
CASES = [
    ((2, 64, 9, 7), STEM),
    ((1, 72, 6, 10), STEM),  # threads past the last channel
    ((1, 264, 5, 20), STEM),  # channels of several blocks, rows longer than a block's threads
    ((3, 8, 1, 1), STEM),
    ((1, 8, 4, 5), (3, 2, 0)),  # an image that its windows do not fill
    ((2, 24, 8, 9), (2, 2, 0)),
    ((1, 16, 7, 6), (3, 1, 1)),
    ((1, 8, 10, 11), (5, 3, 2)),
    ((2, 8, 8, 7), (2, 3, 1)),  # pixels of no window
    ((1, 8, 9, 8), (15, 2, 7)),
]
Place = tuple[torch.device, Callable[[plans.Work], Tensor]]

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_case = pytest.mark.parametrize(("shape", "pool"), CASES, ids=str)


def nhwc(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def image(shape: tuple[int, ...], dtype: torch.dtype, values: str = "random") -> Tensor:
    """Random values; or integers of which windows have several maxima; or also NaN and infinities, several a window."""
    x = torch.randn(shape) if values == "random" else torch.randint(-2, 3, shape).float()
    if values == "special":
        special = torch.tensor([float("nan"), float("inf"), -float("inf")])
        chosen = torch.randint(0, 8, shape)
        x = torch.where(chosen < 3, special[chosen.clamp(max=2)], x)
        x[:, ::2, :3] = -float("inf")
    return nhwc(x.to(dtype))


def vectors(channels: int) -> Affine:
    """Of both signs, and a zero, for which a channel is constant; powers of two, which keep ties."""
    scale = torch.tensor([1.0, -2.0, 0.0, 0.5]).repeat(channels // 4)
    return Affine(scale, torch.randint(-1, 2, (channels,)).float())


def moved(affine: Affine, device: torch.device) -> Affine:
    return Affine(*(vector.to(device) for vector in affine))


def poisoned(work: plans.Work) -> plans.Work:
    work.result.fill_(float("nan"))
    for scratch in work.scratch:
        scratch.fill_(77)
    return work


def taps_of(indices: Tensor, image_width: int, pool: Pool) -> Tensor:
    """PyTorch's indices of maxima as taps of their windows, r * kernel + s."""
    kernel, stride, padding = pool
    p, q = (torch.arange(size) * stride - padding for size in indices.shape[2:])
    return (indices // image_width - p.view(-1, 1)) * kernel + indices % image_width - q


@every_dtype
@every_case
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("values", ["random", "equal", "special"])
def test_is_apply_then_pytorchs_pool(
    place: Place, shape: tuple[int, ...], pool: Pool, dtype: torch.dtype, relu: bool, values: str
) -> None:
    device, run = place
    x, affine = image(shape, dtype, values), vectors(shape[1])
    given = x.to(device), moved(affine, device)
    v = run(bn_plans.apply(*given, None, relu)).cpu()  # rounded, by which maxima are chosen
    expected, indices = F.max_pool2d_with_indices(v, *pool)
    result = run(poisoned(pool_plans.apply(*given, relu, pool))).cpu()
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert_same(result, expected)

    gradient = image(tuple(expected.shape), dtype)
    work = poisoned(pool_plans.backward(given[0], gradient.to(device), given[1], relu, pool))
    dv = run(work).cpu()
    assert torch.equal(work.scratch[0].cpu(), taps_of(indices, shape[3], pool))
    assert_right(dv, pool_backward(gradient, v, indices, pool), pool_backward(gradient.double(), v, indices, pool))


def assert_same(result: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


def pool_backward(gradient: Tensor, v: Tensor, indices: Tensor, pool: Pool) -> Tensor:
    kernel, stride, padding = ([size, size] for size in pool)
    backward = torch.ops.aten.max_pool2d_with_indices_backward.default
    return backward(gradient, v.to(gradient.dtype), kernel, stride, padding, [1, 1], False, indices)


@every_dtype
@pytest.mark.parametrize("pool", [STEM, (2, 2, 0)], ids=str)
def test_forward_keeps_the_rule(place: Place, pool: Pool, dtype: torch.dtype) -> None:
    device, run = place
    x = image((2, 40, 7, 9), dtype)
    affine = Affine(*torch.randn(2, 40))

    def plain(to: torch.dtype) -> Tensor:
        scale, shift = (vector.to(to).view(-1, 1, 1) for vector in affine)
        return F.max_pool2d(F.relu(x.to(to) * scale + shift), *pool)

    result = run(poisoned(pool_plans.apply(x.to(device), moved(affine, device), True, pool)))
    assert_right(result.cpu(), plain(dtype), plain(torch.float64))


@every_dtype
@pytest.mark.parametrize("pool", [STEM, (2, 2, 0)], ids=str)
def test_what_is_no_maximum_s_leaves_a_gradient_untouched(place: Place, pool: Pool, dtype: torch.dtype) -> None:
    device, run = place  # nothing is multiplied by zero
    x, affine = image((2, 8, 6, 6), dtype), vectors(8)
    gradient = torch.full_like(F.max_pool2d(x, *pool), float("inf"))
    dv = run(pool_plans.backward(x.to(device), gradient.to(device), moved(affine, device), False, pool)).cpu()
    assert set(dv.unique().tolist()) == {0.0, float("inf")}


@pytest.mark.parametrize("pool", [STEM, (2, 2, 0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_each_pass_names_each_tensor_once(dtype: torch.dtype, pool: Pool) -> None:
    """Bytes read, counted once, and bytes written."""
    x, affine = image((2, 16, 8, 12), dtype), vectors(16)
    work = pool_plans.apply(x, affine, True, pool)
    gradient = image(tuple(work.result.shape), dtype)
    reports = [*emulate(work), *emulate(pool_plans.backward(x, gradient, affine, True, pool))]
    moved = [(t.read_unique, t.write_requested) for t in (report.traffic["global"] for report in reports)]
    taps, of_channels = gradient.numel(), 2 * 4 * 16
    assert moved == [
        (x.nbytes + of_channels, gradient.nbytes),
        (x.nbytes + of_channels, taps),
        (gradient.nbytes + taps, x.nbytes),
    ]


@pytest.mark.parametrize("pool", [STEM, (3, 1, 1)], ids=str)
@every_dtype
def test_every_seed_gives_the_same_bits(dtype: torch.dtype, pool: Pool) -> None:
    x, affine = image((2, 40, 5, 6), dtype), vectors(40)
    gradient = image(tuple(F.max_pool2d(x, *pool).shape), dtype)

    def results(seed: int) -> list[Tensor]:
        works = [pool_plans.apply(x, affine, True, pool), pool_plans.backward(x, gradient, affine, True, pool)]
        for work in works:
            emulate(work, seed)
        return [work.result for work in works]

    first = results(0)
    assert all(all(map(torch.equal, first, results(seed))) for seed in range(1, 10))


def test_kernels_by_their_windows() -> None:
    x, affine = image((1, 8, 9, 9), torch.float16), vectors(8)

    def launched(pool: Pool) -> list[str]:
        gradient = F.max_pool2d(x, *pool)
        works = pool_plans.apply(x, affine, True, pool), pool_plans.backward(x, gradient, affine, True, pool)
        return [plan.symbol.removeprefix("bn_pool_") for work in works for plan in work.plans]

    assert launched(STEM) == ["fp16_3x3s2", "taps_fp16_3x3s2", "gather_fp16_3x3s2"]
    assert launched((3, 3, 1)) == launched((2, 2, 0)) == ["fp16", "taps_fp16", "gather_fp16"]


def test_what_does_not_fit_is_refused_by_name() -> None:
    y, affine = image((2, 8, 6, 6), torch.float16), vectors(8)
    gradient = image((2, 8, 3, 3), torch.float16)
    for name, arguments in (
        ("affine.scale", (y, Affine(affine.scale[:-1], affine.shift), True, STEM)),
        ("y", (y.contiguous(), affine, True, STEM)),
        ("x", (y.double(), affine, True, STEM)),
        ("c", (image((2, 4, 6, 6), torch.float16), vectors(4), True, STEM)),
        ("kernel", (y, affine, True, (16, 2, 8))),
        ("padding", (y, affine, True, (3, 2, 2))),
        ("p", (y, affine, True, (7, 2, 0))),
        ("scale", (y, Affine(torch.ones(9)[1:], affine.shift), True, STEM)),
    ):
        with pytest.raises(ValueError, match=rf"^{name}: expected"):
            pool_plans.apply(*arguments)
    for name, given in (("gradient", gradient[:1]), ("gradient", gradient.float()), ("gradient", y)):
        with pytest.raises(ValueError, match=rf"^{name}: expected"):
            pool_plans.backward(y, given, affine, True, STEM)


def test_what_is_runnable() -> None:
    y, affine = image((2, 8, 6, 6), torch.float16), vectors(8)
    assert pool_plans.runnable(y, affine, STEM, y)
    assert pool_plans.runnable(y, affine, (15, 1, 7))
    assert not pool_plans.runnable(y, affine, (16, 1, 8))
    assert not pool_plans.runnable(y, affine, (3, 2, 2))
    assert not pool_plans.runnable(y[:0], affine, STEM)
    assert not pool_plans.runnable(image((2, 12, 6, 6), torch.float16), vectors(12), STEM)
    assert pool_plans.runnable(image((2, 12, 6, 6), torch.float32), vectors(12), STEM)
    assert not pool_plans.runnable(y, Affine(affine.scale, torch.ones(9)[1:]), STEM)
    assert not pool_plans.runnable(y, affine, STEM, torch.ones(9, dtype=y.dtype)[1:])
