"""Loads, stores, spaces, atomics, cp.async and the matrix instructions, in small kernels."""

from __future__ import annotations

import pytest
import torch
from ptx_cases import kernel

from fastres import emulator


def run(ptx: str, *args: torch.Tensor, threads: int = 32, grid: int = 1, seed: int = 0) -> emulator.Report:
    report = emulator.load(ptx).launch("k", (grid,), (threads,), args, seed=seed)
    assert report.findings == ()
    return report


def test_vectors_and_extension() -> None:
    x = torch.arange(-64, 64, dtype=torch.int8)
    out = torch.zeros(32, 4, dtype=torch.int32)
    run(
        kernel("""
  mul.wide.u32 %rd1, %t, 4;
  add.u64 %rd2, %x, %rd1;
  ld.global.v4.s8 {%h0, %h1, %h2, %h3}, [%rd2];
  cvt.s32.s16 %r0, %h0; cvt.s32.s16 %r1, %h1; cvt.s32.s16 %r2, %h2; cvt.s32.s16 %r3, %h3;
  mul.wide.u32 %rd3, %t, 16;
  add.u64 %rd3, %rd3, %out;
  st.global.v4.b32 [%rd3], {%r0, %r1, %r2, %r3};"""),
        x,
        out,
    )
    assert torch.equal(out.flatten(), x.int())


@pytest.mark.parametrize(
    ("kind", "expected"), [("s8", -1), ("u8", 255), ("s16", -1), ("u16", 0xFFFF), ("b16", 0xFFFF), ("b8", 255)]
)
def test_narrow_loads_into_wide_registers(kind: str, expected: int) -> None:
    x, out = torch.full((4,), -1, dtype=torch.int16), torch.zeros(1, dtype=torch.int32)
    run(kernel(f"ld.global.{kind} %r0, [%x+2]; st.global.b32 [%out], %r0;"), x, out, threads=1)
    assert out.item() == expected


def test_spaces_through_generic_addresses() -> None:
    """The same store and load through .shared, .local, .const and generic addresses."""
    out = torch.zeros(32, dtype=torch.int32)
    ptx = kernel(
        """
  .shared .align 4 .b32 s[32];
  .local .align 4 .b32 l[4];
  mov.u32 %r0, s;
  shl.b32 %r1, %t, 2;
  add.u32 %r0, %r0, %r1;
  st.shared.b32 [%r0], %t;
  cvt.u64.u32 %rd0, %r0;
  cvta.shared.u64 %rd1, %rd0;
  ld.b32 %r2, [%rd1];
  isspacep.shared %p0, %rd1;
  @!%p0 trap;
  cvta.to.shared.u64 %rd2, %rd1;
  setp.ne.u64 %p1, %rd2, %rd0;
  @%p1 trap;
  mov.u64 %rd3, l;
  cvta.local.u64 %rd4, %rd3;
  st.b32 [%rd4+8], %r2;
  ld.local.b32 %r3, [l+8];
  mov.u64 %rd5, table;
  and.b32 %r4, %t, 3;
  mul.wide.u32 %rd6, %r4, 4;
  add.u64 %rd5, %rd5, %rd6;
  ld.const.b32 %r5, [%rd5];
  add.u32 %r3, %r3, %r5;
  mul.wide.u32 %rd7, %t, 4;
  add.u64 %rd7, %rd7, %out;
  st.global.b32 [%rd7], %r3;""",
        "out",
        declare=".const .align 4 .b32 table[4] = {100, 200, 300, 400};",
    )
    run(ptx, out)
    assert out.tolist() == [lane + 100 * (lane % 4 + 1) for lane in range(32)]


def test_globals_live_as_long_as_the_module() -> None:
    module = emulator.load(
        kernel(
            "mov.u64 %rd0, counter; atom.global.add.u32 %r0, [%rd0], 2; st.global.b32 [%out], %r0;",
            "out",
            declare=".global .align 4 .u32 counter = 5;",
        )
    )
    out = torch.zeros(1, dtype=torch.int32)
    seen = []
    for _ in range(3):
        module.launch("k", (1,), (1,), [out])
        seen.append(out.item())
    assert seen == [5, 7, 9]


@pytest.mark.parametrize(
    ("operation", "start", "result"),
    [
        ("add.u32", 7, 7 + sum(range(32))),
        ("min.s32", 7, 0),
        ("max.u32", 7, 31),
        ("and.b32", 0x7F, 0),
        ("or.b32", 64, 64 + 31),
        ("xor.b32", 1, 1),
    ],
)
def test_atomics(operation: str, start: int, result: int) -> None:
    x = torch.tensor([start], dtype=torch.int32)
    run(kernel(f"red.global.{operation} [%x], %t;", "x"), x)
    assert x.item() == result


