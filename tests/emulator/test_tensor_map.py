"""Tensor maps: the driver's checks, box traversal, and im2col against the pixel lists of Triton's hardware tests."""

import numpy as np
import pytest

from fastres import _C

pieces = _C.pieces

BASE = 1 << 20
TILED = {
    "type": "f16",
    "address": BASE,
    "sizes": [64, 100],
    "strides": [128],
    "element_strides": [1, 1],
    "swizzle": 128,
    "fill_nan": False,
    "box": [64, 8],
}
IM2COL = {
    "type": "f32",
    "address": BASE,
    "sizes": [32, 4, 4, 2],
    "strides": [128, 512, 2048],
    "element_strides": [1, 1, 1, 1],
    "swizzle": 128,
    "fill_nan": False,
    "lower": [0, 0],
    "upper": [0, 0],
    "channels": 32,
    "pixels": 16,
}


def pixels(coordinates: list[int], offsets: list[int] = (0, 0), **changes: object) -> list[int]:
    """Numbers of the pixels read, from 1 as Triton's tests number them; 0 where the fill is."""
    rows = pieces.box_rows(pieces.encode_im2col(**{**IM2COL, **changes}), coordinates, list(offsets))
    pitch = rows[1][1] - rows[0][1]
    assert [row[1] for row in rows] == [i * pitch for i in range(len(rows))]
    return [(address - BASE) // 128 + 1 if end else 0 for address, _, _, _, end in rows]


def test_im2col_over_one_image() -> None:
    assert pixels([0, 0, 0, 0]) == list(range(1, 17))


def test_im2col_with_padding() -> None:
    corners = {"lower": [-1, -1], "upper": [-1, -1]}
    assert pixels([0, -1, -1, 0], **corners) == [0, 0, 0, 0, 0, 1, 2, 3, 0, 5, 6, 7, 0, 9, 10, 11]
    assert pixels([0, -1, -1, 0], [1, 1], **corners) == list(range(1, 17))


def test_im2col_over_two_images() -> None:
    assert pixels([0, 3, 1, 0]) == list(range(8, 24))
    assert pixels([0, 2, 1, 0], lower=[-1, -1], upper=[-1, -1]) == [
        7,
        0,
        9,
        10,
        11,
        0,
        0,
        0,
        0,
        0,
        17,
        18,
        19,
        0,
        21,
        22,
    ]


def test_im2col_past_the_batch_is_filled() -> None:
    assert pixels([0, 2, 3, 1]) == [31, 32, *[0] * 14]


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"), [(3, 1, 1, 1), (3, 2, 1, 1), (1, 2, 0, 1), (3, 1, 2, 2)]
)
def test_im2col_is_the_convolutions(kernel: int, stride: int, padding: int, dilation: int) -> None:
    """Every tap of every output pixel, in tiles of pixels that span rows and images."""
    size, batch, tile = 9, 3, 16
    reach = dilation * (kernel - 1)
    out = (size + 2 * padding - reach - 1) // stride + 1
    blob = pieces.encode_im2col(
        **{
            **IM2COL,
            "sizes": [32, size, size, batch],
            "strides": [128, 128 * size, 128 * size * size],
            "element_strides": [1, stride, stride, 1],
            "lower": [-padding] * 2,
            "upper": [padding - reach] * 2,
            "pixels": tile,
        }
    )
    for start in range(0, batch * out * out, tile):
        n, p, q = start // (out * out), start // out % out, start % out
        for r in range(kernel):
            for s in range(kernel):
                at = [0, q * stride - padding, p * stride - padding, n]
                rows = pieces.box_rows(blob, at, [s * dilation, r * dilation])
                for i, (address, _, _, _, end) in enumerate(rows):
                    m = start + i
                    h = m // out % out * stride - padding + r * dilation
                    w = m % out * stride - padding + s * dilation
                    image = m // (out * out)
                    inside = 0 <= h < size and 0 <= w < size and image < batch
                    assert (end != 0) == inside
                    if inside:
                        assert address == BASE + 128 * ((image * size + h) * size + w)


def test_tiled_box_rows() -> None:
    rows = pieces.box_rows(pieces.encode_tiled(**TILED), [0, 96])
    assert [row[:3] for row in rows] == [[BASE + 128 * (96 + i), 128 * i, 128] for i in range(8)]
    assert [row[3:] for row in rows] == [[0, 128]] * 4 + [[0, 0]] * 4
    assert pieces.box_bytes(pieces.encode_tiled(**TILED)) == 1024


