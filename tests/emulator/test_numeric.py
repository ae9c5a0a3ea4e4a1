"""The emulator's number formats against torch, and rounding modes against exact arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from fastres import _C
from fastres.tf32 import rounded

pieces = _C.pieces

TORCH = {"f16": torch.float16, "bf16": torch.bfloat16, "e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
WIDTH = {"f16": 16, "bf16": 16, "e4m3": 8, "e5m2": 8}
NAN = {"f16": 0x7FFF, "bf16": 0x7FFF, "tf32": 0x7FFFFFFF, "e4m3": 0x7F, "e5m2": 0x7F}


def codes(name: str) -> np.ndarray:
    return np.arange(1 << WIDTH[name], dtype=np.uint32)


def torch_values(name: str, bits: np.ndarray) -> np.ndarray:
    integers = {16: (np.uint16, torch.int16), 8: (np.uint8, torch.uint8)}[WIDTH[name]]
    raw = torch.from_numpy(bits.astype(integers[0]).view(np.int16 if WIDTH[name] == 16 else np.uint8))
    return raw.view(TORCH[name]).float().numpy()


def random_floats(count: int = 200_000) -> np.ndarray:
    """Every exponent, ties and their neighbours included."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, count, dtype=np.uint32)
    ties = bits & np.uint32(0xFFFFE000) | rng.choice(np.array([0, 0x1000, 0x0FFF, 0x1001], np.uint32), count)
    values = np.concatenate([bits, ties, bits & np.uint32(0xFFFF8000)]).view(np.float32)
    small = (rng.standard_normal(count) * 2.0 ** rng.integers(-30, 20, count)).astype(np.float32)
    return np.concatenate([values, small, np.float32([0, -0.0, np.inf, -np.inf, np.nan, 65519.996, 65520, 448, 464])])


@pytest.mark.parametrize("name", TORCH)
def test_decode_is_torchs_for_every_code(name: str) -> None:
    np.testing.assert_array_equal(pieces.decode(name, codes(name)), torch_values(name, codes(name)))


@pytest.mark.parametrize("name", TORCH)
def test_encode_returns_every_code(name: str) -> None:
    values = torch_values(name, codes(name))
    expected = np.where(np.isnan(values), NAN[name], codes(name))
    if name == "e4m3":
        assert not np.isinf(values).any()
    for mode in ("rn", "rz", "rm", "rp", "rna"):
        np.testing.assert_array_equal(pieces.encode(name, values, mode), expected)
    with np.errstate(invalid="ignore"):  # signalling NaN
        doubles = values.astype(np.float64)
    np.testing.assert_array_equal(pieces.encode_double(name, doubles), expected)


@pytest.mark.parametrize("name", ["f16", "bf16", "e5m2"])
def test_round_to_nearest_is_torchs(name: str) -> None:
    values = random_floats()
    rounded = torch.from_numpy(values).to(TORCH[name])
    expected = rounded.view(torch.int16 if WIDTH[name] == 16 else torch.uint8).numpy()
    expected = expected.astype(np.uint32) & ((1 << WIDTH[name]) - 1)
    expected[np.isnan(values)] = NAN[name]
    np.testing.assert_array_equal(pieces.encode(name, values), expected)


@pytest.mark.parametrize("name", ["f16", "bf16", "e5m2", "e4m3"])
def test_saturation_and_relu(name: str) -> None:
    largest = {"f16": 0x7BFF, "bf16": 0x7F7F, "e5m2": 0x7B, "e4m3": 0x7E}[name]
    sign = 1 << (WIDTH[name] - 1)
    values = np.float32([np.inf, -np.inf, 3.4e38, np.nan, -1.0])
    minus_one = int(pieces.encode(name, np.float32([-1]))[0])
    assert pieces.encode(name, values, saturate=True).tolist() == [
        largest,
        sign | largest,
        largest,
        NAN[name],
        minus_one,
    ]
    assert pieces.encode(name, values, saturate=True, relu=True).tolist() == [largest, 0, largest, NAN[name], 0]


