"""Deliberately broken kernels: each must be caught under every seed, and the sound kernel under none."""

from __future__ import annotations

import pytest
import torch
from ptx_cases import kernel

from fastres import emulator

SEEDS = range(10)

# Threads reverse a block of numbers through shared memory, twice over the same buffer.
REVERSE = """
  .shared .align 16 .b32 s[128];
  mul.wide.u32 %rd0, %t, 4;
  add.u64 %rd1, %x, %rd0;
  add.u64 %rd2, %out, %rd0;
  mov.u32 %r0, s;
  shl.b32 %r1, %t, 2;
  add.u32 %r2, %r0, %r1;
  sub.u32 %r3, 508, %r1;
  add.u32 %r3, %r3, %r0;
  mov.u32 %r4, 0;
  LOOP:
  ld.global.b32 %r5, [%rd1];
  st.shared.b32 [%r2], %r5;
  bar.sync 0; // full
  ld.shared.b32 %r6, [%r3];
  bar.sync 0; // empty
  st.global.b32 [%rd2], %r6;
  add.u64 %rd1, %rd1, 512;
  add.u64 %rd2, %rd2, 512;
  add.u32 %r4, %r4, 1;
  setp.lt.u32 %p0, %r4, 3;
  @%p0 bra LOOP;
"""

# A double-buffered copy of four tiles of 2 KiB; each thread sums 16 bytes that another thread copied.
PIPELINE = """
  .shared .align 16 .b8 buf[4096];
  mul.wide.u32 %rd0, %t, 16;
  add.u64 %rd1, %x, %rd0;
  shl.b32 %r0, %t, 4;
  mov.u32 %r1, buf;
  add.u32 %r2, %r1, %r0;
  add.u32 %r3, %t, 37;
  and.b32 %r3, %r3, 127;
  shl.b32 %r3, %r3, 4;
  add.u32 %r3, %r3, %r1;
  mov.f32 %f0, 0f00000000;
  mov.u32 %r4, 0;
  cp.async.cg.shared.global [%r2], [%rd1], 16;
  cp.async.commit_group; // first
  LOOP:
  and.b32 %r5, %r4, 1;
  shl.b32 %r5, %r5, 11;
  xor.b32 %r6, %r5, 2048;
  add.u32 %r7, %r2, %r6;
  add.u64 %rd1, %rd1, 2048;
  setp.lt.u32 %p0, %r4, 3;
  @%p0 cp.async.cg.shared.global [%r7], [%rd1], 16;
  cp.async.commit_group; // next
  cp.async.wait_group 1;
  bar.sync 0; // full
  add.u32 %r8, %r3, %r5;
  ld.shared.v4.f32 {%f1, %f2, %f3, %f4}, [%r8];
  bar.sync 0; // empty
  add.f32 %f0, %f0, %f1; add.f32 %f0, %f0, %f2; add.f32 %f0, %f0, %f3; add.f32 %f0, %f0, %f4;
  add.u32 %r4, %r4, 1;
  setp.lt.u32 %p0, %r4, 4;
  @%p0 bra LOOP;
  mul.wide.u32 %rd2, %t, 4;
  add.u64 %rd2, %rd2, %out;
  st.global.f32 [%rd2], %f0;
"""


def mutate(body: str, old: str, new: str) -> str:
    assert body.count(old) == 1, (old, body.count(old))
    return body.replace(old, new)


def launch(body: str, *args: torch.Tensor | emulator.Fresh, threads: int = 128, grid: int = 1, seed: int = 0) -> None:
    params = " ".join(("x", "out", "flag")[: len(args)])
    emulator.load(kernel(body, params)).launch("k", (grid,), (threads,), args, seed=seed, limit=200_000)


def caught(body: str, *args: torch.Tensor | emulator.Fresh, seed: int, threads: int = 128, grid: int = 1) -> str:
    with pytest.raises(emulator.Fault) as fault:
        launch(body, *args, threads=threads, grid=grid, seed=seed)
    finding = fault.value.finding
    assert finding.message
    assert finding.expected
    assert finding.ptx_line > 0
    return finding.kind


