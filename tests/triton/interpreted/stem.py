"""The stem: convolution, ReLU and max pooling as one, from floating and from 8-bit pixels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import DEVICE, channels_last
from tolerance import assert_right, to_oracle, without_onednn
from torch import Tensor

from fastres.kernels.conv import pack
from fastres.kernels.stem import stem
from fastres.tuning import Tile

SMALL = Tile(32, 32, 32, 4, 1, 3)  # 15 pooled columns and 3 pooled rows a program


def plain(x: Tensor, w: Tensor, bias: Tensor, stride: int = 2, padding: int = 3) -> Tensor:
    return F.max_pool2d(F.relu(F.conv2d(x, w, bias.to(x.dtype), stride, padding)), 3, 2, 1)


def inputs(dtype: torch.dtype, image: tuple[int, int], k: int, n: int = 2, kernel: int = 7, c: int = 3) -> tuple:
    x = channels_last(torch.randn(n, c, *image, dtype=dtype))
    return x, torch.randn(k, c, kernel, kernel).div(12).to(dtype), torch.randn(k)


def fused(x: Tensor, w: Tensor, bias: Tensor, tile: Tile | None = SMALL, **options: object) -> Tensor:
    return stem(x.to(DEVICE), pack(w.to(DEVICE), 1)[0], bias.to(DEVICE), tile=tile, **options)


@pytest.mark.parametrize("image", [(27, 65), (1, 1), (2, 3), (8, 64)])
def test_images(image: tuple[int, int], dtype: torch.dtype) -> None:
    given = inputs(dtype, image, k=20)
    assert_right(fused(*given), plain(*given), plain(*to_oracle(given)))


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_rows_of_a_program(rows: int, dtype: torch.dtype) -> None:
    given = inputs(dtype, (25, 13), k=16, n=1)
    assert_right(fused(*given, tile=SMALL._replace(group_m=rows)), plain(*given), plain(*to_oracle(given)))


def test_the_table_s_own_tile(dtype: torch.dtype) -> None:
    given = inputs(dtype, (23, 30), k=64, n=1)
    assert_right(fused(*given, tile=None), plain(*given), plain(*to_oracle(given)))


@settings(max_examples=10)
@given(
    st.integers(1, 20), st.integers(1, 20), st.integers(1, 9), st.integers(1, 5), st.integers(1, 2), st.integers(0, 2)
)
def test_drawn_stems(height: int, width: int, k: int, kernel: int, stride: int, padding: int) -> None:
    height, width = max(height, kernel), max(width, kernel)
    given = inputs(torch.float32, (height, width), k, n=1, kernel=kernel, c=2)
    result = fused(*given, stride=(stride, stride), padding=(padding, padding))
    assert_right(result, plain(*given, stride, padding), plain(*to_oracle(given), stride, padding))


def test_nan_reaches_the_windows_that_hold_it(dtype: torch.dtype) -> None:
    x, w, bias = inputs(dtype, (24, 24), k=16, n=1)
    x[0, 1, 10, 13] = float("nan")
    x[0, 0, 2, 3] = float("-inf")
    with without_onednn():
        assert_right(fused(x, w, bias), plain(x, w, bias), plain(*to_oracle((x, w, bias))))


def test_8_bit_pixels_are_normalised_as_they_are_loaded(dtype: torch.dtype) -> None:
    _, w, bias = inputs(dtype, (1, 1), k=20)
    pixels = channels_last(torch.randint(0, 256, (2, 3, 21, 26), dtype=torch.uint8))
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalize = (1 / (255 * deviation)).to(DEVICE), (-mean / deviation).to(DEVICE)

    def image(float_dtype: torch.dtype) -> Tensor:
        unit = pixels.to(float_dtype) / 255
        return (unit - mean.to(float_dtype).view(-1, 1, 1)) / deviation.to(float_dtype).view(-1, 1, 1)

    y = fused(pixels, w, bias, normalize=normalize)
    assert y.dtype == dtype
    assert_right(y, plain(image(torch.float32).to(dtype), w, bias), plain(image(torch.float64), *to_oracle((w, bias))))


def test_pixels_of_another_dtype_are_refused() -> None:
    x, w, bias = inputs(torch.float32, (9, 9), k=16)
    with pytest.raises(TypeError, match=r"x: expected torch\.float32, the dtype of the weights, got torch\.uint8"):
        fused(x.to(torch.uint8), w, bias)
    with pytest.raises(TypeError, match=r"x: expected torch\.uint8, since `normalize` is given, got torch\.float32"):
        fused(x, w, bias, normalize=(torch.ones(3), torch.ones(3)))
