"""The mbarrier object against the PTX ISA's description of phases, arrivals and transaction bytes."""

from fastres import _C

pieces = _C.pieces


def barrier(count: int, agent: int = 0) -> "pieces.Mbarrier":
    made = pieces.Mbarrier()
    assert made.init(count, agent) == ""
    return made


def test_the_last_arrival_completes_the_phase() -> None:
    b = barrier(2)
    assert not b.parity_done(0)
    assert b.parity_done(1)  # the phase before the first counts as completed: how a producer starts
    assert b.arrive() == ""
    assert not b.parity_done(0)
    assert b.arrive() == ""
    assert b.parity_done(0)
    assert b.phase == 1
    assert b.arrive(2) == ""
    assert b.parity_done(1)
    assert not b.parity_done(0)


def test_tokens_name_their_phase_and_the_pending_count() -> None:
    b = barrier(3)
    first = b.token()
    assert pieces.pending_count(first) == 3
    b.arrive()
    assert pieces.pending_count(b.token()) == 2
    assert not b.token_done(first)
    b.arrive(2)
    assert b.token_done(first)
    assert not b.token_done(b.token())


def test_a_phase_waits_for_arrivals_and_bytes() -> None:
    b = barrier(1)
    b.expect_bytes(4096)
    b.arrive()
    assert not b.parity_done(0)
    assert b.complete_bytes(2048, 0) == ""
    assert not b.parity_done(0)
    assert b.complete_bytes(2048, 0) == ""
    assert b.parity_done(0)


def test_bytes_may_arrive_before_they_are_expected() -> None:
    b = barrier(1)
    assert b.complete_bytes(128, 0) == ""
    b.expect_bytes(128)
    assert not b.parity_done(0)
    b.arrive()
    assert b.parity_done(0)


def test_too_few_expected_bytes_end_the_phase_early() -> None:
    b = barrier(1)
    b.expect_bytes(128)
    b.arrive()
    b.complete_bytes(128, 0)
    assert "issued in phase 0 arrive in phase 1" in b.complete_bytes(128, 0)


def test_too_many_expected_bytes_leave_the_phase_open() -> None:
    b = barrier(1)
    b.expect_bytes(256)
    b.arrive()
    b.complete_bytes(128, 0)
    assert not b.parity_done(0)
    assert "128 bytes to come" in b.leftover()


def test_arriving_too_often_is_reported() -> None:
    b = barrier(2)
    assert "arrival of 3" in b.arrive(3)
    b.expect_bytes(16)
    assert b.arrive(2) == ""
    assert "0 of 2 are pending" in b.arrive()


def test_arrive_drop_lowers_the_count_of_later_phases() -> None:
    b = barrier(2)
    b.arrive(drop=True)
    b.arrive()
    assert b.phase == 1
    b.arrive()
    assert b.phase == 2


def test_no_complete_must_not_complete() -> None:
    b = barrier(2)
    assert b.arrive(no_complete=True) == ""
    assert "would complete phase 0" in b.arrive(no_complete=True)


def test_life_cycle() -> None:
    b = pieces.Mbarrier()
    assert "before mbarrier.init" in b.arrive()
    assert "expected 1..1048575" in b.init(0)
    assert b.init(1) == ""
    assert "over a live object" in b.init(1)
    assert b.invalidate() == ""
    assert "before mbarrier.init" in b.invalidate()
    assert b.init(1) == ""
    b.expect_bytes(16)
    assert "copies are in flight" in b.invalidate()


def test_an_overtaken_waiter_is_reported() -> None:
    b = barrier(1)
    assert not b.parity_done(0)
    assert b.watch(7, 0, False) == ""
    b.arrive()
    assert "parities alias" in b.arrive()
    assert not b.parity_done(0)  # as on hardware: the waiter would now wait for phase 2
    assert "overtaken" in b.watch(7, 0, False)


def test_a_spurious_failure_is_no_overtaking() -> None:
    b = barrier(1)
    b.arrive()
    assert b.parity_done(0)
    assert b.watch(7, 0, False) == ""
    assert b.watch(7, 0, True) == ""
    assert b.arrive() == ""


def test_waiting_hands_on_what_arrivals_knew() -> None:
    b = barrier(2, agent=9)
    b.arrive(clock={1: 5})
    assert not b.covers(1, 5)
    b.expect_bytes(64)
    b.arrive(clock={2: 3})
    b.complete_bytes(64, 0)
    assert b.covers(1, 5)
    assert b.covers(2, 3)
    assert b.covers(9, 1)  # the copies of phase 0
    assert not b.covers(9, 2)  # those of phase 1
    assert not b.covers(2, 4)


def test_unfinished_phases_are_left_over() -> None:
    b = barrier(2)
    assert b.leftover() == ""
    b.arrive()
    assert "1 of 2 arrivals pending" in b.leftover()
