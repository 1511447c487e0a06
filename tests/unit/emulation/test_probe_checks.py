"""What counts as right for a meter or a queue, and that the wrong ones of the field lie outside it."""

from __future__ import annotations

import pytest

from controller.program import Meter, Queue
from testbed.emulation import probe_checks
from testbed.emulation.probe_checks import Passed

METER = Meter(meter_id=1, rate_kbps=4_000, burst_kbit=160)
QUEUE = Queue(0x11, rate_bps=5_000_000, ceil_bps=5_000_000, burst_bytes=4_000, quantum_bytes=1_514, limit_packets=100)
FRAME_BITS = 2_500
OFFERED_BITS = 10_000_000


@pytest.mark.parametrize(
    ("bits", "right"),
    [
        (160_000, True),
        (160_000 - 4_000, True),
        (160_000 + FRAME_BITS + 8_000, True),
        (4_000_000, False),
        (128_000, False),
        (192_000, False),
        (0, False),
    ],
    ids=[
        "a full bucket",
        "a refill of a millisecond forgotten while idle",
        "two milliseconds of refill and a packet more",
        "a meter without BURST, whose bucket is a second of rate",
        "a fifth too small",
        "a fifth too large",
        "nothing passes",
    ],
)
def test_a_bucket_is_judged_by_what_a_flood_gets_through(bits: int, right: bool) -> None:
    passed = Passed(bits, elapsed_s=1e-3)
    assert (
        probe_checks.meter_burst("d", "t", METER, passed=passed, frame_bits=FRAME_BITS, offered_bits=OFFERED_BITS).ok
        is right
    )


@pytest.mark.parametrize(
    ("burst_kbit", "elapsed_s", "bits", "right", "blunt"),
    [
        (160, 0.034, 164_000, True, False),
        (160, 0.034, 290_000, True, False),
        (160, 0.034, 320_000, False, False),
        (160, 0.034, 150_000, False, False),
        (160, 0.040, 164_000, False, True),
        (160, 1.0, 4_000_000, False, True),
        (3_900, 0.008, 3_901_000, True, False),
        (3_900, 0.008, 4_001_000, False, False),
        (3_900, 0.024, 3_901_000, False, True),
        (3_900, 0.1, 4_001_000, False, True),
        (3_900, 0.02, 8_000_000, False, False),
        (4_000, 0.2, 4_001_000, True, False),
    ],
    ids=[
        "counted when nearly a bucket may have come back, and nothing had",
        "counted when nearly a bucket may have come back, and it had",
        "twice the bucket, counted in time to tell",
        "too small a bucket, however much may have come back",
        "counted so late that twice the bucket would pass",
        "a meter without BURST, counted after a second",
        "near the second of rate of a meter without BURST, and told from it",
        "a meter without BURST, told from a bucket near it",
        "near a meter without BURST, counted too late to tell",
        "a meter without BURST, counted too late to tell",
        "far too large, however late it was counted",
        "a second of rate, as without BURST: there is nothing to tell apart",
    ],
)
def test_a_bucket_that_was_counted_too_late_to_tell_is_no_pass_and_names_the_host(
    burst_kbit: int, elapsed_s: float, bits: int, right: bool, blunt: bool
) -> None:
    meter = Meter(meter_id=1, rate_kbps=4_000, burst_kbit=burst_kbit)
    result = probe_checks.meter_burst(
        "d", "t", meter, passed=Passed(bits, elapsed_s), frame_bits=FRAME_BITS, offered_bits=OFFERED_BITS
    )
    assert (result.ok, result.blunt) == (right, blunt)
    assert ("this host is too slow or too busy to tell" in str(result)) is blunt


@pytest.mark.parametrize(("elapsed_s", "bits", "right", "blunt"), [
    (0.008, 1_590_000, True, False), (0.008, 2_390_000, False, False), (0.020, 1_590_000, False, True),
    (0.012, 2_388_800, True, False), (0.012, 2_400_000, False, True),
])  # fmt: skip
def test_a_bucket_that_is_emptied_faster_than_anybody_counts_is_known_to_what_counting_takes_and_drops_something(
    elapsed_s: float, bits: int, right: bool, blunt: bool
) -> None:
    meter = Meter(meter_id=1, rate_kbps=137_500, burst_kbit=916)
    result = probe_checks.meter_burst(
        "d", "t", meter, passed=Passed(bits, elapsed_s), frame_bits=11_200, offered_bits=2_400_000
    )
    assert (result.ok, result.blunt) == (right, blunt)


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
