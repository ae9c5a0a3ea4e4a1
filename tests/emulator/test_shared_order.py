"""Race detection over shared memory, from first principles: who wrote, who read, who knew."""

import pytest

from fastres import _C

WARP0, WARP1, BARRIER, WGMMA = range(4)


@pytest.fixture
def memory() -> "_C.pieces.SharedOrder":
    return _C.pieces.SharedOrder(4096)


def test_reading_what_another_warp_wrote_needs_an_order(memory) -> None:
    assert memory.access(True, 0, 16, WARP0, 1) == ""
    assert memory.access(False, 0, 16, WARP1, 1) == "race"
    assert memory.access(False, 0, 16, WARP1, 1, order={WARP0: 1}) == ""
    assert memory.access(False, 16, 16, WARP1, 1) == ""


def test_overwriting_what_another_warp_reads_needs_an_order(memory) -> None:
    assert memory.access(False, 0, 64, WARP0, 1) == ""
    assert memory.access(False, 0, 64, WARP1, 4) == ""
    assert memory.access(True, 0, 64, WARP0, 1, order={WARP0: 1, WARP1: 4}) == ""
    assert memory.access(False, 64, 64, WARP0, 1) == ""
    assert memory.access(False, 64, 64, WARP1, 4) == ""
    assert memory.access(True, 64, 64, WARP0, 1, order={WARP0: 1, WARP1: 3}) == "race"


def test_copies_are_ordered_by_their_phase(memory) -> None:
    """A copy of phase 0 is the barrier's time 1; who has waited knows it."""
    assert memory.access(True, 0, 1024, BARRIER, 1, async_=True) == ""
    assert memory.access(False, 512, 4, WARP0, 1) == "race"
    assert memory.access(False, 512, 4, WARP0, 1, order={BARRIER: 1}) == ""
    assert memory.access(True, 0, 1024, BARRIER, 2, order={BARRIER: 1}, async_=True) == "race"  # WARP0 still reads
    assert memory.access(True, 0, 1024, BARRIER, 3, order={BARRIER: 2, WARP0: 1}, async_=True) == ""


def test_two_copies_of_one_phase_must_not_overlap(memory) -> None:
    assert memory.access(True, 0, 1024, BARRIER, 1, async_=True) == ""
    assert memory.access(True, 1008, 16, BARRIER, 1, async_=True) == "race"


def test_generic_writes_need_a_proxy_fence(memory) -> None:
    assert memory.access(True, 0, 128, WARP0, 1) == ""
    assert memory.access(False, 0, 128, WGMMA, 1, order={WARP0: 1}, async_=True) == "proxy"
    assert memory.access(False, 0, 128, WGMMA, 1, order={WARP0: 1}, proxied={WARP0: 1}, async_=True) == ""
    assert memory.access(False, 0, 128, WGMMA, 1, proxied={WARP0: 1}, async_=True) == "race"


def test_copied_data_needs_no_proxy_fence(memory) -> None:
    assert memory.access(True, 0, 128, BARRIER, 1, async_=True) == ""
    assert memory.access(False, 0, 128, WGMMA, 1, order={BARRIER: 1}, async_=True) == ""


def test_bytes_of_one_word_are_apart(memory) -> None:
    assert memory.access(True, 0, 2, WARP0, 1) == ""
    assert memory.access(True, 2, 2, WARP1, 1) == ""
    assert memory.access(True, 3, 1, WARP0, 1) == "race"


def test_atomics_do_not_race_with_each_other(memory) -> None:
    assert memory.access(True, 0, 4, WARP0, 1, atomic=True) == ""
    assert memory.access(True, 0, 4, WARP1, 1, atomic=True) == ""
    assert memory.access(True, 0, 4, WARP0, 2, order={WARP0: 2}) == "race"