def exact(name: str, bits: int) -> Fraction:
    return Fraction(float(pieces.decode(name, np.uint32([bits]))[0]))


@pytest.mark.parametrize("name", ["f16", "bf16", "e5m2"])
def test_directed_rounding_brackets_the_value(name: str) -> None:
    """rm and rp are the neighbours below and above, rz the one nearer zero; overflow stays finite on the inner side."""
    values = random_floats(2_000)
    values = values[np.isfinite(values)]
    down, up, zero = (pieces.encode(name, values, mode) for mode in ("rm", "rp", "rz"))
    low, high = pieces.decode(name, down), pieces.decode(name, up)
    assert (low.astype(np.float64) <= values).all()
    assert (high.astype(np.float64) >= values).all()
    np.testing.assert_array_equal(zero, np.where(values.view(np.int32) < 0, up, down))
    inexact = down != up
    steps = np.where(low >= 0, up.astype(np.int64) - down, down.astype(np.int64) - up)
    crossing = (low < 0) & (high >= 0)
    assert (steps[inexact & ~crossing] == 1).all()


def test_tf32_keeps_nineteen_bits() -> None:
    values = np.float32([1 + 2**-11, 1 + 2**-11 + 2**-20, -(1 + 2**-11), 1 + 3 * 2**-11, 1 + 2**-12])
    near = pieces.decode("tf32", pieces.encode("tf32", values, "rna"))
    assert near.tolist() == [1 + 2**-10, 1 + 2**-10, -(1 + 2**-10), 1 + 2**-9, 1]
    even = pieces.decode("tf32", pieces.encode("tf32", values, "rn"))
    assert even.tolist() == [1, 1 + 2**-10, -1, 1 + 2**-9, 1]
    toward_zero = pieces.decode("tf32", pieces.encode("tf32", values, "rz"))
    assert toward_zero.tolist() == [1, 1, -1, 1 + 2**-10, 1]
    assert pieces.encode("tf32", np.float32([np.nan]), "rna")[0] == NAN["tf32"]
    assert pieces.decode("tf32", np.uint32([0x3F801FFF]))[0] == 1  # the low 13 bits are not read


def test_fastres_rounds_to_tf32_as_the_instruction_does() -> None:
    near = torch.tensor([1 + 2**-11, -(1 + 2**-11), 1 + 2**-11 - 2**-23, 0.0, -0.0, 1e-40, math.inf, -math.inf])
    values = torch.cat([near, torch.randn(1000), torch.randn(1000) * 1e-38])
    expected = pieces.decode("tf32", pieces.encode("tf32", values.numpy(), "rna"))
    np.testing.assert_array_equal(rounded(values).numpy(), expected.astype(np.float32))
    odd = torch.tensor([0x7FFFFFFF, 0x7FC00000, -1], dtype=torch.int32).view(torch.float32)
    assert rounded(odd).isnan().all()


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_fma_rounds_once(name: str) -> None:
    rng = np.random.default_rng(1)
    a, b, c = (rng.integers(0, 1 << 16, 3_000, dtype=np.uint32) for _ in range(3))
    floats = [pieces.decode(name, x) for x in (a, b, c)]
    keep = np.isfinite(np.stack(floats)).all(0)
    a, b, c = a[keep], b[keep], c[keep]
    got = pieces.fma(name, a, b, c)
    largest = exact(name, {"f16": 0x7BFF, "bf16": 0x7F7F}[name])
    for x, y, z, bits in zip(a, b, c, got, strict=True):
        value = exact(name, x) * exact(name, y) + exact(name, z)
        if abs(value) > largest:  # overflow, or rounds to the largest
            assert (bits & 0x7FFF) >= {"f16": 0x7BFF, "bf16": 0x7F7F}[name]
            continue
        error = abs(exact(name, bits) - value)
        for neighbour in (int(bits) - 1, int(bits) + 1):
            if (neighbour & 0x7FFF) < {"f16": 0x7C00, "bf16": 0x7F80}[name] and (bits & 0x7FFF) != 0:
                other = abs(exact(name, neighbour) - value)
                assert error < other or (error == other and bits % 2 == 0)