def test_atomics_that_return() -> None:
    counter, out = torch.tensor([0], dtype=torch.int32), torch.zeros(64, dtype=torch.int32)
    body = "atom.global.inc.u32 %r0, [%x], 20; mul.wide.u32 %rd0, %r0, 4; add.u64 %rd0, %rd0, %out;"
    run(kernel(body + "atom.global.add.u32 %r1, [%rd0], 1;"), counter, out, threads=64)
    assert out[:21].sum() == 64  # 0 to 20 and around
    assert counter.item() == 64 % 21


def test_compare_and_swap_lock() -> None:
    """Increment by a loop around cas: lanes of one warp that fail try again."""
    x = torch.zeros(1, dtype=torch.int32)
    body = """
  LOOP: ld.volatile.global.b32 %r0, [%x];
  add.u32 %r1, %r0, 3;
  atom.global.cas.b32 %r2, [%x], %r0, %r1;
  setp.ne.u32 %p0, %r2, %r0;
  @%p0 bra LOOP;"""
    run(kernel(body, "x"), x, threads=96, grid=3)
    assert x.item() == 3 * 96 * 3


@pytest.mark.parametrize(("kind", "dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_atomic_add_of_halves(kind: str, dtype: torch.dtype) -> None:
    x = torch.zeros(2, dtype=dtype)
    one = {"f16": 0x3C00, "bf16": 0x3F80}[kind]
    run(kernel(f"mov.b32 %r0, {one | one << 16 + 0}; red.global.add.noftz.{kind}x2 [%x], %r0;", "x"), x)
    assert x.tolist() == [32.0, 32.0]


def test_atomic_add_of_floats_in_shared_memory() -> None:
    out = torch.zeros(1)
    body = """
  .shared .align 4 .f32 s;
  mov.f32 %f0, 0f00000000;
  setp.eq.u32 %p0, %t, 0;
  @%p0 st.shared.f32 [s], %f0;
  bar.sync 0;
  cvt.rn.f32.u32 %f1, %t;
  atom.shared.add.f32 %f2, [s], %f1;
  bar.sync 0;
  ld.shared.f32 %f3, [s];
  @%p0 st.global.f32 [%out], %f3;"""
    for seed in range(5):
        run(kernel(body, "out"), out, threads=128, seed=seed)
        assert out.item() == sum(range(128))


def test_barrier_reductions() -> None:
    out = torch.zeros(3, dtype=torch.int32)
    body = """
  setp.lt.u32 %p0, %t, 50;
  bar.red.popc.u32 %r0, 0, %p0;
  bar.red.and.pred %p1, 1, %p0;
  bar.red.or.pred %p2, 2, !%p0;
  selp.b32 %r1, 1, 0, %p1;
  selp.b32 %r2, 1, 0, %p2;
  setp.eq.u32 %p3, %t, 77;
  @!%p3 bra END;
  st.global.b32 [%out], %r0; st.global.b32 [%out+4], %r1; st.global.b32 [%out+8], %r2;
  END:"""
    for seed in range(5):
        run(kernel(body, "out"), out, threads=128, seed=seed)
        assert out.tolist() == [50, 0, 1]


def test_producers_arrive_and_consumers_wait() -> None:
    """Warp 0 fills the buffer and arrives at a named barrier of 64 threads; warp 1 waits there."""
    out = torch.zeros(32, dtype=torch.int32)
    body = """
  .shared .align 4 .b32 s[32];
  and.b32 %r0, %t, 31;
  shl.b32 %r1, %r0, 2;
  mov.u32 %r2, s;
  add.u32 %r2, %r2, %r1;
  setp.ge.u32 %p0, %t, 32;
  @%p0 bra CONSUMER;
  mul.lo.u32 %r3, %r0, 3;
  st.shared.b32 [%r2], %r3;
  bar.arrive 3, 64;
  bra END;
  CONSUMER:
  bar.sync 3, 64;
  ld.shared.b32 %r4, [%r2];
  mul.wide.u32 %rd0, %r0, 4;
  add.u64 %rd0, %rd0, %out;
  st.global.b32 [%rd0], %r4;
  END:"""
    for seed in range(10):
        run(kernel(body, "out"), out, threads=64, seed=seed)
        assert out.tolist() == [3 * lane for lane in range(32)]


@pytest.mark.parametrize("trans", [False, True])
def test_ldmatrix_and_stmatrix(trans: bool) -> None:
    """x4: 8x8 tiles of b16; stmatrix writes back what ldmatrix read."""
    x = torch.arange(256, dtype=torch.int16)
    out, back = torch.zeros(32, 4, 2, dtype=torch.int16), torch.zeros(256, dtype=torch.int16)
    t = ".trans" if trans else ""
    body = f"""
  .shared .align 16 .b8 s[512];
  mul.wide.u32 %rd0, %t, 16;
  add.u64 %rd1, %rd0, %x;
  ld.global.v4.b32 {{%r0, %r1, %r2, %r3}}, [%rd1];
  shl.b32 %r4, %t, 4;
  mov.u32 %r5, s;
  add.u32 %r5, %r5, %r4;
  st.shared.v4.b32 [%r5], {{%r0, %r1, %r2, %r3}};
  bar.warp.sync -1;
  ldmatrix.sync.aligned.m8n8.x4{t}.shared.b16 {{%r6, %r7, %r8, %r9}}, [%r5];
  add.u64 %rd2, %rd0, %out;
  st.global.v4.b32 [%rd2], {{%r6, %r7, %r8, %r9}};
  bar.warp.sync -1;
  stmatrix.sync.aligned.m8n8.x4{t}.shared.b16 [%r5], {{%r6, %r7, %r8, %r9}};
  bar.warp.sync -1;
  ld.shared.v4.b32 {{%r0, %r1, %r2, %r3}}, [%r5];
  add.u64 %rd3, %rd0, %back;
  st.global.v4.b32 [%rd3], {{%r0, %r1, %r2, %r3}};"""
    run(kernel(body, "x out back", target="sm_90"), x, out, back)
    tiles = x.view(4, 8, 8)
    if trans:
        tiles = tiles.transpose(1, 2)
    # Lane l holds row l / 4, columns 2 * (l % 4) and the next, of each tile.
    expected = tiles.reshape(4, 8, 4, 2).permute(1, 2, 0, 3).reshape(32, 4, 2)
    assert torch.equal(out, expected)
    assert torch.equal(back, x)


def test_movmatrix_transposes() -> None:
    x, out = torch.arange(64, dtype=torch.int16), torch.zeros(64, dtype=torch.int16)
    body = """
  mul.wide.u32 %rd0, %t, 4;
  add.u64 %rd1, %rd0, %x;
  ld.global.b32 %r0, [%rd1];
  movmatrix.sync.aligned.m8n8.trans.b16 %r1, %r0;
  add.u64 %rd2, %rd0, %out;
  st.global.b32 [%rd2], %r1;"""
    run(kernel(body), x, out)
    assert torch.equal(out.view(8, 8), x.view(8, 8).T)


def test_mma() -> None:
    """m16n8k16, fragments loaded by the layouts of the PTX ISA."""
    a, b = torch.randn(16, 16).bfloat16(), torch.randn(16, 8).bfloat16()
    lane = torch.arange(32)
    g, t = lane // 4, lane % 4
    columns = torch.stack([2 * t, 2 * t + 1], -1)
    fragments = [a[(g + dr)[:, None], columns + dc] for dc in (0, 8) for dr in (0, 8)]
    a_registers = torch.stack(fragments, 1).contiguous()  # lane, register, half
    b_registers = torch.stack([b[columns + dr, g[:, None]] for dr in (0, 8)], 1).contiguous()
    out = torch.zeros(32, 4)
    body = """
  mul.wide.u32 %rd0, %t, 16;
  mul.wide.u32 %rd1, %t, 8;
  add.u64 %rd2, %a, %rd0;
  add.u64 %rd3, %b, %rd1;
  add.u64 %rd4, %out, %rd0;
  ld.global.v4.b32 {%r0, %r1, %r2, %r3}, [%rd2];
  ld.global.v2.b32 {%r4, %r5}, [%rd3];
  mov.f32 %f0, 0f3F800000;
  mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1, %f2, %f3, %f4}, {%r0, %r1, %r2, %r3}, {%r4, %r5},
    {%f0, %f0, %f0, %f0};
  st.global.v4.f32 [%rd4], {%f1, %f2, %f3, %f4};"""
    report = run(kernel(body, "a b out"), a_registers, b_registers, out)
    d = a.double() @ b.double() + 1
    expected = torch.stack([d[g, 2 * t], d[g, 2 * t + 1], d[g + 8, 2 * t], d[g + 8, 2 * t + 1]], 1)
    assert report.macs == 16 * 8 * 16
    torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=1e-5)
