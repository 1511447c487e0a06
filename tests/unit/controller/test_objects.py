from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from controller.objects import (
    TICKS_PER_S,
    Change,
    ClassKey,
    ClassValue,
    FlowValue,
    LeafKey,
    LeafValue,
    burst_bytes,
    burst_ticks,
    compare,
    describe,
)

SLOW = ClassValue(1, 1_000_000, 1_000_000, 62_500, 62_500, 3000, 0)
FAST = ClassValue(1, 1_250_000, 1_250_000, 62_500, 62_500, 3000, 0)


def test_a_comparison_names_what_is_absent_different_and_superfluous() -> None:
    same, changed, gone, extra = (LeafKey("p", minor) for minor in range(4))
    leaf, longer = LeafValue("pfifo", 10), LeafValue("pfifo", 20)
    found = {same: leaf, changed: leaf, extra: leaf}
    expected = {same: leaf, changed: longer, gone: leaf}
    assert compare(found, expected) == [
        Change(changed, leaf, longer),
        Change(gone, None, leaf),
        Change(extra, leaf, None),
    ]
    assert compare(expected, expected) == []


def test_a_description_shows_only_what_differs_and_rates_in_bits_too() -> None:
    assert describe(SLOW, FAST) == (
        "rate_bytes_per_s 1000000 (8000000 bit/s), ceil_bytes_per_s 1000000 (8000000 bit/s)"
    )
    assert describe(None, FAST) == "absent"
    assert describe(LeafValue("pfifo", 3)) == "kind pfifo, limit_packets 3"


def test_a_description_writes_steps_like_a_switch_does() -> None:
    assert describe(FlowValue(1, (("meter", 3), ("output", "d0i-dn")))) == "cookie 1, steps meter:3 output:d0i-dn"
    assert describe(FlowValue(0, ())) == "cookie 0, steps none"


def test_objects_are_called_what_their_own_tools_call_them() -> None:
    assert str(ClassKey("d0i-dn", 0x1A)) == "class 1:1a of d0i-dn"


@given(st.integers(1, 10**9), st.integers(1, 10**10))
def test_a_burst_kept_as_time_is_never_smaller_than_asked_and_less_than_a_tick_larger(size: int, rate: int) -> None:
    ticks = burst_ticks(size, rate)
    assert ticks * rate >= size * TICKS_PER_S
    assert (ticks - 1) * rate < size * TICKS_PER_S
    assert burst_bytes(ticks, rate) >= size
