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

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# One block and several, channels past a block's, channels that no vector fits, a single value a channel.
SHAPES = [(2, 64, 9, 7), (40, 300, 3, 2), (3, 20, 5, 5), (1, 7, 3, 3), (1, 8, 1, 1)]
Place = tuple[torch.device, Callable[[plans.Work], Tensor]]

pytestmark = [pytest.mark.parametrize("dtype", DTYPES, ids=str), pytest.mark.parametrize("shape", SHAPES, ids=str)]


def image(shape: tuple[int, ...], dtype: torch.dtype, spread: float = 0.0) -> Tensor:
    """Random values, the channels' means `spread` apart: far from zero, where a sum of squares would cancel."""
    means = spread * torch.randn(shape[1]).view(-1, 1, 1)
    return (torch.randn(shape) + means).to(dtype).contiguous(memory_format=torch.channels_last)


def per_channel(vector: Tensor) -> Tensor:
    return vector.view(-1, 1, 1)


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


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("residual", ["none", "plain", "scaled"])
def test_apply(place: Place, shape: tuple[int, ...], dtype: torch.dtype, residual: str, relu: bool) -> None:
    device, run = place
    x, other = image(shape, dtype), image(shape, dtype)
    x[0, 0, 0, 0] = float("nan")
    scale, shift, scale2, shift2 = torch.randn(4, shape[1]).unbind()

    def plain(x: Tensor, other: Tensor, *vectors: Tensor) -> Tensor:
        a, b, a2, b2 = map(per_channel, vectors)
        y = x * a + b
        if residual != "none":
            y = y + (other if residual == "plain" else other * a2 + b2)
        return F.relu(y) if relu else y

    vectors = scale, shift, scale2, shift2
    work = bn_plans.apply(
        x.to(device),
        scale.to(device),
        shift.to(device),
        relu=relu,
        residual=None if residual == "none" else other.to(device),
        residual_scale=scale2.to(device) if residual == "scaled" else None,
        residual_shift=shift2.to(device) if residual == "scaled" else None,
    )
    exact = plain(x.double(), other.double(), *(v.double() for v in vectors))
    assert_right(run(work).cpu(), plain(x, other, *(v.to(dtype) for v in vectors)), exact)


@pytest.mark.parametrize("relu", [True, False])
def test_backward_is_autograds(place: Place, shape: tuple[int, ...], dtype: torch.dtype, relu: bool) -> None:
    if shape[0] * shape[2] * shape[3] == 1:
        shape = (2, *shape[1:])  # PyTorch has no batch statistics of one value
    device, run = place
    x, residual, gradient = image(shape, dtype), image(shape, dtype), image(shape, dtype)
    gamma, beta = torch.randn(2, shape[1]).unbind()

    def plain(to: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [t.to(to).requires_grad_() for t in (x, residual)]
        vectors = [v.to(to if to == torch.float64 else torch.float32).requires_grad_() for v in (gamma, beta)]
        y = F.batch_norm(leaves[0], None, None, *vectors, training=True, eps=1e-3) + leaves[1]
        y = F.relu(y) if relu else y
        return (y.detach(), *torch.autograd.grad(y, [*leaves, *vectors], gradient.to(to)))

    output, *exact = plain(torch.float64)
    own = plain(dtype)[1:]
    var, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    invstd = (var + 1e-3).rsqrt().float().to(device)
    given = x.to(device), gradient.to(device), mean.float().to(device)
    # The sign, not the value, of the forward's result is what counts: it must survive the rounding.
    positive = (output > 0).to(dtype).contiguous(memory_format=torch.channels_last).to(device) if relu else None
    sums = run(bn_plans.gradient_sums(*given, positive))
    behind = torch.empty_like(given[0])
    scale = gamma.to(device) * invstd
    dx = run(bn_plans.backward(*given, invstd, scale, sums, positive, behind))
    assert_right(sums[:, 0].cpu(), own[3], exact[3])
    assert_right((sums[:, 1] * invstd).cpu(), own[2], exact[2])
    assert_right(dx.cpu(), own[0], exact[0])
    assert_right(behind.cpu(), own[1], exact[1])


def test_ten_seeds_give_the_same_bits(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = image(shape, dtype)
    results = []
    for seed in range(10):
        work = bn_plans.statistics(x)
        emulate(work, seed)
        results.append(work.result)
    assert all(torch.equal(results[0], result) for result in results[1:])


def test_what_does_not_fit_is_refused_by_name(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, vector = image(shape, dtype), torch.ones(shape[1])
    for name, arguments in (
        ("scale", (x, vector[:-1], vector)),
        ("shift", (x, vector, vector.double())),
        ("x", (x.double(), vector, vector)),
    ):
        with pytest.raises(ValueError, match=f"{name}: expected"):
            bn_plans.apply(*arguments, relu=True)
    with pytest.raises(ValueError, match="residual: expected"):
        bn_plans.apply(x, vector, vector, relu=True, residual=x[:, :-1])
    with pytest.raises(ValueError, match="sums: expected float32"):
        bn_plans.backward(x, x, vector, vector, vector, torch.ones(shape[1]))
