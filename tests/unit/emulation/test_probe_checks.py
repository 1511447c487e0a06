"""What counts as right for a meter or a queue, and that the wrong ones of the field lie outside it."""

from __future__ import annotations

import math

import pytest

from controller.program import Meter, Queue
from testbed.emulation import probe_checks
from testbed.emulation.probe_bucket import BucketBounds
from testbed.emulation.probe_checks import Passed, ProbeResult

METER = Meter(meter_id=1, rate_kbps=4_000, burst_kbit=160)
QUEUE = Queue(0x11, rate_bps=5_000_000, ceil_bps=5_000_000, burst_bytes=4_000, quantum_bytes=1_514, limit_packets=100)
FRAME_BITS = 2_500
OFFERED_BITS = 10_000_000


def bucket(meter: Meter, low: float, high: float, frame_bits: int = FRAME_BITS) -> ProbeResult:
    """What is said of a meter of whose bucket floods told these bounds."""
    bounds = BucketBounds(low, high)
    return probe_checks.meter_burst("d", "t", meter, bounds=bounds, frame_bits=frame_bits, offered_bits=OFFERED_BITS)


@pytest.mark.parametrize(
    ("low", "high", "right"),
    [
        (160_000, 160_000, True),
        (156_000, 156_000, True),
        (160_000 + FRAME_BITS, 164_000 + FRAME_BITS, True),
        (4_000_000, 4_002_000, False),
        (128_000, 130_000, False),
        (190_000, 192_000, False),
        (0, FRAME_BITS, False),
        (166_000, 154_000, True),
        (190_000, 130_000, False),
        (168_000, 140_000, False),
        (180_000, 155_000, False),
    ],
    ids=[
        "a full bucket",
        "a refill of a millisecond forgotten while idle",
        "a millisecond of refill and a packet more",
        "a meter without BURST, whose bucket is a second of rate",
        "a fifth too small",
        "a fifth too large",
        "nothing passes",
        "bounds that cross by less than a millisecond of refill",
        "bounds that exclude each other, with the right bucket in their middle",
        "bounds of which the upper one excludes it",
        "bounds of which the lower one excludes it",
    ],
)
def test_a_bucket_is_judged_by_what_floods_say_of_it(low: float, high: float, right: bool) -> None:
    assert bucket(METER, low, high).ok is right


@pytest.mark.parametrize(
    ("burst_kbit", "low", "high", "right", "blunt"),
    [
        (160, 100_000, 240_000, True, False),
        (160, 240_000, 380_000, False, False),
        (160, 80_000, 240_000, False, True),
        (160, 0, 8_000_000, False, True),
        (160, 100_000, math.inf, False, True),
        (160, 200_000, math.inf, False, False),
        (3_900, 3_895_000, 3_925_000, True, False),
        (3_900, 3_995_000, 4_010_000, False, False),
        (3_900, 3_810_000, 3_990_000, False, True),
        (4_000, 3_800_000, 4_200_000, True, False),
    ],
    ids=[
        "known to less than half of itself",
        "known as well, and twice as large",
        "known to half of itself and more",
        "known to nothing",
        "no flood was cut",
        "no flood was cut, and more passed than a right one lets through",
        "near the second of rate of a meter without BURST, and told from it",
        "a meter without BURST, told from a bucket near it",
        "near a meter without BURST, and not told from it",
        "a second of rate, as without BURST: there is nothing to tell apart",
    ],
)
def test_a_bucket_of_which_floods_do_not_tell_enough_is_no_pass_and_names_the_host(
    burst_kbit: int, low: float, high: float, right: bool, blunt: bool
) -> None:
    result = bucket(Meter(meter_id=1, rate_kbps=4_000, burst_kbit=burst_kbit), low, high)
    assert (result.ok, result.blunt) == (right, blunt)
    assert ("this host is too slow or too busy to tell" in str(result)) is blunt


