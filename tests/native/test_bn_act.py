"""csrc/kernels/bn_act.cu against the float64 oracle and autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tolerance import assert_right
from torch import Tensor

from fastres.backends import bn_plans, plans
from fastres.backends.emulator import emulate
from fastres.backends.steps import Affine, Moments, Relu, Running, Shortcut

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# One block and several, channels past a block's, channels that no vector fits, a single value a channel.
SHAPES = [(2, 64, 9, 7), (40, 300, 3, 2), (3, 20, 5, 5), (1, 7, 3, 3), (1, 8, 1, 1)]
Place = tuple[torch.device, Callable[[plans.Work], Tensor]]

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def image(shape: tuple[int, ...], dtype: torch.dtype, spread: float = 0.0) -> Tensor:
    """Random values, the channels' means `spread` apart: far from zero, where a sum of squares would cancel."""
    means = spread * torch.randn(shape[1]).view(-1, 1, 1)
    return (torch.randn(shape) + means).to(dtype).contiguous(memory_format=torch.channels_last)


def per_channel(vector: Tensor) -> Tensor:
    return vector.view(-1, 1, 1)


@every_dtype
@every_shape
def test_statistics(place: Place, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    device, run = place
    x = image(shape, dtype, spread=30.0)
    count, mean, m2 = run(bn_plans.statistics(x.to(device))).cpu().unbind(1)
    exact = x.double()
    var, center = torch.var_mean(exact, (0, 2, 3), correction=0)
    assert (count == x.numel() // shape[1]).all()
    plain_var, plain_mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
    assert_right(mean, plain_mean, center)
    assert_right(m2, plain_var * count, var * count.double())


@every_dtype
@every_shape
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("residual", ["none", "plain", "scaled"])
def test_apply(place: Place, shape: tuple[int, ...], dtype: torch.dtype, residual: str, relu: bool) -> None:
    device, run = place
    x, other = image(shape, dtype), image(shape, dtype)
    x[0, 0, 0, 0] = float("nan")
    vectors = torch.randn(4, shape[1])

    def plain(x: Tensor, other: Tensor, vectors: Tensor) -> Tensor:
        y = argument(x, other, vectors, residual)
        return F.relu(y) if relu else y

    affine, shortcut = relu_of(residual, other.to(device), vectors.to(device))
    work = bn_plans.apply(x.to(device), affine, shortcut, relu)
    work.result.fill_(float("nan"))
    exact = plain(x.double(), other.double(), vectors.double())
    assert_right(run(work).cpu(), plain(x, other, vectors.to(dtype)), exact)


def argument(x: Tensor, other: Tensor, vectors: Tensor, residual: str) -> Tensor:
    """What the ReLU of a block's end is applied to."""
    a, b, a2, b2 = map(per_channel, vectors.unbind())
    y = x * a + b
    return y if residual == "none" else y + (other if residual == "plain" else other * a2 + b2)


def relu_of(residual: str, other: Tensor, vectors: Tensor) -> Relu:
    shortcut = Shortcut(other, Affine(*vectors[2:]) if residual == "scaled" else None)
    return Relu(Affine(*vectors[:2]), None if residual == "none" else shortcut)


@every_dtype
@every_shape
@pytest.mark.parametrize("residual", ["no relu", "none", "plain", "scaled"])
def test_backward_is_autograds(place: Place, shape: tuple[int, ...], dtype: torch.dtype, residual: str) -> None:
    if shape[0] * shape[2] * shape[3] == 1:
        shape = (3, *shape[1:])  # PyTorch has no batch statistics of one value; of two, nothing but rounding is left
    device, run = place
    x, other, gradient = image(shape, dtype), image(shape, dtype), image(shape, dtype)
    gamma, beta = torch.randn(2, shape[1]).unbind()
    second = torch.randn(2, shape[1])

    def plain(to: torch.dtype) -> list[Tensor]:
        leaves = [t.to(to).requires_grad_() for t in (x, other)]
        wide = to if to == torch.float64 else torch.float32
        parameters = [v.to(wide).requires_grad_() for v in (gamma, beta)]
        y = F.batch_norm(leaves[0], None, None, *parameters, training=True, eps=1e-3)
        if residual in ("plain", "scaled"):
            scale, shift = map(per_channel, second.to(to))
            y = y + (leaves[1] if residual == "plain" else leaves[1] * scale + shift)
        behind = y.detach().requires_grad_()  # its gradient is the one behind the ReLU
        grads = torch.autograd.grad(F.relu(behind) if residual != "no relu" else behind * 1, behind, gradient.to(to))
        return [*torch.autograd.grad(y, [leaves[0], *parameters], grads), *grads]

    exact, own = plain(torch.float64), plain(dtype)
    var, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    invstd = (var + 1e-3).rsqrt()
    scale = gamma.double() * invstd
    vectors = torch.stack([scale, beta - mean * scale, *second.double()]).float()
    relu = None if residual == "no relu" else relu_of(residual, other.to(device), vectors.to(device))
    moments = Moments(*(v.float().to(device) for v in (mean, invstd, scale)), x.numel() // shape[1])
    given = x.to(device), gradient.to(device)
    work = bn_plans.gradient_sums(*given, moments.mean, relu)
    work.result.fill_(float("nan"))
    sums = run(work)
    masked = torch.full_like(given[0], float("nan"))
    work = bn_plans.backward(*given, moments, sums, relu, masked=masked)
    work.result.fill_(float("nan"))
    dx = run(work)
    assert_right(sums[:, 1].cpu() * moments.invstd.cpu(), own[1], exact[1])
    assert_right(sums[:, 0].cpu(), own[2], exact[2])
    assert_right(dx.cpu(), own[0], exact[0])
    assert_right(masked.cpu(), own[3], exact[3])
    over = run(bn_plans.backward(*given, moments, sums, relu, overwrite=True))
    assert over.data_ptr() == given[1].data_ptr()
    assert torch.equal(over, dx)


@every_dtype
def test_backward_divides_by_the_count_it_is_given(place: Place, dtype: torch.dtype) -> None:
    device, run = place  # BatchNorm over several devices has more values than this one's rows
    x, gradient = (image(SHAPES[2], dtype).to(device) for _ in range(2))
    mean, invstd, scale = torch.rand(3, x.shape[1], device=device) + 0.5
    sums = torch.randn(x.shape[1], 2, device=device)

    def plain(*tensors: Tensor) -> Tensor:
        x, gradient, mean, invstd, scale, sum_g, sum_gx = (t if t.dim() == 4 else per_channel(t) for t in tensors)
        return scale * (gradient - sum_g / 1000 - (x - mean) * invstd**2 * sum_gx / 1000)

    tensors = [t.cpu() for t in (x, gradient, mean, invstd, scale, *sums.unbind(1))]
    dx = run(bn_plans.backward(x, gradient, Moments(mean, invstd, scale, 1000), sums))
    assert_right(dx.cpu(), plain(*(t.to(dtype) for t in tensors)), plain(*(t.double() for t in tensors)))


@every_dtype
def test_a_nans_gradient_passes_the_relu_as_pytorchs_does(place: Place, dtype: torch.dtype) -> None:
    device, run = place
    x, gradient = (image(SHAPES[2], dtype).to(device) for _ in range(2))
    x[0, 0, 0, 0] = float("nan")
    ones = torch.ones(x.shape[1], device=device)
    relu, moments = Relu(Affine(ones, -ones)), Moments(0 * ones, ones, ones, x.numel())
    masked, sums = torch.empty_like(x), torch.zeros(x.shape[1], 2, device=device)
    run(bn_plans.backward(x, gradient, moments, sums, relu, masked=masked))
    assert torch.equal(masked, torch.where(x - 1 <= 0, 0, gradient))


@pytest.mark.parametrize("channels", [24, 20])
def test_each_pass_names_each_tensor_once(channels: int) -> None:
    """By what another image adds to the bytes: vectors of the channels are read as often as before."""

    def traffic(n: int) -> list[tuple[int, int, int]]:
        y, other, gradient, masked = (image((n, channels, 5, 5), torch.bfloat16) for _ in range(4))
        a, b, a2, b2 = torch.randn(4, channels)
        relu, moments = Relu(Affine(a, b), Shortcut(other, Affine(a2, b2))), Moments(a, b, a2, 9)
        sums = torch.randn(channels, 2)
        works = (
            bn_plans.apply(y, *relu),
            bn_plans.gradient_sums(y, gradient, a, relu),
            bn_plans.backward(y, gradient, moments, sums, relu),
            bn_plans.backward(y, gradient, moments, sums, relu, overwrite=True, masked=masked),
        )
        assert all(work.plans[0].grid == (1, 1, 1) for work in works)
        moved = [emulate(work)[0].traffic["global"] for work in works]
        return [(t.read_requested, t.read_unique, t.write_requested) for t in moved]

    few, more, image_bytes = traffic(4), traffic(5), channels * 5 * 5 * 2
    added = [[(b - a) / image_bytes for a, b in zip(*both, strict=True)] for both in zip(few, more, strict=True)]
    assert added == [[2, 2, 1], [3, 3, 0], [3, 3, 1], [3, 3, 2]]


@pytest.mark.parametrize("seed", range(10))
def test_every_seed_gives_the_same_bits(seed: int) -> None:
    y, gradient = (image((70, 72, 3, 2), torch.bfloat16) for _ in range(2))  # three slabs
    a, b = torch.randn(2, y.shape[1])
    relu = Relu(Affine(a, b))

    def results(seed: int) -> list[Tensor]:
        works = [bn_plans.statistics(y), bn_plans.gradient_sums(y, gradient, a, relu)]
        works.append(bn_plans.backward(y, gradient, Moments(a, b, a, 9), works[1].result, relu))
        for work in works:
            emulate(work, seed)
        return [work.result for work in works]

    assert all(map(torch.equal, results(seed), results(seed + 10)))


def test_what_does_not_fit_is_refused_by_name() -> None:
    y, vector = image((2, 8, 3, 3), torch.float16), torch.ones(8)
    good = Affine(vector, vector)
    for name, arguments in (
        ("affine.scale", (y, Affine(vector[:-1], vector))),
        ("affine.shift", (y, Affine(vector, vector.double()))),
        ("shortcut.x", (y, good, Shortcut(y[:1]))),
        ("shortcut.affine.shift", (y, good, Shortcut(y, Affine(vector, vector.to("meta"))))),
        ("x", (y.double(), good)),
    ):
        with pytest.raises(ValueError, match=rf"^{name}: expected"):
            bn_plans.apply(*arguments)
    with pytest.raises(ValueError, match=r"^gradient: expected"):
        bn_plans.gradient_sums(y, y.float(), vector)
    moments = Moments(vector, vector, vector, 1)
    with pytest.raises(ValueError, match=r"^sums: expected float32"):
        bn_plans.backward(y, y, moments, vector)
    with pytest.raises(ValueError, match=r"^values: expected a positive number, got 0"):
        bn_plans.backward(y, y, moments._replace(values=0), torch.ones(8, 2))
    with pytest.raises(ValueError, match=r"^partial: expected float32"):
        bn_plans.merge(torch.ones(3, 8, 2))
    statistics = torch.ones(8, 3)
    with pytest.raises(ValueError, match=r"^gamma: expected float32 \[8\]"):
        bn_plans.finalize(statistics, 2, vector.double(), None, 0.1)
    with pytest.raises(ValueError, match=r"^running: expected contiguous vectors"):
        bn_plans.finalize(statistics, 2, None, None, 0.1, Running(vector, torch.ones(16)[::2], 0.1))
    with pytest.raises(ValueError, match=r"^values: expected at least 1, 2 with running statistics, got 1"):
        bn_plans.finalize(statistics, 1, None, None, 0.1, Running(vector, vector, 0.1))
