"""wgmma.mma_async in its shapes, types, majors and scales: one instruction on matrices laid out by CuTe's formulas."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from fastres import _C, emulator

pieces = _C.pieces
SPAN, START_A, START_B = 128, 1024, 1024 + 64 * 128
SIZE = {"f16": 2, "bf16": 2, "tf32": 4, "e4m3": 1, "e5m2": 1, "s8": 1, "u8": 1}


@dataclass(frozen=True)
class Multiply:
    """D (64 x columns, `to`) = [D] + (scale_a A) (scale_b B), A and B of `kind`."""

    columns: int
    kind: str = "f16"
    to: str = "f32"
    a_major: int = 0
    b_major: int = 0
    scale_a: int = 1
    scale_b: int = 1
    accumulate: bool = False
    registers: bool = False
    before: str = ""  # PTX between the fence and the wgmma

    @property
    def k(self) -> int:
        return 32 // SIZE[self.kind]

    def ptx(self) -> str:
        """One warpgroup: shared memory from an image, accumulators from and to `d`, one register a 128-thread row."""
        count = self.columns // (4 if self.to == "f16" else 2)
        accumulators = ", ".join(f"%d{i}" for i in range(count))
        loads = "\n".join(f"ld.global.b32 %d{i}, [%rd3 + {512 * i}];" for i in range(count))
        stores = "\n".join(f"st.global.b32 [%rd3 + {512 * i}], %d{i};" for i in range(count))
        a = "{%a0, %a1, %a2, %a3}" if self.registers else "%rd5"
        scales = "" if self.to == "s32" else f", {self.scale_a}, {self.scale_b}"
        majors = ""
        if SIZE[self.kind] == 2:
            majors = f", {self.b_major}" if self.registers else f", {self.a_major}, {self.b_major}"
        return f"""
.version 8.0
.target sm_90a
.address_size 64
.extern .shared .align 1024 .b8 smem[];
.visible .entry multiply(.param .u64 image, .param .u64 a, .param .u64 d, .param .u32 bytes,
                         .param .u64 a_descriptor, .param .u64 b_descriptor)
{{
  .reg .pred %p<4>;
  .reg .b32 %d<{count}>, %a<4>, %r<10>;
  .reg .b64 %rd<10>;
  ld.param.u64 %rd1, [image];
  ld.param.u64 %rd2, [a];
  ld.param.u64 %rd3, [d];
  ld.param.u32 %r1, [bytes];
  ld.param.u64 %rd5, [a_descriptor];
  ld.param.u64 %rd6, [b_descriptor];
  mov.u32 %r2, %tid.x;
  shl.b32 %r3, %r2, 2;
  cvt.u64.u32 %rd4, %r3;
  add.u64 %rd2, %rd2, %rd4;
  add.u64 %rd3, %rd3, %rd4;
  mov.u32 %r4, smem;
  add.u32 %r4, %r4, %r3;
  add.u64 %rd1, %rd1, %rd4;
COPY:
  ld.global.b32 %r5, [%rd1];
  st.shared.b32 [%r4], %r5;
  add.u64 %rd1, %rd1, 512;
  add.u32 %r4, %r4, 512;
  add.u32 %r3, %r3, 512;
  setp.lt.u32 %p1, %r3, %r1;
  @%p1 bra COPY;
  fence.proxy.async.shared::cta;
  bar.sync 0;
  ld.global.b32 %a0, [%rd2];
  ld.global.b32 %a1, [%rd2 + 512];
  ld.global.b32 %a2, [%rd2 + 1024];
  ld.global.b32 %a3, [%rd2 + 1536];
  {loads}
  setp.ne.b32 %p2, {int(self.accumulate)}, 0;
  wgmma.fence.sync.aligned;
  {self.before}
  wgmma.mma_async.sync.aligned.m64n{self.columns}k{self.k}.{self.to}.{self.kind}.{self.kind}
    {{{accumulators}}}, {a}, %rd6, %p2{scales}{majors};
  wgmma.commit_group.sync.aligned;
  wgmma.wait_group.sync.aligned 0;
  {stores}
  ret;
}}
"""


def descriptor(start: int, leading: int, stride: int) -> int:
    return start >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | 1 << 62


def place(image: np.ndarray, matrix: np.ndarray, start: int, mn_major: int) -> tuple[int, int]:
    """Stores matrix (rows, K) at `start` with 128-byte swizzle; its descriptor's byte offsets (LBO, SBO)."""
    size = matrix.itemsize
    row, k = np.indices(matrix.shape)
    leading, stride = 16, 8 * SPAN
    offset = row // 8 * stride + row % 8 * SPAN + k * size
    if mn_major:
        wide = SPAN // size
        leading, stride = 2 * 8 * SPAN, 8 * SPAN
        offset = row % wide * size + row // wide * leading + k % 8 * SPAN + k // 8 * stride
    at = start + offset
    at ^= (at >> 7 & 7) << 4
    raw = np.ascontiguousarray(matrix).view(np.uint8).reshape(*matrix.shape, size)
    for byte in range(size):
        image[at + byte] = raw[..., byte]
    return leading, stride


