"""The projection block's end: two convolutions into one accumulator."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from problems import DEVICE, SMALL, Convolution
from tolerance import assert_right, to_oracle
from torch import Tensor

from fastres.kernels.conv import pack
from fastres.kernels.projection import projection
from fastres.tuning import Tile

ONE = {"kernel": (1, 1), "padding": (0, 0), "residual": False, "relu": False}
BRANCH = Convolution(residual=False, relu=False)
CASES = {
    "bottleneck": (replace(BRANCH, **ONE), Convolution(c=32, image=(11, 9), stride=(2, 2), **ONE)),
    "bottleneck, stride 1": (replace(BRANCH, **ONE), Convolution(c=10, **ONE)),
    "basic block": (BRANCH, Convolution(c=8, image=(12, 10), stride=(2, 2), **ONE)),
    "odd channels": (replace(BRANCH, c=5, k=7), Convolution(c=3, k=7, **ONE)),
    "3x3 shortcut, dilated": (replace(BRANCH, dilation=(2, 2), padding=(2, 2)), replace(BRANCH, c=16)),
    "one pixel": (replace(BRANCH, n=1, image=(1, 1), **ONE), Convolution(n=1, image=(1, 1), **ONE)),
}


@pytest.mark.parametrize("tile", [SMALL, Tile(32, 16, 32, 4, 3), None])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_projection(case: tuple[Convolution, Convolution], tile: Tile | None, dtype: torch.dtype) -> None:
    branch, shortcut = case
    x, w, b, _ = branch.inputs(dtype)
    x2, w2, b2, _ = shortcut.inputs(dtype)

    def plain(x: Tensor, w: Tensor, b: Tensor, x2: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        return F.relu(branch.plain(x, w, b, None) + shortcut.plain(x2, w2, b2, None))

    def prepared(problem: Convolution, weight: Tensor, bias: Tensor) -> tuple:
        packed = pack(weight.to(DEVICE), 1)[0]
        return packed, bias.to(DEVICE), problem.stride, problem.padding, problem.dilation

    y = projection(x.to(DEVICE), prepared(branch, w, b), x2.to(DEVICE), prepared(shortcut, w2, b2), tile=tile)
    inputs = x, w, b, x2, w2, b2
    assert_right(y, plain(*inputs), plain(*to_oracle(inputs)))


def test_nan_of_either_operand_stays(dtype: torch.dtype) -> None:
    problem = Convolution(n=1, image=(4, 4), **ONE)
    weight, bias = problem.inputs(dtype)[1:3]
    conv = pack(weight.to(DEVICE), 1)[0], bias.to(DEVICE), (1, 1), (0, 0), (1, 1)
    first, second = (problem.inputs(dtype)[0] for _ in range(2))
    first[0, 0, 1, 2] = second[0, 3, 2, 0] = float("nan")
    y = projection(first.to(DEVICE), conv, second.to(DEVICE), conv)
    nan = y.isnan().all(1)[0].cpu()
    assert nan[1, 2]
    assert nan[2, 0]
    assert nan.sum() == y.isnan().any(1).sum() == 2
