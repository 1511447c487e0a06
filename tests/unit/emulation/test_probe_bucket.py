"""A bucket is known from looks at its meter while a flood comes in, and never better than it can be."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.emulation.probe_bucket import BucketBounds, Look, bucket_bounds

FRAME_BITS = 11_200
RATE_BPS = 150_000_000
REFILL_BITS = RATE_BPS // 1000
"""What a meter gets each millisecond."""


class TokenBucket:
    """As switches have it: full at first, filled up each millisecond, and asked frame by frame."""

    def __init__(self, bits: int) -> None:
        self._full_bits = self._bits = bits
        self._tick = -1
        self.met = self.dropped = 0

    def meet(self, now_s: float, frames: int) -> None:
        tick = math.floor(now_s * 1000)
        if self._tick >= 0:
            self._bits = min(self._full_bits, self._bits + (tick - self._tick) * REFILL_BITS)
        self._tick = tick
        for _ in range(frames):
            self.met += 1
            if self._bits < FRAME_BITS:
                self.dropped += 1
            else:
                self._bits -= FRAME_BITS


def looks_at(bucket_bits: int, batches: list[tuple[int, float, float, float]], started_s: float) -> list[Look]:
    """A flood that a switch takes in batches: frames, time until they are taken, and of a look before it and after."""
    meter, now_s = TokenBucket(bucket_bits), started_s
    looks = [Look(started_s, started_s, 0, 0)]
    for frames, taking_s, before_s, after_s in batches:
        asked_s = max(looks[-1].latest_s, now_s + taking_s * before_s)
        now_s += taking_s
        meter.meet(now_s, frames)
        answered_s = now_s + after_s
        looks.append(Look(min(asked_s, answered_s), answered_s, meter.met, meter.dropped))
        now_s = answered_s
    return looks


batches = st.lists(
    st.tuples(st.integers(0, 32), st.floats(0, 0.004), st.floats(0, 1.5), st.floats(0, 0.002)), min_size=1, max_size=60
)


@given(st.integers(FRAME_BITS, 3_000_000), batches, st.floats(0, 1))
def test_the_true_bucket_is_never_excluded_by_more_than_a_millisecond_of_refill_however_the_host_stalls(
    bucket_bits: int, taken: list[tuple[int, float, float, float]], started_s: float
) -> None:
    found = bucket_bounds(looks_at(bucket_bits, taken, started_s), rate_bps=RATE_BPS, frame_bits=FRAME_BITS)
    assert found.low <= bucket_bits + REFILL_BITS + 1e-3
    if any(frames for frames, *_ in taken):
        assert found.high >= bucket_bits - REFILL_BITS - 1e-3


@given(st.integers(30 * FRAME_BITS, 3_000_000), st.floats(0, 1))
def test_a_flood_that_is_taken_in_steadily_tells_the_bucket_to_the_time_of_two_looks(
    bucket_bits: int, started_s: float
) -> None:
    """32 frames each 1.6 ms, and 30 ms until the first: neither that nor the whole 200 ms make it unsure."""
    step_s = 0.0016
    taken = [(32, 0.03, 0.0, 0.0), *[(32, step_s, 0.0, 0.0)] * 120]
    looks = looks_at(bucket_bits, taken, started_s)
    assert looks[-1].dropped > 0
    found = bucket_bounds(looks, rate_bps=RATE_BPS, frame_bits=FRAME_BITS)
    unsure_bits = 2 * step_s * RATE_BPS + 2 * REFILL_BITS + FRAME_BITS
    assert bucket_bits - found.low < unsure_bits
    assert found.high - bucket_bits < unsure_bits


@given(st.integers(30 * FRAME_BITS, 3_000_000))
def test_looks_in_time_leave_out_a_bucket_a_fifth_off(bucket_bits: int) -> None:
    looks = looks_at(bucket_bits, [(8, 1e-4, 0.0, 0.0)] * 500, 0.0)
    found = bucket_bounds(looks, rate_bps=RATE_BPS, frame_bits=FRAME_BITS)
    assert abs(found.low - bucket_bits) < REFILL_BITS + 20 * FRAME_BITS
    assert abs(found.high - bucket_bits) < REFILL_BITS + 20 * FRAME_BITS


def test_what_came_back_before_the_first_frame_was_counted_does_not_make_a_bucket_too_small() -> None:
    """One frame is met at once, and all others after the bucket was full again: the refill in between was wasted."""
    bucket_bits = 40 * FRAME_BITS
    meter = TokenBucket(bucket_bits)
    meter.meet(0.0, 1)
    looks = [Look(0.0, 0.0, 0, 0), Look(0.0001, 0.0002, meter.met, meter.dropped)]
    meter.meet(0.020, 60)
    looks.append(Look(0.0201, 0.0202, meter.met, meter.dropped))
    found = bucket_bounds(looks, rate_bps=RATE_BPS, frame_bits=FRAME_BITS)
    assert found.high >= bucket_bits


def test_a_flood_that_was_not_cut_says_only_how_large_a_bucket_is_at_least() -> None:
    looks = [Look(0.0, 0.0, 0, 0), Look(0.001, 0.002, 100, 0)]
    found = bucket_bounds(looks, rate_bps=RATE_BPS, frame_bits=FRAME_BITS)
    assert (found.low, found.high) == (100 * FRAME_BITS - 0.002 * RATE_BPS, math.inf)


def test_a_bucket_is_at_most_what_passed_since_it_was_full_what_came_back_and_a_frame() -> None:
    """40 frames pass by the first look and 5 by the second, before one of which it was full for the last time."""
    looks = [Look(0.0, 0.0, 0, 0), Look(0.001, 0.002, 50, 10), Look(0.003, 0.005, 80, 35)]
    found = bucket_bounds(looks, rate_bps=RATE_BPS, frame_bits=FRAME_BITS)
    assert found.high == pytest.approx((45 + 1 - 40) * FRAME_BITS + (0.005 - 0.001) * RATE_BPS)


def test_where_nothing_of_a_flood_is_met_nothing_passes() -> None:
    looks = [Look(0.0, 0.0, 0, 0), Look(10.0, 10.1, 0, 0)]
    assert bucket_bounds(looks, rate_bps=RATE_BPS, frame_bits=FRAME_BITS) == BucketBounds(0, 0)


def test_several_floods_say_what_each_of_them_says() -> None:
    floods = [BucketBounds(100, 400), BucketBounds(50, 300), BucketBounds(200, math.inf)]
    known = BucketBounds()
    for flood in floods:
        known = known.and_also(flood)
    assert known == BucketBounds(200, 300)
    assert all(earlier.low <= later.low for earlier, later in pairwise([BucketBounds(), known]))