def encode(kind: str, values: np.ndarray) -> np.ndarray:
    """Integers as stored elements."""
    if kind in ("s8", "u8"):
        return values.astype(np.int8).view(np.uint8)
    bits = pieces.encode(kind, values.astype(np.float32)).reshape(values.shape)
    return bits.astype({1: np.uint8, 2: np.uint16, 4: np.uint32}[SIZE[kind]])


def fragments(matrix: np.ndarray) -> np.ndarray:
    """(64, K) of stored elements to (4, 128) registers: rows g and g + 8 of each warp, by halves of K."""
    per = 4 // matrix.itemsize
    thread = np.arange(128)
    warp, g, t = thread // 32, thread % 32 // 4, thread % 4
    out = np.zeros((4, 128), np.uint32)
    for r in range(4):
        for h in range(per):
            element = matrix[16 * warp + g + 8 * (r % 2), per * t + h + 4 * per * (r // 2)]
            out[r] |= element.astype(np.uint32) << np.uint32(8 * matrix.itemsize * h)
    return out


def accumulator_index(columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of element v of each of 128 threads."""
    v, thread = np.indices((columns // 2, 128))
    lane = thread % 32
    return 16 * (thread // 32) + lane // 4 + 8 * (v // 2 % 2), 8 * (v // 4) + 2 * (lane % 4) + v % 2


def execute(case: Multiply, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """D as the kernel leaves it, and as it should be; small integers, so exact in every type."""
    rng = np.random.default_rng(case.columns)
    low = 0 if case.kind == "u8" else -3
    a, b = rng.integers(low, 4, (64, case.k)), rng.integers(low, 4, (case.columns, case.k))
    before = rng.integers(-8, 9, (64, case.columns))
    image = np.zeros(START_B + 256 * SPAN + 4096, np.uint8)
    a_offsets = place(image, encode(case.kind, a), START_A, case.a_major)
    b_offsets = place(image, encode(case.kind, b), START_B, case.b_major)
    rows, columns = accumulator_index(case.columns)
    storage = {"f32": np.float32, "f16": np.float16, "s32": np.int32}[case.to]
    elements = before[rows, columns].astype(storage)
    if case.to == "f16":
        halves = elements.view(np.uint16).astype(np.uint32)
        registers = halves[0::2] | halves[1::2] << 16
    else:
        registers = elements.view(np.uint32)
    d = torch.from_numpy(registers.view(np.int32).copy())
    # Shared memory begins at 1024 in the emulator, where `smem` is.
    report = emulator.load(case.ptx()).launch(
        "multiply",
        (1,),
        (128,),
        [
            torch.from_numpy(image[1024:].copy()),
            torch.from_numpy(fragments(encode(case.kind, a)).view(np.int32)),
            d,
            image.size - 1024,
            descriptor(START_A, *a_offsets),
            descriptor(START_B, *b_offsets),
        ],
        shared=image.size - 1024,
        seed=seed,
    )
    assert report.findings == ()
    assert report.macs == 64 * case.columns * case.k
    out = d.numpy().view(np.uint32)
    got = np.zeros((64, case.columns))
    if case.to == "f16":
        pairs = np.stack([out & 0xFFFF, out >> 16], 1).reshape(-1, 128)
        got[rows, columns] = pairs.astype(np.uint16).view(np.float16)
    else:
        got[rows, columns] = out.view(storage)
    expected = case.scale_a * case.scale_b * (a @ b.T) + case.accumulate * before
    return got, expected


@pytest.mark.parametrize("columns", range(8, 257, 8))
def test_every_width(columns: int) -> None:
    got, expected = execute(Multiply(columns, accumulate=columns % 16 == 0))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("kind", "to"),
    [
        ("f16", "f32"),
        ("f16", "f16"),
        ("bf16", "f32"),
        ("tf32", "f32"),
        ("e4m3", "f32"),
        ("e5m2", "f32"),
        ("e4m3", "f16"),
        ("s8", "s32"),
        ("u8", "s32"),
    ],
)
@pytest.mark.parametrize("registers", [False, True])
@pytest.mark.parametrize("accumulate", [False, True])
def test_every_type(kind: str, to: str, registers: bool, accumulate: bool) -> None:
    got, expected = execute(Multiply(64, kind, to, registers=registers, accumulate=accumulate))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("a_major", [0, 1])
@pytest.mark.parametrize("b_major", [0, 1])
@pytest.mark.parametrize(("scale_a", "scale_b"), [(1, 1), (-1, 1), (1, -1), (-1, -1)])
def test_majors_and_scales(kind: str, a_major: int, b_major: int, scale_a: int, scale_b: int) -> None:
    case = Multiply(128, kind, a_major=a_major, b_major=b_major, scale_a=scale_a, scale_b=scale_b, accumulate=True)
    got, expected = execute(case)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("before", "kind"),
    [
        ("add.f32 %d3, %d3, 0f00000000;", "wgmma-fence"),
        ("mov.b32 %d3, 0;", "wgmma-fence"),
        ("@%p2 mov.b32 %d3, 0;", None),  # not executed: p2 is false
        ("mov.b32 %r5, %d3; mov.b32 %d3, %r5;", None),  # there and back: a copy, as compilers leave them
    ],
)
@pytest.mark.parametrize("seed", range(10))
def test_what_touches_accumulators_after_the_fence(before: str, kind: str | None, seed: int) -> None:
    case = Multiply(8, before=before)
    if kind is None:
        got, expected = execute(case, seed)
        np.testing.assert_array_equal(got, expected)
        return
    with pytest.raises(emulator.Fault) as caught:
        execute(case, seed)
    assert caught.value.finding.kind == kind


@pytest.mark.parametrize("seed", range(10))
def test_warps_must_agree_on_descriptors(seed: int) -> None:
    before = "setp.gt.u32 %p3, %r2, 31; @%p3 add.u64 %rd6, %rd6, 64;"
    with pytest.raises(emulator.Fault) as caught:
        execute(Multiply(8, before=before), seed)
    assert caught.value.finding.kind == "wgmma"
    assert "different descriptors" in caught.value.finding.message


@pytest.mark.parametrize("seed", range(10))
def test_a_warpgroup_needs_all_its_warps(seed: int) -> None:
    with pytest.raises(emulator.Fault) as caught:
        execute(Multiply(8, before="setp.gt.u32 %p3, %r2, 95; @%p3 exit;"), seed)
    assert caught.value.finding.kind == "deadlock"
    assert "for the other warps of its warpgroup" in caught.value.finding.message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("m64n8k16", "m64n12k16", "N is 12"),
        ("m64n8k16", "m64n8k8", "shape .m64n8k8 is not one of this type"),
        (", 1, 1, 0, 0;", ", 2, 1, 0, 0;", "a scale is 2, expected 1 or -1"),
        ("{%d0, %d1, %d2, %d3}", "{%d0, %d1, %d2}", "has 3 accumulators, expected 4"),
        (".f16.f16\n", ".f16.f64\n", "unknown operand type .f64"),
    ],
)
def test_bad_instructions_are_refused(old: str, new: str, message: str) -> None:
    text = Multiply(8).ptx()
    assert old in text
    with pytest.raises(emulator.PtxError) as caught:
        emulator.load(text.replace(old, new))
    assert message in str(caught.value)
