"""A first kernel through the whole emulator: parse, decode, launch, check, count."""

from __future__ import annotations

import pytest
import torch

from fastres import emulator

PTX = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry add(.param .u64 a, .param .u64 b, .param .u64 c, .param .u32 n)
{
  .reg .pred %p<2>;
  .reg .f32 %f<4>;
  .reg .b32 %r<6>;
  .reg .b64 %rd<8>;
  .loc 1 7 3
  ld.param.u64 %rd1, [a];
  ld.param.u64 %rd2, [b];
  ld.param.u64 %rd3, [c];
  ld.param.u32 %r1, [n];
  mov.u32 %r2, %ctaid.x;
  mov.u32 %r3, %ntid.x;
  mov.u32 %r4, %tid.x;
  mad.lo.s32 %r5, %r2, %r3, %r4;
  setp.ge.s32 %p1, %r5, %r1;
  @%p1 bra DONE;
  mul.wide.s32 %rd4, %r5, 4;
  add.s64 %rd5, %rd1, %rd4;
  add.s64 %rd6, %rd2, %rd4;
  add.s64 %rd7, %rd3, %rd4;
  ld.global.f32 %f1, [%rd5];
  ld.global.f32 %f2, [%rd6];
  add.rn.f32 %f3, %f1, %f2;
  st.global.f32 [%rd7], %f3;
DONE:
  ret;
}
.file 1 "add.cu"
"""


def test_adds_and_counts() -> None:
    a, b = torch.randn(1000), torch.randn(1000)
    c = torch.full((1000,), float("nan"))
    report = emulator.load(PTX).launch("add", (8,), (128,), [a, b, emulator.Fresh(c), 1000])
    assert torch.equal(c, a + b)
    assert report.findings == ()
    assert report.instructions["add.rn.f32"] == 32  # 1000 threads are 31.25 warps
    assert report.traffic["global"] == emulator.Traffic(8000, 8000, 4000, 4000)
    assert "0 findings" in str(report)


def test_reports_like_a_sanitizer() -> None:
    a, b, c = torch.randn(1000), torch.randn(1000), torch.randn(1000)
    with pytest.raises(emulator.Fault) as caught:
        emulator.load(PTX).launch("add", (8,), (128,), [a, b, c, 1001])
    finding = caught.value.finding
    assert finding.kind == "out-of-bounds"
    assert finding.block == (7, 0, 0)
    assert finding.thread == (104, 0, 0)
    assert finding.ptx == "ld.global.f32 %f1, [%rd5];"
    assert finding.source == "add.cu:7"
    assert finding.address == a.data_ptr() + 4000
    assert "0 bytes past its end" in finding.expected


def test_names_what_it_does_not_know() -> None:
    with pytest.raises(emulator.PtxError, match=r"line 26.*'tex\.2d\.v4\.f32\.f32'.*unknown instruction"):
        emulator.load(PTX.replace("ld.global.f32 %f1, [%rd5]", "tex.2d.v4.f32.f32 %f1, [%rd5]"))
    with pytest.raises(emulator.PtxError, match=r"unknown modifier '\.bogus'"):
        emulator.load(PTX.replace("add.rn.f32", "add.rn.bogus.f32"))
    with pytest.raises(emulator.PtxError, match="no kernel 'sub' in this module, which has: add"):
        emulator.load(PTX).launch("sub", (1,), (1,), [])


def test_arguments_must_fit() -> None:
    module = emulator.load(PTX)
    a = torch.zeros(4)
    with pytest.raises(TypeError, match="takes 4 arguments, got 2"):
        module.launch("add", (1,), (32,), [a, a])
    with pytest.raises(TypeError, match=r"args\[3\] is a float"):
        module.launch("add", (1,), (32,), [a, a, a, 4.0])
    with pytest.raises(ValueError, match="grid is"):
        module.launch("add", (0,), (32,), [a, a, a, 4])
    with pytest.raises(emulator.PtxError, match="expected 1 to 1024 threads"):
        module.launch("add", (1,), (2048,), [a, a, a, 4])
