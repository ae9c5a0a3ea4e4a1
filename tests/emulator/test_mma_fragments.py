"""mma.sync fragments: layouts typed in from the PTX ISA's figures, products against numpy."""

import numpy as np
import pytest

from fastres import _C

pieces = _C.pieces

LANES = np.arange(32)
GROUP, THREAD = LANES // 4, LANES % 4


def pack(values: np.ndarray, bits: int) -> np.ndarray:
    """(..., elements of a register) of stored bits to 32-bit registers, first element lowest."""
    out = np.zeros(values.shape[:-1], np.uint32)
    for i in range(values.shape[-1]):
        out |= (values[..., i].astype(np.uint32) & np.uint32((1 << bits) - 1 if bits < 32 else 0xFFFFFFFF)) << (
            bits * i
        )
    return out


# (registers of A, of B): (row, column) of element h of register r, as "Matrix Fragments for mma.m16n8k*" list them.
A_16 = [lambda h: (GROUP, THREAD * 2 + h), lambda h: (GROUP + 8, THREAD * 2 + h)]
A_16_K16 = [*A_16, lambda h: (GROUP, THREAD * 2 + 8 + h), lambda h: (GROUP + 8, THREAD * 2 + 8 + h)]
B_16_K16 = [lambda h: (THREAD * 2 + h, GROUP), lambda h: (THREAD * 2 + 8 + h, GROUP)]
A_32 = [lambda h: (GROUP, THREAD), lambda h: (GROUP + 8, THREAD)]
A_32_K8 = [*A_32, lambda h: (GROUP, THREAD + 4), lambda h: (GROUP + 8, THREAD + 4)]
B_32_K8 = [lambda h: (THREAD, GROUP), lambda h: (THREAD + 4, GROUP)]
A_8_K32 = [
    lambda h: (GROUP, THREAD * 4 + h),
    lambda h: (GROUP + 8, THREAD * 4 + h),
    lambda h: (GROUP, THREAD * 4 + 16 + h),
    lambda h: (GROUP + 8, THREAD * 4 + 16 + h),
]
B_8_K32 = [lambda h: (THREAD * 4 + h, GROUP), lambda h: (THREAD * 4 + 16 + h, GROUP)]

CASES = {
    ("f16", 16): (16, A_16_K16, B_16_K16),
    ("bf16", 16): (16, A_16_K16, B_16_K16),
    ("f16", 8): (16, A_16, B_16_K16[:1]),
    ("bf16", 8): (16, A_16, B_16_K16[:1]),
    ("tf32", 8): (32, A_32_K8, B_32_K8),
    ("tf32", 4): (32, A_32, B_32_K8[:1]),
    ("e4m3", 32): (8, A_8_K32, B_8_K32),
    ("e5m2", 32): (8, A_8_K32, B_8_K32),
}


def to_registers(matrix: np.ndarray, layout: list, bits: int) -> np.ndarray:
    elements = 32 // bits
    return np.stack([pack(np.stack([matrix[at(h)] for h in range(elements)], -1), bits) for at in layout])


def accumulators(matrix: np.ndarray) -> np.ndarray:
    """(16, 8) of 32-bit values to four registers: c0, c1 in row g, c2, c3 in row g + 8."""
    rows, columns = (GROUP, GROUP, GROUP + 8, GROUP + 8), (0, 1, 0, 1)
    return np.stack([matrix[row, THREAD * 2 + column] for row, column in zip(rows, columns, strict=True)])


@pytest.mark.parametrize(("element", "k"), CASES)
def test_mma_with_float_accumulators(element: str, k: int) -> None:
    bits, a_layout, b_layout = CASES[element, k]
    rng = np.random.default_rng(k)
    a_bits = pieces.encode(element, rng.standard_normal((16, k)).astype(np.float32)).reshape(16, k)
    b_bits = pieces.encode(element, rng.standard_normal((k, 8)).astype(np.float32)).reshape(k, 8)
    c = rng.standard_normal((16, 8)).astype(np.float32)
    a, b = (pieces.decode(element, x).reshape(x.shape).astype(np.float64) for x in (a_bits, b_bits))
    d = pieces.mma(
        element,
        element,
        "f32",
        k,
        to_registers(a_bits, a_layout, bits),
        to_registers(b_bits, b_layout, bits),
        accumulators(c.view(np.uint32)),
    )
    bound = (k + 1) * 2.0**-24 * (np.abs(a) @ np.abs(b) + np.abs(c))  # k additions, each rounded
    assert (np.abs(d.view(np.float32) - accumulators(a @ b + c)) <= accumulators(bound)).all()


def test_mma_with_half_accumulators() -> None:
    rng = np.random.default_rng(3)
    a, b, c = (rng.integers(-8, 9, shape).astype(np.float16) for shape in ((16, 16), (16, 8), (16, 8)))
    packed = np.stack([c.view(np.uint16)[GROUP + 8 * r][LANES, THREAD * 2] for r in range(2)]).astype(np.uint32)
    packed |= np.stack([c.view(np.uint16)[GROUP + 8 * r, THREAD * 2 + 1] for r in range(2)]).astype(np.uint32) << 16
    a_registers = to_registers(a.view(np.uint16), A_16_K16, 16)
    d = pieces.mma("f16", "f16", "f16", 16, a_registers, to_registers(b.view(np.uint16), B_16_K16, 16), packed)
    expected = (a.astype(np.float64) @ b + c).astype(np.float16)  # integers below 2048: exact
    for r in range(2):
        pair = d[r].copy().view(np.float16).reshape(32, 2)
        np.testing.assert_array_equal(pair, np.stack([expected[GROUP + 8 * r, THREAD * 2 + h] for h in range(2)], -1))


@pytest.mark.parametrize(("a_type", "b_type"), [("s8", "s8"), ("u8", "s8"), ("u8", "u8")])
def test_mma_with_integers(a_type: str, b_type: str) -> None:
    rng = np.random.default_rng(4)
    limits = {"s8": (-128, 128), "u8": (0, 256)}
    a, b = rng.integers(*limits[a_type], (16, 32)), rng.integers(*limits[b_type], (32, 8))
    c = rng.integers(-(2**31), 2**31, (16, 8))
    registers = (to_registers(a, A_8_K32, 8), to_registers(b, B_8_K32, 8), accumulators(c.astype(np.uint32)))
    exact = accumulators(a @ b + c)
    wrapped = pieces.mma(a_type, b_type, "s32", 32, *registers)
    np.testing.assert_array_equal(wrapped, (exact & 0xFFFFFFFF).astype(np.uint32))
    clamped = pieces.mma(a_type, b_type, "s32", 32, *registers, satfinite=True).view(np.int32)
    np.testing.assert_array_equal(clamped, np.clip(exact, -(2**31), 2**31 - 1))


@pytest.mark.parametrize("trans", [False, True])
def test_ldmatrix_and_stmatrix(trans: bool) -> None:
    matrix = np.arange(64, dtype=np.uint16).reshape(8, 8) + 1000
    lanes = pieces.ldmatrix(matrix, trans)
    read = matrix.T if trans else matrix
    np.testing.assert_array_equal(lanes & 0xFFFF, read[GROUP, THREAD * 2])
    np.testing.assert_array_equal(lanes >> 16, read[GROUP, THREAD * 2 + 1])
    np.testing.assert_array_equal(pieces.stmatrix(lanes, trans), matrix)
