"""Exchange between lanes, and divergence, against the PTX ISA. The rows of a case are the lanes of one warp."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from ptx_cases import Case, emulate, run_on_hardware

LANES = range(32)
VALUES = [(17 * lane + 5) % 64 - 20 for lane in LANES]


def lanes(code: str, expected: Callable[[int], int], values: list[Any] | None = None, target: str = "sm_80") -> Case:
    given = VALUES if values is None else values
    return Case(code, "b32", ("b32",), [((given[lane],), expected(lane)) for lane in LANES], target)


def shuffle(mode: str, by: int, clamp: int, source: Callable[[int], int]) -> Case:
    return lanes(
        f"shfl.sync.{mode}.b32 {{d}}, {{a}}, {by}, {clamp}, 0xFFFFFFFF;",
        lambda lane: VALUES[source(lane)],
    )


CASES = [
    shuffle("up", 1, 0, lambda lane: max(lane - 1, 0)),
    shuffle("down", 3, 31, lambda lane: lane + 3 if lane + 3 < 32 else lane),
    shuffle("bfly", 5, 31, lambda lane: lane ^ 5),
    shuffle("idx", 7, 31, lambda lane: 7),
    # Segments of 8 lanes: the mask (32 - 8) is in bits 8-12 of the clamp operand.
    shuffle("up", 2, (24 << 8), lambda lane: lane - 2 if lane % 8 >= 2 else lane),
    shuffle("down", 2, (24 << 8) | 31, lambda lane: lane + 2 if lane % 8 < 6 else lane),
    shuffle("idx", 3, (24 << 8) | 31, lambda lane: lane // 8 * 8 + 3),
    shuffle("bfly", 4, (24 << 8) | 31, lambda lane: lane ^ 4),
    lanes(
        "shfl.sync.up.b32 {d}|%q0, {a}, 4, 0, 0xFFFFFFFF; selp.b32 {d}, 1, 0, %q0;",
        lambda lane: int(lane >= 4),
    ),
    lanes(
        "setp.gt.s32 %q0, {a}, 0; vote.sync.ballot.b32 {d}, %q0, 0xFFFFFFFF;",
        lambda lane: sum(1 << other for other in LANES if VALUES[other] > 0),
    ),
    lanes("setp.gt.s32 %q0, {a}, 0; vote.sync.any.pred %q1, %q0, -1; selp.b32 {d}, 1, 0, %q1;", lambda lane: 1),
    lanes("setp.gt.s32 %q0, {a}, 0; vote.sync.all.pred %q1, %q0, -1; selp.b32 {d}, 1, 0, %q1;", lambda lane: 0),
    lanes("setp.gt.s32 %q0, {a}, 99; vote.sync.uni.pred %q1, %q0, -1; selp.b32 {d}, 1, 0, %q1;", lambda lane: 1),
    lanes("setp.gt.s32 %q0, {a}, 0; vote.sync.uni.pred %q1, !%q0, -1; selp.b32 {d}, 1, 0, %q1;", lambda lane: 0),
    lanes(
        "and.b32 {d}, {a}, 3; match.any.sync.b32 {d}, {d}, 0xFFFFFFFF;",
        lambda lane: sum(1 << other for other in LANES if (VALUES[other] ^ VALUES[lane]) & 3 == 0),
    ),
    lanes("match.all.sync.b32 {d}|%q0, {a}, 0xFFFFFFFF; @%q0 add.u32 {d}, {d}, 5;", lambda lane: 0),
    lanes("redux.sync.add.s32 {d}, {a}, 0xFFFFFFFF;", lambda lane: sum(VALUES)),
    lanes("redux.sync.min.s32 {d}, {a}, 0xFFFFFFFF;", lambda lane: min(VALUES)),
    lanes("redux.sync.max.u32 {d}, {a}, 0xFFFFFFFF;", lambda lane: max(v & 0xFFFFFFFF for v in VALUES)),
    lanes("redux.sync.and.b32 {d}, {a}, 0xFFFFFFFF;", lambda lane: 0x5A, [0x5A | lane << 8 for lane in LANES]),
    lanes("redux.sync.or.b32 {d}, {a}, 0xFFFFFFFF;", lambda lane: 31, list(LANES)),
    lanes("redux.sync.xor.b32 {d}, {a}, 0xFFFFFFFF;", lambda lane: 31, [0] * 31 + [31]),
    lanes(
        "{ .reg .b32 leader; elect.sync leader|%q0, 0xFFFFFFFF; selp.b32 {d}, 1, 0, %q0;"
        " redux.sync.add.u32 {d}, {d}, 0xFFFFFFFF; }",
        lambda lane: 1,
        target="sm_90",
    ),
    # A loop whose trip count differs by lane, then a shuffle that all lanes take part in.
    lanes(
        "mov.b32 {d}, 0; LOOP: setp.ge.s32 %q0, {d}, {a}; @%q0 bra END; add.s32 {d}, {d}, 1; bra LOOP;"
        " END: shfl.sync.bfly.b32 {d}, {d}, 1, 31, 0xFFFFFFFF;",
        lambda lane: lane ^ 1,
        list(LANES),
    ),
    # Both sides of a branch exchange among themselves.
    lanes(
        "setp.lt.s32 %q0, {a}, 16; @%q0 bra LOW; redux.sync.add.u32 {d}, {a}, 0xFFFF0000; bra JOIN;"
        " LOW: redux.sync.max.u32 {d}, {a}, 0x0000FFFF; JOIN: bar.warp.sync -1;",
        lambda lane: 15 if lane < 16 else sum(range(16, 32)),
        list(LANES),
    ),
    # Nested scopes may reuse names; a guarded return leaves the other lanes.
    lanes(
        "{ .reg .pred p; .reg .b32 t; setp.eq.u32 p, {a}, 1; @p bra SKIP; mov.b32 t, 10; add.u32 {d}, {a}, t; SKIP: }"
        " { .reg .pred p; setp.ne.u32 p, {a}, 1; @p bra SKIP; mov.b32 {d}, 77; SKIP: }",
        lambda lane: 77 if lane == 1 else lane + 10,
        list(LANES),
    ),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_emulated(case: Case, seed: int) -> None:
    emulate(case, seed)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_on_hardware(case: Case) -> None:
    run_on_hardware(case)