@pytest.mark.parametrize("seed", SEEDS)
def test_sound_kernels_are_clean(seed: int) -> None:
    x, out = torch.arange(384, dtype=torch.int32), torch.zeros(384, dtype=torch.int32)
    launch(REVERSE, x, emulator.Fresh(out), seed=seed)
    assert torch.equal(out.view(3, 128), x.view(3, 128).flip(1))
    y, sums = torch.randn(4, 128, 4), torch.zeros(128)
    launch(PIPELINE, y, emulator.Fresh(sums), seed=seed)
    torch.testing.assert_close(sums, y.roll(-37, 1).sum((0, 2)))


SHARED_MUTANTS = {
    "no full barrier": (REVERSE, "bar.sync 0; // full", "", {"race", "uninitialized"}),
    "no empty barrier": (REVERSE, "bar.sync 0; // empty", "", {"race"}),
    "barrier in divergent code": (
        REVERSE,
        "bar.sync 0; // full",
        "setp.lt.u32 %p1, %t, 16; @%p1 bar.sync 0;",
        {"deadlock", "race", "uninitialized"},
    ),
    "one warp at another barrier": (
        REVERSE,
        "bar.sync 0; // full",
        "setp.lt.u32 %p1, %t, 32; @%p1 bar.sync 1; @!%p1 bar.sync 0;",
        {"deadlock"},
    ),
    "count that doesn't match": (
        REVERSE,
        "bar.sync 0; // full",
        "setp.lt.u32 %p1, %t, 32; @%p1 bar.sync 0, 64; @!%p1 bar.sync 0;",
        {"barrier"},
    ),
    "half the threads write": (
        REVERSE,
        "st.shared.b32 [%r2], %r5;",
        "setp.lt.u32 %p1, %t, 64; @%p1 st.shared.b32 [%r2], %r5;",
        {"uninitialized"},
    ),
    "shared out of bounds": (REVERSE, "sub.u32 %r3, 508, %r1;", "sub.u32 %r3, 512, %r1;", {"out-of-bounds"}),
    "misaligned": (REVERSE, "sub.u32 %r3, 508, %r1;", "sub.u32 %r3, 506, %r1;", {"misaligned"}),
    "global out of bounds": (REVERSE, "setp.lt.u32 %p0, %r4, 3;", "setp.lt.u32 %p0, %r4, 4;", {"out-of-bounds"}),
    "all threads write one word": (REVERSE, "st.shared.b32 [%r2], %r5;", "st.shared.b32 [%r0], %r5;", {"race"}),
    "no wait": (PIPELINE, "cp.async.wait_group 1;", "", {"async-copy"}),
    "wait for too few": (PIPELINE, "cp.async.wait_group 1;", "cp.async.wait_group 2;", {"async-copy"}),
    "wait after the barrier": (
        PIPELINE,
        "cp.async.wait_group 1;\n  bar.sync 0; // full",
        "bar.sync 0;\n  cp.async.wait_group 1;",
        {"async-copy", "race"},
    ),
    "no commit": (PIPELINE, "cp.async.commit_group; // first", "", {"async-copy"}),
    "no full barrier after the wait": (PIPELINE, "bar.sync 0; // full", "", {"race", "async-copy", "uninitialized"}),
    "buffer refilled too early": (PIPELINE, "bar.sync 0; // empty", "", {"race"}),
    "copies the wrong size": (PIPELINE, "[%r7], [%rd1], 16;", "[%r7], [%rd1], 16, 20;", {"operand"}),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", SHARED_MUTANTS)
def test_mutants_are_caught(name: str, seed: int) -> None:
    body, old, new, kinds = SHARED_MUTANTS[name]
    if body is REVERSE:
        x = torch.arange(384, dtype=torch.int32)
        out = torch.zeros(384, dtype=torch.int32)
    else:
        x, out = torch.randn(4, 128, 4), torch.zeros(128)
    assert caught(mutate(body, old, new), x, out, seed=seed) in kinds


def test_reads_of_fresh_memory() -> None:
    x, out = torch.zeros(384, dtype=torch.int32), torch.zeros(384, dtype=torch.int32)
    for seed in SEEDS:
        assert caught(REVERSE, emulator.Fresh(x), out, seed=seed) == "uninitialized"


# Each block writes 128 numbers; the flag handshake lets block 1 read block 0's.
HANDOFF = """
  mov.u32 %r0, %ctaid.x;
  setp.ne.u32 %p0, %r0, 0;
  mul.wide.u32 %rd0, %t, 4;
  add.u64 %rd1, %x, %rd0;
  add.u64 %rd2, %out, %rd0;
  setp.eq.u32 %p1, %t, 0;
  @%p0 bra READER;
  st.global.b32 [%rd1], %t;
  bar.sync 0;
  membar.gl; // writer
  @%p1 atom.global.exch.b32 %r1, [%flag], 1;
  bra END;
  READER:
  @!%p1 bra JOIN;
  WAIT:
  ld.volatile.global.b32 %r2, [%flag];
  setp.eq.u32 %p2, %r2, 0;
  @%p2 bra WAIT;
  JOIN:
  membar.gl; // reader
  bar.sync 0;
  ld.global.b32 %r3, [%rd1];
  st.global.b32 [%rd2], %r3;
  END:
"""


@pytest.mark.parametrize("seed", SEEDS)
def test_handoff_between_blocks(seed: int) -> None:
    def tensors() -> list[torch.Tensor]:
        return [torch.zeros(128, dtype=torch.int32) for _ in range(3)]

    x, out, flag = tensors()
    launch(HANDOFF, x, out, flag, grid=2, seed=seed)
    assert out.tolist() == list(range(128))
    assert caught(mutate(HANDOFF, "membar.gl; // writer", ""), *tensors(), grid=2, seed=seed) == "race"
    assert caught(mutate(HANDOFF, "membar.gl; // reader", ""), *tensors(), grid=2, seed=seed) == "race"
    overlap = mutate(HANDOFF, "@%p0 bra READER;", "")
    assert caught(overlap, *tensors(), grid=2, seed=seed) == "race"


def test_warps_share_global_memory_only_across_a_barrier() -> None:
    body = """
  xor.b32 %r0, %t, 32;
  mul.wide.u32 %rd0, %t, 4;
  mul.wide.u32 %rd1, %r0, 4;
  add.u64 %rd0, %rd0, %x;
  add.u64 %rd1, %rd1, %x;
  st.global.b32 [%rd0], %t;
  bar.sync 0; // full
  ld.global.b32 %r1, [%rd1];
  bar.sync 0; // empty
  st.global.b32 [%rd0], %r1;"""
    for seed in SEEDS:
        x = torch.zeros(64, dtype=torch.int32)
        launch(body, x, threads=64, seed=seed)
        assert x.tolist() == [lane ^ 32 for lane in range(64)]
        assert caught(mutate(body, "bar.sync 0; // full", ""), x, threads=64, seed=seed) == "race"
        assert caught(mutate(body, "bar.sync 0; // empty", ""), x, threads=64, seed=seed) == "race"


def test_warps_that_write_one_value() -> None:
    body = ".shared .align 4 .b32 s[1]; mov.u32 %r0, s; mov.u32 %r1, 7; st.shared.b32 [%r0], %r1;"
    for seed in SEEDS:
        assert caught(body, torch.zeros(1), threads=64, seed=seed) == "same-value"
        assert caught(mutate(body, "mov.u32 %r1, 7;", "shr.u32 %r1, %t, 5;"), torch.zeros(1), seed=seed) == "race"


def test_lanes_share_memory_only_across_a_warp_barrier() -> None:
    body = """
  .shared .align 4 .b32 s[32];
  mov.u32 %r0, s;
  shl.b32 %r1, %t, 2;
  add.u32 %r2, %r0, %r1;
  xor.b32 %r3, %r1, 4;
  add.u32 %r3, %r3, %r0;
  st.shared.b32 [%r2], %t;
  bar.warp.sync -1;
  ld.shared.b32 %r4, [%r3];"""
    for seed in SEEDS:
        launch(body, torch.zeros(1), threads=32, seed=seed)
        assert caught(mutate(body, "bar.warp.sync -1;", ""), torch.zeros(1), threads=32, seed=seed) == "race"


ALONE = {
    "trap": ("trap;", "trap"),
    "endless": ("LOOP: bra LOOP;", "endless"),
    "read past the parameters": ("mov.u64 %rd0, p_x; ld.param.b32 %r0, [%rd0+64];", "out-of-bounds"),
    "null": ("mov.u64 %rd0, 0; ld.global.b32 %r0, [%rd0];", "out-of-bounds"),
    "shared address as global": (
        ".shared .align 4 .b32 s; mov.u32 %r0, s; cvt.u64.u32 %rd0, %r0; st.global.b32 [%rd0], %r0;",
        "out-of-bounds",
    ),
    "shuffle from a lane that left": (
        "setp.ge.u32 %p0, %t, 16; @%p0 bra END; shfl.sync.bfly.b32 %r0, %t, 16, 31, 0xFFFF; END:",
        "inactive-lane",
    ),
    "lane not in its mask": ("shfl.sync.bfly.b32 %r0, %t, 1, 31, 0xFFFF;", "membermask"),
    "lanes at different shuffles": (
        "setp.ge.u32 %p0, %t, 16; @%p0 bra HIGH; shfl.sync.bfly.b32 %r0, %t, 1, 31, -1; bra END;"
        " HIGH: shfl.sync.bfly.b32 %r0, %t, 1, 31, -1; END:",
        "deadlock",
    ),
    "local out of bounds": (".local .align 4 .b32 l[4]; st.local.b32 [l+16], %t;", "out-of-bounds"),
    "ldmatrix row of no tile": (
        ".shared .align 16 .b8 s[512]; mov.u32 %r0, s; shl.b32 %r1, %t, 5; add.u32 %r0, %r0, %r1;"
        " ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r2, %r3, %r4, %r5}, [%r0];",
        "uninitialized",
    ),
    "ldmatrix row not of 16 bytes": (
        ".shared .align 16 .b8 s[512]; mov.u32 %r0, s; shl.b32 %r1, %t, 3; add.u32 %r0, %r0, %r1;"
        " ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r2, %r3, %r4, %r5}, [%r0];",
        "uninitialized",
    ),
}


@pytest.mark.parametrize("name", ALONE)
def test_single_faults(name: str) -> None:
    body, kind = ALONE[name]
    for seed in SEEDS:
        assert caught(body, torch.zeros(1), seed=seed, threads=32) == kind


def test_write_to_constant_memory() -> None:
    ptx = kernel("mov.u64 %rd0, c; st.global.b32 [%rd0], %t;", "x", declare=".const .align 4 .b32 c = 1;")
    with pytest.raises(emulator.Fault, match="read-only"):
        emulator.load(ptx).launch("k", (1,), (1,), [torch.zeros(1)])


def test_deadlock_names_who_waits() -> None:
    body = "setp.lt.u32 %p1, %t, 32; @%p1 bar.sync 1; @!%p1 bar.sync 0;"
    with pytest.raises(emulator.Fault) as fault:
        launch(body, torch.zeros(1), threads=64)
    text = str(fault.value)
    assert "warp 0 waits at line" in text
    assert "on barrier 1, where 32 of 64 threads have arrived" in text
    assert "on barrier 0, where 32 of 64 threads have arrived" in text


def test_lenient_launch_collects() -> None:
    x, out = torch.arange(384, dtype=torch.int32), torch.zeros(384, dtype=torch.int32)
    broken = mutate(REVERSE, "bar.sync 0; // empty", "")
    broken = mutate(broken, "sub.u32 %r3, 508, %r1;", "sub.u32 %r3, 506, %r1;")
    report = emulator.load(kernel(broken)).launch("k", (1,), (128,), [x, out], strict=False)
    assert "misaligned" in {finding.kind for finding in report.findings}
    assert all(finding.count > 1 for finding in report.findings if finding.kind == "misaligned")
    assert f"{len(report.findings)} finding" in str(report)
