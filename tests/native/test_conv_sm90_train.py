"""What training adds to csrc/kernels/conv_sm90*: the statistics of what is stored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from convolutions import Conv, Place
from torch import Tensor
from train_convolutions import check, tensors

from fastres.backends import bn_plans, plans
from fastres.backends.emulator import emulate

TILES = [(64, 1), (64, 2), (128, 1), (128, 2), (256, 1), (256, 2)]
SM90: dict[str, Any] = {"kernel": "conv_sm90", "sms": 2, "prologue": False}
CONVOLUTIONS = {"1x1": Conv(2, 72, 17, 16, 264), "3x3, stride 2": Conv(3, 40, 27, 21, 136, 3, 2, 1)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", TILES, ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_every_instantiation(place: Place, name: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    work = check(place, CONVOLUTIONS[name], dtype, (128, shape[0], 1, shape[1]), **SM90)
    assert work.moments is not None
    rows = work.result.numel() // work.result.shape[1]
    assert work.moments.shape[0] == -(-rows // (64 if shape[0] == 256 else 128))


@pytest.mark.parametrize("conv", [Conv(1, 8, 1, 2, 8), Conv(1, 8, 9, 13, 8, 3, 1, 1)], ids=str)
@pytest.mark.parametrize("columns", [64, 256])
def test_tiny(place: Place, conv: Conv, columns: int) -> None:
    check(place, conv, torch.bfloat16, (128, columns, 1, 1), **SM90)


@pytest.mark.parametrize("shape", [(64, 1), (256, 2)], ids=str)
def test_every_seed_gives_the_same_bits(shape: tuple[int, int]) -> None:
    conv = Conv(2, 72, 12, 11, 136)
    x, weight, _ = tensors(conv, torch.bfloat16)

    def results(seed: int) -> list[Tensor]:
        operands = [(x, plans.pack(weight, None, conv.geometry))]
        tile = 128, shape[0], 1, shape[1]
        work = plans.convolution(operands, False, moments=True, sms=2, kernel="conv_sm90", tile=tile)
        assert work.moments is not None
        merge = bn_plans.merge(work.moments)
        emulate(work, seed)
        emulate(merge, seed)
        return [work.result, merge.result]

    first = results(0)
    assert all(all(map(torch.equal, first, results(seed))) for seed in (1, 2))


def test_statistics_of_a_depth_that_is_split_are_another_pass_s() -> None:
    conv = Conv(1, 256, 5, 5, 64)
    x, weight, _ = tensors(conv, torch.bfloat16)
    operands = [(x, plans.pack(weight, None, conv.geometry))]
    work = plans.convolution(operands, False, moments=True, sms=4, kernel="conv_sm90", tile=(128, 64, 2, 1))
    assert work.moments is None