def test_a_bucket_whose_floods_were_not_cut_is_no_pass_even_where_all_that_was_offered_is_near_it() -> None:
    bounds = BucketBounds(150_000, math.inf)
    result = probe_checks.meter_burst("d", "t", METER, bounds=bounds, frame_bits=FRAME_BITS, offered_bits=192_000)
    assert (result.ok, result.blunt) == (False, True)


def test_a_fast_meters_bucket_is_known_as_well_as_a_slow_ones() -> None:
    meter = Meter(meter_id=1, rate_kbps=168_750, burst_kbit=973)
    sharp = bucket(meter, 700_000, 1_200_000, frame_bits=11_200)
    late = bucket(meter, 600_000, 1_300_000, frame_bits=11_200)
    assert (sharp.ok, sharp.blunt) == (True, False)
    assert (late.ok, late.blunt) == (False, True)


@pytest.mark.parametrize(("factor", "right"), [(1.0, True), (0.99, True), (0.8, False), (1.2, False), (2.0, False)])
def test_a_meters_rate_a_fifth_off_is_wrong(factor: float, right: bool) -> None:
    passed = Passed(round(4_000_000 * 0.5 * factor), elapsed_s=0.5)
    assert probe_checks.meter_rate("d", "t", METER, passed=passed, frame_bits=FRAME_BITS).ok is right


@pytest.mark.parametrize(("factor", "right"), [(1.0, True), (0.99, True), (0.8, False), (1.2, False), (8.0, False)])
def test_a_queues_rate_a_fifth_off_is_wrong(factor: float, right: bool) -> None:
    passed = Passed(round(5_000_000 * 0.3 * factor), elapsed_s=0.3)
    assert probe_checks.queue_rate("d", "t", "p", QUEUE, passed=passed, frame_bits=FRAME_BITS).ok is right


@pytest.mark.parametrize(
    ("uncertainty_s", "factor", "right"),
    [(0.0, 1.04, False), (0.01, 1.04, True), (0.06, 1.0, False), (0.06, 1.2, False)],
    ids=["read at once", "read slowly", "so slowly that it proves nothing", "so slowly that anything would pass"],
)
def test_a_counter_that_took_long_to_read_widens_what_counts_as_right_and_not_for_ever(
    uncertainty_s: float, factor: float, right: bool
) -> None:
    passed = Passed(round(5_000_000 * 0.3 * factor), 0.3, uncertainty_s)
    assert probe_checks.queue_rate("d", "t", "p", QUEUE, passed=passed, frame_bits=FRAME_BITS).ok is right
    metered = Passed(round(4_000_000 * 0.3 * factor), 0.3, uncertainty_s)
    assert probe_checks.meter_rate("d", "t", METER, passed=metered, frame_bits=FRAME_BITS).ok is right


@pytest.mark.parametrize(
    ("rate_bps", "right"),
    [(30e6, True), (20e6, True), (1e6, True), (0.5e6, False), (35e6, False), (40e6, False)],
    ids=[
        "all that is left",
        "part of it",
        "its own rate",
        "less than its own",
        "some of the reserved",
        "the whole link",
    ],
)
def test_best_effort_gets_at_least_its_own_and_at_most_what_is_left(rate_bps: float, right: bool) -> None:
    queue = Queue(
        0x12, rate_bps=1_000_000, ceil_bps=40_000_000, burst_bytes=3_000, quantum_bytes=1_514, limit_packets=9
    )
    result = probe_checks.left_over_rate(
        "d",
        {"bulk": queue},
        "p",
        link_rate_bps=40_000_000,
        reserved_bps=10_000_000,
        passed=Passed(round(rate_bps * 0.3), elapsed_s=0.3),
        frame_bits=FRAME_BITS,
    )
    assert result.ok is right


def test_a_result_names_what_was_found_and_what_was_expected() -> None:
    result = probe_checks.judge("west", "steady", "packets in its class at p", found=3, expected=5, tolerance=0)
    assert not result.ok
    assert str(result) == "west, steady: packets in its class at p found 3, expected 5 +- 0"