def test_tiled_box_is_clipped_in_the_innermost_dimension() -> None:
    blob = pieces.encode_tiled(**{**TILED, "sizes": [40, 100], "box": [32, 2]})
    assert [row[3:] for row in pieces.box_rows(blob, [16, 0])] == [[0, 48], [0, 48]]
    assert [row[3:] for row in pieces.box_rows(blob, [-8, 0])] == [[16, 64], [16, 64]]
    assert [row[3:] for row in pieces.box_rows(blob, [40, -1])] == [[0, 0], [0, 0]]


def test_tiled_element_strides_step_and_shorten_the_box() -> None:
    blob = pieces.encode_tiled(**{**TILED, "element_strides": [1, 3], "box": [64, 8]})
    assert [row[0] for row in pieces.box_rows(blob, [0, 1])] == [BASE + 128 * (1 + 3 * i) for i in range(3)]
    assert pieces.box_bytes(blob) == 3 * 128


def test_tiled_order_is_innermost_first() -> None:
    blob = pieces.encode_tiled(
        **{
            **TILED,
            "sizes": [64, 3, 5],
            "strides": [128, 1024],
            "element_strides": [1, 1, 1],
            "box": [64, 2, 2],
        }
    )
    starts = [row[0] - BASE for row in pieces.box_rows(blob, [0, 1, 2])]
    assert starts == [128 * w + 1024 * h for h in (2, 3) for w in (1, 2)]


@pytest.mark.parametrize("span", [32, 64, 128])
def test_swizzle_is_cutes(span: int) -> None:
    """CuTe's Swizzle<log2(span / 16), 4, 3> on byte offsets: in a pattern, chunk c of row r holds chunk c ^ r."""
    chunks = span // 16
    for row in range(8):
        for chunk in range(chunks):
            address = row * span + chunk * 16
            in_128 = address // 128
            assert pieces.swizzled(span, address) == address ^ (in_128 % chunks) << 4
    if span == 128:
        atom = [[pieces.swizzled(128, r * 128 + c * 16) % 128 // 16 for c in range(8)] for r in range(8)]
        np.testing.assert_array_equal(atom, np.arange(8)[:, None] ^ np.arange(8))
    assert pieces.swizzled(0, 0x3F0) == 0x3F0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"address": BASE + 8}, r"address is 1048584, expected a multiple of 16 bytes"),
        ({"strides": [136]}, r"stride\[0\] is 136, expected a multiple of 16 bytes below 2\^40"),
        ({"box": [64, 257]}, r"box\[1\] is 257, expected 1 to 256"),
        ({"box": [64, 0]}, r"box\[1\] is 0"),
        ({"box": [4, 8]}, r"inner extent in bytes is 8, expected a multiple of 16"),
        ({"box": [128, 8]}, r"inner extent in bytes is 256, expected at most the swizzle's span, 128"),
        ({"box": [32, 8], "swizzle": 32}, r"inner extent in bytes is 64, expected at most the swizzle's span, 32"),
        ({"swizzle": 48}, r"swizzle is 48, expected 0, 32, 64 or 128"),
        ({"element_strides": [1, 9]}, r"element_stride\[1\] is 9, expected 1 to 8"),
        ({"element_strides": [2, 1]}, r"element_stride\[0\] is 2"),
        ({"sizes": [64, 0]}, r"size\[1\] is 0"),
        ({"sizes": [64] * 6}, r"rank is 6, expected 1 to 5"),
        ({"type": "u8", "box": [64, 8], "fill_nan": True}, r"fill is nan, expected zero for an integer type"),
        ({"type": "f8"}, r"'f8'"),
    ],
)
def test_tiled_checks(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pieces.encode_tiled(**{**TILED, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lower": [-129, 0]}, r"lower\[0\] is -129, expected -128 to 127"),
        ({"upper": [0, 128]}, r"upper\[1\] is 128, expected -128 to 127"),
        ({"channels": 257}, r"channels per pixel is 257, expected 1 to 256"),
        ({"pixels": 1025}, r"pixels per column is 1025, expected 1 to 1024"),
        ({"channels": 64}, r"inner extent in bytes is 256, expected at most"),
        ({"upper": [-4, 0]}, r"bounding box\[0\] is 0, expected at least one pixel"),
        ({"lower": [0]}, r"len\(lower\) is 1, expected rank - 2"),
    ],
)
def test_im2col_checks(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pieces.encode_im2col(**{**IM2COL, **change})
