"""Integer arithmetic, logic and bit fields against the PTX ISA."""

from __future__ import annotations

import pytest
from ptx_cases import Case, emulate, run_on_hardware

MIN, MAX = -(2**31), 2**31 - 1
MIN64, MAX64 = -(2**63), 2**63 - 1


def binary(opcode: str, kind: str, rows: list[tuple[tuple[int, int], int]], to: str = "") -> Case:
    return Case(f"{opcode} {{d}}, {{a}}, {{b}};", to or kind, (kind, kind), rows)


def unary(opcode: str, kind: str, rows: list[tuple[tuple[int], int]], to: str = "") -> Case:
    return Case(f"{opcode} {{d}}, {{a}};", to or kind, (kind,), rows)


def ternary(opcode: str, kinds: tuple[str, str, str], to: str, rows: list[tuple[tuple[int, int, int], int]]) -> Case:
    return Case(f"{opcode} {{d}}, {{a}}, {{b}}, {{c}};", to, kinds, rows)


CASES = [
    binary("add.s32", "s32", [((1, 2), 3), ((MAX, 1), MIN), ((-1, 1), 0)]),
    binary("add.sat.s32", "s32", [((MAX, 1), MAX), ((MIN, -1), MIN), ((3, -5), -2)]),
    binary("add.u16", "u16", [((0xFFFF, 2), 1)]),
    binary("add.s64", "s64", [((MAX64, 1), MIN64), ((-1, -1), -2)]),
    binary("sub.s32", "s32", [((1, 2), -1), ((MIN, 1), MAX)]),
    binary("sub.sat.s32", "s32", [((MIN, 1), MIN), ((MAX, -1), MAX)]),
    binary("sub.u64", "u64", [((0, 1), 2**64 - 1)]),
    binary("mul.lo.s32", "s32", [((3, -5), -15), ((65536, 65536), 0)]),
    binary("mul.hi.s32", "s32", [((65536, 65536), 1), ((-1, 1), -1), ((MIN, MIN), 2**30)]),
    binary("mul.hi.u32", "u32", [((2**32 - 1, 2**32 - 1), 2**32 - 2)]),
    binary("mul.hi.s64", "s64", [((-1, 1), -1), ((MIN64, MIN64), 2**62)]),
    binary("mul.hi.u64", "u64", [((2**64 - 1, 2**64 - 1), 2**64 - 2)]),
    binary("mul.wide.s16", "s16", [((-2, 3), -6), ((-32768, -32768), 2**30)], "s32"),
    binary("mul.wide.u32", "u32", [((2**32 - 1, 2), 2**33 - 2)], "u64"),
    binary("mul.wide.s32", "s32", [((-1, 5), -5)], "s64"),
    ternary("mad.lo.s32", ("s32", "s32", "s32"), "s32", [((3, 4, 5), 17), ((MAX, 2, 3), 1)]),
    ternary("mad.hi.s32", ("s32", "s32", "s32"), "s32", [((65536, 65536, 5), 6)]),
    ternary("mad.hi.sat.s32", ("s32", "s32", "s32"), "s32", [((65536, 65536, MAX), MAX)]),
    ternary("mad.wide.s32", ("s32", "s32", "s64"), "s64", [((-3, 4, 2**40), 2**40 - 12)]),
    ternary("mad.wide.u16", ("u16", "u16", "u32"), "u32", [((0xFFFF, 0xFFFF, 1), 0xFFFE0002)]),
    binary("mul24.lo.s32", "s32", [((0xFFFFFF, 2), -2), ((3, 5), 15)]),
    binary("mul24.hi.u32", "u32", [((0xFFFFFF, 0xFFFFFF), 0xFFFFFE00)]),
    ternary("mad24.lo.u32", ("u32", "u32", "u32"), "u32", [((0x1000003, 5, 7), 22)]),
    ternary("sad.s32", ("s32", "s32", "s32"), "s32", [((3, 10, 100), 107), ((10, 3, 100), 107), ((-5, 5, 1), 11)]),
    ternary("sad.u32", ("u32", "u32", "u32"), "u32", [((2**32 - 1, 0, 1), 0)]),
    binary("div.s32", "s32", [((7, 2), 3), ((-7, 2), -3), ((MIN, -1), MIN)]),
    binary("div.u32", "u32", [((2**32 - 1, 2), MAX)]),
    binary("div.s64", "s64", [((-(10**15), 10**3), -(10**12))]),
    binary("rem.s32", "s32", [((7, 3), 1), ((-7, 3), -1), ((7, -3), 1), ((MIN, -1), 0)]),
    binary("rem.u64", "u64", [((2**64 - 1, 10), 5)]),
    binary("min.s32", "s32", [((-1, 1), -1)]),
    binary("min.u32", "u32", [((-1, 1), 1)]),
    binary("max.s32", "s32", [((-1, 1), 1)]),
    binary("max.u64", "u64", [((-1, 1), 2**64 - 1)]),
    binary("max.s16", "s16", [((-1, 1), 1)]),
    unary("abs.s32", "s32", [((-5,), 5), ((MIN,), MIN)]),
    unary("neg.s32", "s32", [((-5,), 5), ((MIN,), MIN)]),
    unary("neg.s64", "s64", [((1,), -1)]),
    binary("and.b32", "b32", [((0xF0F0F0F0, 0xFF00FF00), 0xF000F000)]),
    binary("or.b64", "b64", [((2**63, 1), 2**63 + 1)]),
    binary("xor.b16", "b16", [((0xFFFF, 0x0F0F), 0xF0F0)]),
    unary("not.b32", "b32", [((0xF0F0F0F0,), 0x0F0F0F0F)]),
    unary("not.b16", "b16", [((0xF0F0,), 0x0F0F)]),
    unary("cnot.b32", "b32", [((0,), 1), ((7,), 0)]),
    Case("shl.b32 {d}, {a}, {b};", "b32", ("b32", "u32"), [((1, 31), 2**31), ((1, 32), 0), ((3, 2**31), 0)]),
    Case("shl.b16 {d}, {a}, {b};", "b16", ("b16", "u32"), [((0xFFFF, 4), 0xFFF0), ((1, 16), 0)]),
    Case("shr.u32 {d}, {a}, {b};", "u32", ("u32", "u32"), [((2**31, 31), 1), ((2**31, 32), 0)]),
    Case("shr.s32 {d}, {a}, {b};", "s32", ("s32", "u32"), [((MIN, 31), -1), ((MIN, 99), -1), ((MAX, 99), 0)]),
    Case("shr.u64 {d}, {a}, {b};", "u64", ("u64", "u32"), [((2**63, 63), 1), ((2**63, 64), 0)]),
    Case("shr.s16 {d}, {a}, {b};", "s16", ("s16", "u32"), [((-32768, 3), -4096), ((-1, 40), -1)]),
    ternary("shf.l.wrap.b32", ("b32", "b32", "u32"), "b32", [((0x80000000, 1, 1), 3), ((5, 7, 32), 7)]),
    ternary("shf.l.clamp.b32", ("b32", "b32", "u32"), "b32", [((0x80000000, 1, 1), 3), ((5, 7, 99), 5)]),
    ternary("shf.r.wrap.b32", ("b32", "b32", "u32"), "b32", [((2, 1, 1), 0x80000001), ((5, 7, 32), 5)]),
    ternary("shf.r.clamp.b32", ("b32", "b32", "u32"), "b32", [((2, 1, 1), 0x80000001), ((5, 7, 32), 7)]),
    Case(
        "lop3.b32 {d}, {a}, {b}, {c}, 0x96;",
        "b32",
        ("b32", "b32", "b32"),
        [((0xF0F0F0F0, 0xCCCCCCCC, 0xAAAAAAAA), 0x96969696)],
    ),
    Case(
        "lop3.b32 {d}, {a}, {b}, {c}, 0xEA;",  # (a & b) | c
        "b32",
        ("b32", "b32", "b32"),
        [((0xFF00, 0x0FF0, 0x1), 0x0F01)],
    ),
    unary("popc.b32", "b32", [((0,), 0), ((0xFFFFFFFF,), 32), ((0x101,), 2)], "u32"),
    unary("popc.b64", "b64", [((2**64 - 1,), 64)], "u32"),
    unary("clz.b32", "b32", [((0,), 32), ((1,), 31), ((2**31,), 0)], "u32"),
    unary("clz.b64", "b64", [((0,), 64), ((1,), 63)], "u32"),
    unary("brev.b32", "b32", [((1,), 2**31), ((0x80000001,), 0x80000001)]),
    unary("bfind.u32", "u32", [((0,), 0xFFFFFFFF), ((1,), 0), ((2**31,), 31)], "u32"),
    unary("bfind.s32", "s32", [((-1,), 0xFFFFFFFF), ((-2,), 0), ((5,), 2)], "u32"),
    unary("bfind.shiftamt.u32", "u32", [((1,), 31), ((2**31,), 0)], "u32"),
    ternary(
        "bfe.u32",
        ("u32", "u32", "u32"),
        "u32",
        [((0xABCD1234, 8, 8), 0x12), ((0xABCD1234, 24, 16), 0xAB), ((5, 0, 0), 0), ((5, 40, 8), 0)],
    ),
    ternary(
        "bfe.s32",
        ("s32", "u32", "u32"),
        "s32",
        [((0xF0, 4, 4), -1), ((0x70, 4, 4), 7), ((MIN, 40, 3), -1), ((MIN, 28, 9), -8)],
    ),
    ternary("bfe.u64", ("u64", "u32", "u32"), "u64", [((2**40 * 5, 40, 3), 5)]),
    Case(
        "bfi.b32 {d}, {a}, {b}, {c}, {e};",
        "b32",
        ("b32", "b32", "u32", "u32"),
        [((0xFF, 0, 8, 4), 0xF00), ((0, 0xFFFFFFFF, 28, 16), 0x0FFFFFFF), ((7, 5, 40, 4), 5)],
    ),
    ternary("prmt.b32", ("b32", "b32", "b32"), "b32", [((0x33221100, 0x77665544, 0x7531), 0x77553311)]),
    ternary("prmt.b32", ("b32", "b32", "b32"), "b32", [((0x80, 0, 0x8888), 0xFFFFFFFF), ((0x7F, 0, 0x8888), 0)]),
    ternary("prmt.b32.f4e", ("b32", "b32", "b32"), "b32", [((0x33221100, 0x77665544, 1), 0x44332211)]),
    ternary("prmt.b32.b4e", ("b32", "b32", "b32"), "b32", [((0x33221100, 0x77665544, 1), 0x66770011)]),
    ternary("prmt.b32.rc8", ("b32", "b32", "b32"), "b32", [((0x33221100, 0, 2), 0x22222222)]),
    ternary("prmt.b32.ecl", ("b32", "b32", "b32"), "b32", [((0x33221100, 0, 2), 0x33222222)]),
    ternary("prmt.b32.ecr", ("b32", "b32", "b32"), "b32", [((0x33221100, 0, 2), 0x22221100)]),
    ternary("prmt.b32.rc16", ("b32", "b32", "b32"), "b32", [((0x33221100, 0, 1), 0x33223322)]),
    ternary("dp4a.s32.s32", ("b32", "b32", "b32"), "b32", [((0xFF010203, 0x02030405, 100), 100 - 2 + 3 + 8 + 15)]),
    ternary("dp4a.u32.s32", ("b32", "b32", "b32"), "b32", [((0xFF, 0xFF, 0), -255)]),
    ternary("dp2a.lo.s32.s32", ("b32", "b32", "b32"), "b32", [((0xFFFF0003, 0x00000205, 10), 10 + 15 - 2)]),
    ternary("dp2a.hi.u32.u32", ("b32", "b32", "b32"), "b32", [((0x00020003, 0x02050000, 1), 1 + 15 + 4)]),
    Case(
        "add.cc.u32 {d}, {a}, {b}; addc.u32 {d}, 0, 0;",
        "u32",
        ("u32", "u32"),
        [((2**32 - 1, 1), 1), ((1, 2), 0)],
    ),
    Case(
        "sub.cc.u32 {d}, {a}, {b}; subc.u32 {d}, {a}, 0;",
        "u32",
        ("u32", "u32"),
        [((1, 2), 0), ((5, 2), 5)],
    ),
    Case(
        "mad.lo.cc.u32 {d}, {a}, {b}, {c}; madc.hi.u32 {d}, {a}, {b}, 0;",
        "u32",
        ("u32", "u32", "u32"),
        [((2**31, 2, 5), 1), ((2**32 - 1, 1, 1), 1)],
    ),
    Case(
        "setp.lt.s32 %q0, {a}, {b}; setp.gt.s32 %q1, {a}, 0; and.pred %q2, %q0, !%q1; selp.b32 {d}, 1, 0, %q2;",
        "b32",
        ("s32", "s32"),
        [((-1, 1), 1), ((1, 2), 0), ((-1, -2), 0)],
    ),
    Case(
        "setp.lt.s32 %q0, {a}, {b}; not.pred %q1, %q0; xor.pred %q2, %q1, 1; selp.b32 {d}, 7, 9, %q2;",
        "b32",
        ("s32", "s32"),
        [((-1, 1), 7), ((2, 1), 9)],
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_emulated(case: Case) -> None:
    emulate(case)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_on_hardware(case: Case) -> None:
    run_on_hardware(case)
