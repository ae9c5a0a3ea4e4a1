"""Average pooling and the classifier."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from problems import DEVICE, channels_last
from tolerance import assert_right, to_oracle
from torch import Tensor

from fastres.kernels.head import average_pool, head


def plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x.mean((2, 3)), weight, None if bias is None else bias.to(x.dtype))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(3, 40, 7, 7, 30), (1, 1, 1, 1, 1), (2, 130, 5, 4, 10), (65, 16, 2, 1, 33)])
def test_head(shape: tuple[int, int, int, int, int], bias: bool, dtype: torch.dtype) -> None:
    n, c, height, width, classes = shape
    x = channels_last(torch.randn(n, c, height, width, dtype=dtype))
    weight, vector = torch.randn(classes, c, dtype=dtype), torch.randn(classes, dtype=dtype) if bias else None
    on_device = [None if t is None else t.to(DEVICE) for t in (x, weight, vector)]
    assert_right(head(*on_device), plain(x, weight, vector), plain(*to_oracle((x, weight, vector))))


def test_pooling_sums_in_float32() -> None:
    x = channels_last(torch.full((1, 8, 64, 64), 3.0, dtype=torch.float16))
    assert (average_pool(x.to(DEVICE)) == 3).all()


def test_nan_stays_in_its_image_and_channel() -> None:
    x = channels_last(torch.ones(2, 8, 3, 3))
    x[1, 5, 0, 2] = float("nan")
    assert average_pool(x.to(DEVICE)).isnan().nonzero().tolist() == [[1, 5]]


def test_empty_batch() -> None:
    assert head(torch.empty(0, 8, 3, 3, device=DEVICE), torch.ones(4, 8, device=DEVICE), None).shape == (0, 4)
