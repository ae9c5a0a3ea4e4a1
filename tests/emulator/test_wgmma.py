"""wgmma's operands and accumulators: canonical layouts built by CuTe's formulas in numpy, then read back."""

import numpy as np
import pytest

from fastres import _C

pieces = _C.pieces

MODE = {0: 0, 128: 1, 64: 2, 32: 3}


def descriptor(start: int, leading: int, stride: int, swizzle: int) -> int:
    return start >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | MODE[swizzle] << 62


def swizzle(offset: np.ndarray, span: int) -> np.ndarray:
    """CuTe's Swizzle<b, 4, 3>: the b bits from bit 7 are added, without carry, to those from bit 4."""
    bits = {0: 0, 32: 1, 64: 2, 128: 3}[span]
    return offset ^ (offset >> 7 & (1 << bits) - 1) << 4


def store(matrix: np.ndarray, offsets: np.ndarray, start: int, span: int) -> np.ndarray:
    """Shared memory with matrix[i] of 2-byte elements at byte start + offsets[i], swizzled."""
    memory = np.full(1 << 16, 0xEE, np.uint8)
    where = swizzle(start + offsets, span)
    raw = matrix.view(np.uint8).reshape(*matrix.shape, 2)
    for byte in range(2):
        memory[where + byte] = raw[..., byte]
    return memory


def half_matrix(rows: int, k: int) -> np.ndarray:
    return np.random.default_rng(rows).integers(-64, 64, (rows, k)).astype(np.float16)


def read(operand: str, memory: np.ndarray, bits: int, mn_major: bool, rows: int, scale: float = 1) -> np.ndarray:
    got = pieces.wgmma_gather(operand, "f16", bits, mn_major, rows, memory, scale)
    return got if operand == "a" else got.T


@pytest.mark.parametrize(("operand", "rows"), [("a", 64), ("b", 8), ("b", 96), ("b", 256)])
@pytest.mark.parametrize("span", [32, 64, 128])
@pytest.mark.parametrize("step", [0, 1])
def test_k_major_swizzled(operand: str, rows: int, span: int, step: int) -> None:
    """Tiles of `span` bytes of K; the start address advances by 32 bytes a K step."""
    if step * 32 + 32 > span:
        step = 0
    matrix = half_matrix(rows, 16)
    m, k = np.indices(matrix.shape)
    offsets = m // 8 * 8 * span + m % 8 * span + step * 32 + 2 * k
    memory = store(matrix, offsets, 2048, span)
    bits = descriptor(2048 + step * 32, 16, 8 * span, span)
    np.testing.assert_array_equal(read(operand, memory, bits, False, rows), matrix)


@pytest.mark.parametrize(("operand", "rows"), [("a", 64), ("b", 24)])
def test_k_major_without_swizzle(operand: str, rows: int) -> None:
    matrix = half_matrix(rows, 16)
    m, k = np.indices(matrix.shape)
    stride, leading = 128, rows // 8 * 128  # core matrices of 8 rows by 16 bytes, M fastest
    memory = store(matrix, m // 8 * stride + m % 8 * 16 + k // 8 * leading + k % 8 * 2, 1024, 0)
    bits = descriptor(1024, leading, stride, 0)
    np.testing.assert_array_equal(read(operand, memory, bits, False, rows), matrix)


@pytest.mark.parametrize(("operand", "rows"), [("a", 64), ("b", 64), ("b", 128), ("b", 256)])
@pytest.mark.parametrize("span", [32, 64, 128])
def test_mn_major_swizzled(operand: str, rows: int, span: int) -> None:
    """((span / 2, n), (8, k)) : ((1, LBO), (span, SBO)) as CuTe writes MN-major layouts."""
    matrix = half_matrix(rows, 16)
    m, k = np.indices(matrix.shape)
    wide, stride = span // 2, 8 * span
    leading = 2 * stride
    offsets = m % wide * 2 + m // wide * leading + k % 8 * span + k // 8 * stride
    memory = store(matrix, offsets, 4096, span)
    bits = descriptor(4096, leading, stride, span)
    np.testing.assert_array_equal(read(operand, memory, bits, True, rows), matrix)


@pytest.mark.parametrize("operand", ["a", "b"])
def test_mn_major_without_swizzle(operand: str) -> None:
    matrix = half_matrix(64, 16)
    m, k = np.indices(matrix.shape)
    stride, leading = 128, 1024  # ((8, n), (8, k)) : ((1, SBO), (8, LBO))
    memory = store(matrix, m % 8 * 2 + m // 8 * stride + k % 8 * 16 + k // 8 * leading, 1024, 0)
    bits = descriptor(1024, leading, stride, 0)
    np.testing.assert_array_equal(read(operand, memory, bits, True, 64), matrix)
    np.testing.assert_array_equal(read(operand, memory, bits, True, 64, -1), -matrix)


def test_base_offset_is_refused() -> None:
    memory = np.zeros(1 << 16, np.uint8)
    with pytest.raises(ValueError, match="base offset is 1, expected 0"):
        pieces.wgmma_gather("a", "f16", descriptor(1024, 16, 1024, 128) | 1 << 49, False, 0, memory, 1)
    with pytest.raises(ValueError, match="only 16-bit operands"):
        pieces.wgmma_gather("b", "tf32", descriptor(1024, 16, 1024, 128), True, 8, memory, 1)


@pytest.mark.parametrize("columns", [8, 64, 256])
def test_float_accumulators(columns: int) -> None:
    """Register v of lane l holds row l / 4 + 8 * (v / 2 % 2) and column 8 * (v / 4) + 2 * (l % 4) + v % 2."""
    v, lane = np.indices((columns // 2, 32))
    row, column = lane // 4 + 8 * (v // 2 % 2), 8 * (v // 4) + 2 * (lane % 4) + v % 2
    values = (row * 1000 + column).astype(np.float32)
    expected = np.arange(16)[:, None] * 1000 + np.arange(columns)
    np.testing.assert_array_equal(pieces.wgmma_accumulators(values.view(np.uint32), "f32", columns), expected)


def test_half_accumulators() -> None:
    v, lane = np.indices((32, 32))
    row, column = lane // 4 + 8 * (v // 2 % 2), 8 * (v // 4) + 2 * (lane % 4) + v % 2
    values = (row * 64 + column).astype(np.float16).view(np.uint16).astype(np.uint32)
    packed = values[0::2] | values[1::2] << 16
    expected = np.arange(16)[:, None] * 64 + np.arange(64)
    np.testing.assert_array_equal(pieces.wgmma_accumulators(packed, "f16", 64), expected)
