"""Floating-point arithmetic, comparison and selection against the PTX ISA."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest
from ptx_cases import INF, NAN, Case, emulate, run_on_hardware

TINY = 2.0**-140  # subnormal in f32


def f32(x: float) -> float:
    return struct.unpack("<f", struct.pack("<f", x))[0]


def same(opcode: str, kind: str, rows: list[tuple[tuple[Any, ...], Any]]) -> Case:
    """Sources and destination of one type."""
    sources = ", ".join("{" + name + "}" for name in "abc"[: len(rows[0][0])])
    return Case(f"{opcode} {{d}}, {sources};", kind, (kind,) * len(rows[0][0]), rows)


ULP = 2.0**-23
BF16_ULP = 2.0**-7

ARITHMETIC = [
    same("add.f32", "f32", [((1.0, 2.0), 3.0), ((INF, -INF), NAN), ((TINY, TINY), 2 * TINY), ((1.0, ULP / 2), 1.0)]),
    same("add.rn.f32", "f32", [((1.0, 1.5 * ULP), 1.0 + 2 * ULP)]),
    same("add.rz.f32", "f32", [((1.0, 1.5 * ULP), 1.0 + ULP), ((-1.0, -1.5 * ULP), -1.0 - ULP)]),
    same("add.rm.f32", "f32", [((1.0, 1.5 * ULP), 1.0 + ULP), ((-1.0, -1.5 * ULP), -1.0 - 2 * ULP)]),
    same("add.rp.f32", "f32", [((1.0, 0.1 * ULP), 1.0 + ULP), ((-1.0, -1.5 * ULP), -1.0 - ULP)]),
    same("add.ftz.f32", "f32", [((TINY, 1.0), 1.0), ((TINY, TINY), 0.0)]),
    same("add.sat.f32", "f32", [((0.75, 0.75), 1.0), ((-1.0, 0.5), 0.0), ((NAN, 1.0), 0.0)]),
    same("add.f64", "f64", [((1.0, 2.0**-52), 1.0 + 2.0**-52)]),
    same("sub.f32", "f32", [((1.0, 2.0), -1.0), ((0.0, 0.0), 0.0)]),
    same("mul.f32", "f32", [((3.0, 5.0), 15.0), ((INF, 0.0), NAN), ((-0.0, 3.0), -0.0)]),
    same("mul.rz.f32", "f32", [((1 + ULP, 1 + ULP), 1 + 2 * ULP)]),
    same("mul.rp.f32", "f32", [((1 + ULP, 1 + ULP), 1 + 3 * ULP)]),
    same("fma.rn.f32", "f32", [((1 + ULP, 1 + ULP, -(1 + 2 * ULP)), ULP * ULP), ((2.0, 3.0, 4.0), 10.0)]),
    same("fma.rz.f32", "f32", [((1.0, 1.0, 1.5 * ULP), 1.0 + ULP)]),
    same("fma.rn.f64", "f64", [((2.0, 3.0, 4.0), 10.0)]),
    same("mad.rn.f32", "f32", [((2.0, 3.0, 4.0), 10.0)]),
    same("div.rn.f32", "f32", [((1.0, 3.0), f32(1 / 3)), ((1.0, 0.0), INF), ((0.0, 0.0), NAN)]),
    same("div.rn.f64", "f64", [((1.0, 3.0), 1 / 3)]),
    same("min.f32", "f32", [((1.0, 2.0), 1.0), ((NAN, 2.0), 2.0), ((0.0, -0.0), -0.0), ((NAN, NAN), NAN)]),
    same("max.f32", "f32", [((1.0, 2.0), 2.0), ((1.0, NAN), 1.0), ((-0.0, 0.0), 0.0)]),
    same("max.NaN.f32", "f32", [((1.0, NAN), NAN), ((NAN, 0.0), NAN), ((-1.0, 0.0), 0.0)]),
    same("min.NaN.f32", "f32", [((NAN, 1.0), NAN), ((3.0, 1.0), 1.0)]),
    same("abs.f32", "f32", [((-3.0,), 3.0), ((-0.0,), 0.0)]),
    same("neg.f32", "f32", [((3.0,), -3.0), ((0.0,), -0.0)]),
    same("neg.ftz.f32", "f32", [((TINY,), -0.0)]),
    same("copysign.f32", "f32", [((-1.0, 3.0), -3.0), ((1.0, -3.0), 3.0)]),
    same("rcp.rn.f32", "f32", [((4.0,), 0.25), ((3.0,), f32(1 / 3)), ((-0.0,), -INF)]),
    same("sqrt.rn.f32", "f32", [((2.0,), f32(math.sqrt(2))), ((-1.0,), NAN)]),
    same("sqrt.rn.f64", "f64", [((2.0,), math.sqrt(2))]),
    same("ex2.approx.f32", "f32", [((3.0,), 8.0), ((-INF,), 0.0)]),
    same("lg2.approx.f32", "f32", [((8.0,), 3.0), ((0.0,), -INF)]),
    same("rsqrt.approx.f32", "f32", [((0.25,), 2.0), ((0.0,), INF)]),
    same("sin.approx.f32", "f32", [((0.0,), 0.0)]),
    same("cos.approx.f32", "f32", [((0.0,), 1.0)]),
    same("tanh.approx.f32", "f32", [((0.0,), 0.0)]),
    same("add.f16", "f16", [((1.0, 2.0**-11), 1.0), ((1.0, 3 * 2.0**-11), 1 + 2.0**-9), ((60000.0, 60000.0), INF)]),
    same("sub.f16", "f16", [((1.0, 3.0), -2.0)]),
    same("mul.f16", "f16", [((3.0, 5.0), 15.0)]),
    same("fma.rn.f16", "f16", [((1 + 2.0**-10, 1 + 2.0**-10, -1.0), 2.0**-9 + 2.0**-20)]),
    same("fma.rn.relu.f16", "f16", [((1.0, -1.0, 0.5), 0.0), ((1.0, 1.0, 0.5), 1.5), ((NAN, 1.0, 0.5), NAN)]),
    same("fma.rn.sat.f16", "f16", [((1.0, 2.0, 0.5), 1.0), ((-1.0, 2.0, 0.5), 0.0)]),
    same("add.f16x2", "f16x2", [(((1.0, 2.0), (3.0, 4.0)), (4.0, 6.0))]),
    same("fma.rn.f16x2", "f16x2", [(((1.0, 2.0), (3.0, 4.0), (5.0, 6.0)), (8.0, 14.0))]),
    same("max.f16x2", "f16x2", [(((1.0, NAN), (3.0, 4.0)), (3.0, 4.0))]),
    same("max.NaN.f16x2", "f16x2", [(((1.0, NAN), (3.0, 4.0)), (3.0, NAN))]),
    same("min.f16", "f16", [((1.0, -1.0), -1.0)]),
    same("neg.f16x2", "f16x2", [(((1.0, -2.0),), (-1.0, 2.0))]),
    same("abs.bf16x2", "bf16x2", [(((-1.0, 2.0),), (1.0, 2.0))]),
    same("fma.rn.bf16", "bf16", [((1 + BF16_ULP, 1 + BF16_ULP, -1.0), 2 * BF16_ULP + BF16_ULP**2)]),
    same("fma.rn.bf16x2", "bf16x2", [(((1.0, 2.0), (3.0, 4.0), (5.0, 6.0)), (8.0, 14.0))]),
    same("fma.rn.relu.bf16x2", "bf16x2", [(((1.0, -2.0), (3.0, 4.0), (5.0, 6.0)), (8.0, 0.0))]),
    same("max.bf16x2", "bf16x2", [(((1.0, -2.0), (0.0, 0.0)), (1.0, 0.0))]),
    same("max.NaN.bf16", "bf16", [((NAN, 0.0), NAN), ((-1.0, 0.0), 0.0)]),
    same("ex2.approx.f16", "f16", [((3.0,), 8.0)]),
    Case("tanh.approx.bf16x2 {d}, {a};", "bf16x2", ("bf16x2",), [(((0.0, 0.0),), (0.0, 0.0))], "sm_90"),
]


def compared(operator: str, kind: str, rows: list[tuple[tuple[Any, Any], int]]) -> Case:
    return Case(f"setp.{operator}.{kind} %q0, {{a}}, {{b}}; selp.b32 {{d}}, 1, 0, %q0;", "b32", (kind, kind), rows)


COMPARISON = [
    compared("eq", "s32", [((1, 1), 1), ((1, 2), 0)]),
    compared("ne", "b64", [((2**40, 2**40), 0), ((1, 2), 1)]),
    compared("lt", "s32", [((-1, 1), 1), ((1, 1), 0)]),
    compared("lt", "u32", [((-1, 1), 0)]),
    compared("lo", "u32", [((1, 2), 1)]),
    compared("hs", "u32", [((2, 2), 1), ((1, 2), 0)]),
    compared("ge", "s16", [((-1, 1), 0), ((1, -1), 1)]),
    compared("le", "u16", [((0xFFFF, 1), 0)]),
    compared("gt", "s64", [((2**40, -1), 1)]),
    compared("eq", "f32", [((0.0, -0.0), 1), ((NAN, NAN), 0)]),
    compared("ne", "f32", [((1.0, 2.0), 1), ((NAN, 1.0), 0)]),
    compared("neu", "f32", [((NAN, 1.0), 1), ((1.0, 1.0), 0)]),
    compared("ltu", "f32", [((NAN, 1.0), 1), ((2.0, 1.0), 0)]),
    compared("geu", "f64", [((NAN, 1.0), 1), ((0.5, 1.0), 0)]),
    compared("num", "f32", [((NAN, 1.0), 0), ((2.0, 1.0), 1)]),
    compared("nan", "f32", [((NAN, 1.0), 1), ((2.0, 1.0), 0)]),
    compared("gt", "f16", [((2.0, 1.0), 1), ((NAN, 1.0), 0)]),
    compared("lt.ftz", "f32", [((0.0, TINY), 0), ((0.0, 1.0), 1)]),
    Case(
        "setp.lt.s32 %q1, {c}, 0; setp.lt.and.s32 %q0|%q2, {a}, {b}, %q1; selp.b32 {d}, 1, 0, %q0;"
        " @%q2 add.u32 {d}, {d}, 2;",
        "b32",
        ("s32", "s32", "s32"),
        [((1, 2, -1), 1), ((1, 2, 1), 0), ((2, 1, -1), 2)],
    ),
    Case(
        "setp.lt.s32 %q1, {c}, 0; setp.lt.or.s32 %q0, {a}, {b}, !%q1; selp.b32 {d}, 1, 0, %q0;",
        "b32",
        ("s32", "s32", "s32"),
        [((2, 1, 1), 1), ((2, 1, -1), 0), ((1, 2, -1), 1)],
    ),
    Case(
        "setp.gt.f16x2 %q0|%q1, {a}, {b}; selp.b32 {d}, 1, 0, %q0; @%q1 add.u32 {d}, {d}, 2;",
        "b32",
        ("f16x2", "f16x2"),
        [(((1.0, 2.0), (0.0, 3.0)), 1), (((1.0, 2.0), (2.0, 1.0)), 2)],
    ),
    Case("set.gt.u32.f32 {d}, {a}, {b};", "u32", ("f32", "f32"), [((2.0, 1.0), 0xFFFFFFFF), ((1.0, 2.0), 0)]),
    Case("set.lt.f32.s32 {d}, {a}, {b};", "f32", ("s32", "s32"), [((1, 2), 1.0), ((2, 1), 0.0)]),
    Case("slct.b32.s32 {d}, {a}, {b}, {c};", "b32", ("b32", "b32", "s32"), [((5, 6, 0), 5), ((5, 6, -1), 6)]),
    Case("slct.b32.f32 {d}, {a}, {b}, {c};", "b32", ("b32", "b32", "f32"), [((5, 6, -0.0), 5), ((5, 6, NAN), 6)]),
    Case(
        "testp.subnormal.f32 %q0, {a}; testp.infinite.f32 %q1, {a}; selp.b32 {d}, 1, 0, %q0; @%q1 mov.u32 {d}, 2;",
        "b32",
        ("f32",),
        [((TINY,), 1), ((1.0,), 0), ((-INF,), 2)],
    ),
]


@pytest.mark.parametrize("case", ARITHMETIC + COMPARISON, ids=str)
def test_emulated(case: Case) -> None:
    emulate(case)


@pytest.mark.gpu
@pytest.mark.parametrize("case", ARITHMETIC + COMPARISON, ids=str)
def test_on_hardware(case: Case) -> None:
    run_on_hardware(case)
