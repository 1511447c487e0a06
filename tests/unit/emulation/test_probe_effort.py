"""A probe's frames: enough to resolve every rate and never more than a switch can take, from one tenant to hundreds."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from controller.program import DomainProgram, Meter, Queue, Rule
from testbed.emulation.probe_checks import Passed, meter_rate
from testbed.emulation.probe_effort import Effort, is_reserved, reserved_bps
from testbed.emulation.probe_traffic import LARGEST_FRAME_BYTES, SMALLEST_FRAME_BYTES

LINK_BPS = 100_000_000


def program(count: int, rate_bps: int, burst_kbit: int) -> DomainProgram:
    """`count` reservations that share `rate_bps` in all, and one best-effort tenant."""
    each = rate_bps // count
    reserved = [
        Rule(
            f"t{n}",
            n,
            f"10.1.0.{n}",
            "10.2.0.1",
            Meter(n, each * 9 // 10_000, burst_kbit),
            Queue(n, each, each, 4000, 1514, 99),
        )
        for n in range(1, count + 1)
    ]
    rest = Queue(count + 1, LINK_BPS // 100, LINK_BPS, 3000, 1514, 99)
    return DomainProgram(
        "west", "userspace", LINK_BPS, (), (*reserved, Rule("bulk", count + 1, "10.1.1.1", "10.2.0.1", None, rest))
    )


programs = st.builds(program, st.integers(1, 250), st.integers(20_000_000, 90_000_000), st.integers(20, 2_000))


@example(program(16, 20_000_000, 2_000), 0, 1.0, 1.0)
@given(programs, st.integers(0, 7), st.sampled_from([1.0, 2.0, 3.0]), st.sampled_from([1.0, 2.5, 40.0]))
def test_overloads_empty_every_bucket_in_time_and_stay_within_the_budget(
    found: DomainProgram, behind: int, stretch: float, slow_down: float
) -> None:
    effort = Effort(found, behind, stretch, slow_down)
    total = 0.0
    for rule in found.rules:
        if rule.meter is not None:
            size, per_s = effort.overload(rule.meter)
            total += per_s
            assert SMALLEST_FRAME_BYTES <= size <= LARGEST_FRAME_BYTES
            surplus_bps = 8 * size * per_s - 1000 * rule.meter.rate_kbps
            assert surplus_bps * effort.emptying_s > 1000 * rule.meter.burst_kbit
    largest_needed = sum(
        (1.5e3 * r.meter.rate_kbps + 1.3e3 * r.meter.burst_kbit / effort.emptying_s) / (8 * LARGEST_FRAME_BYTES)
        for r in found.rules
        if r.meter is not None
    )
    per_tenant_least = 100 / effort.queue_drive_s * len(found.rules)
    assert total <= 1.1 * max(effort.frames_per_s, largest_needed, per_tenant_least)


@example(program(1, 400_000, 1_540), 1.0)
@given(programs, st.sampled_from([1.0, 2.0, 3.0]))
def test_meters_are_watched_for_long_enough_to_know_their_rate(found: DomainProgram, stretch: float) -> None:
    effort = Effort(found, stretch=stretch)
    for rule in found.rules:
        if rule.meter is not None:
            size, _ = effort.overload(rule.meter)
            passed = Passed(round(1000 * rule.meter.rate_kbps * effort.rate_drive_s), effort.rate_drive_s)
            assert meter_rate("west", rule.tenant, rule.meter, passed=passed, frame_bits=8 * size).ok


@given(programs)
def test_a_flood_is_more_than_a_bucket_that_is_a_fifth_too_large(found: DomainProgram) -> None:
    for rule in found.rules:
        if rule.meter is not None:
            size, count = Effort(found).flood(rule.meter)
            assert 8 * size * count > 1.2 * 1000 * rule.meter.burst_kbit


@pytest.mark.parametrize("mbps", [70, 130, 200])
@pytest.mark.parametrize("bucket_s", [0.005, 0.2])
def test_a_fast_meter_is_flooded_and_emptied_by_what_a_switch_can_take(mbps: int, bucket_s: float) -> None:
    """20,000 frames a second that are passed on too, and on a good day twice as many: a meter may let most through."""
    burst_kbit = int(bucket_s * mbps * 1000)
    effort = Effort(program(1, mbps * 10_000_000 // 9, burst_kbit))
    meter = effort.program.rules[0].meter
    assert meter is not None
    size, count = effort.flood(meter)
    for per_s, reserve in ((40_000, 1.1), (20_000, 1.0)):
        if 1000 * meter.rate_kbps < 0.75 * 8 * size * per_s:
            passed_bits = 1000 * (meter.burst_kbit + meter.rate_kbps * count / per_s)
            assert 8 * size * count > reserve * passed_bits
    size, per_s = effort.overload(meter)
    assert per_s <= 22_500
    assert 8 * size * per_s >= 1.2 * 1000 * meter.rate_kbps
    assert (8 * size * per_s - 1000 * meter.rate_kbps) * effort.emptying_s > 1000 * meter.burst_kbit


@given(programs)
def test_classes_are_offered_more_than_their_rate_and_best_effort_more_than_what_is_left(found: DomainProgram) -> None:
    effort = Effort(found)
    busy = effort.busy_bps()
    for rule in found.rules:
        size, per_s = effort.busy(busy[rule.number])
        wanted = rule.queue.rate_bps if is_reserved(rule.queue) else LINK_BPS - reserved_bps(found.rules)
        assert 8 * size * per_s > wanted


@given(programs, st.integers(1, 6))
def test_every_port_is_driven_once(found: DomainProgram, count: int) -> None:
    ports = [f"p{i}" for i in range(count)]
    groups = Effort(found).ports_together(ports)
    assert [port for group in groups for port in group] == ports


@pytest.mark.parametrize("stretch", [2.0, 3.0])
def test_a_later_try_takes_longer_and_fewer_frames(stretch: float) -> None:
    first, later = Effort(program(4, 40_000_000, 100)), Effort(program(4, 40_000_000, 100), stretch=stretch)
    assert later.rate_drive_s == pytest.approx(stretch * first.rate_drive_s)
    assert later.queue_drive_s == pytest.approx(stretch * first.queue_drive_s)
    assert later.frames_per_s * later.queue_drive_s < first.frames_per_s * first.queue_drive_s


def test_frames_that_have_many_domains_to_cross_are_fewer_and_larger() -> None:
    found = program(64, 90_000_000, 100)
    near, far = Effort(found), Effort(found, domains_behind=7)
    meter = found.rules[0].meter
    assert meter is not None
    assert far.frames_per_s < near.frames_per_s / 2
    assert far.overload(meter)[0] > near.overload(meter)[0]
    assert far.overload(meter)[1] < near.overload(meter)[1]


def test_a_slower_scenario_is_probed_for_as_many_times_longer_with_as_many_times_fewer_frames_a_second() -> None:
    found = program(4, 16_000_000, 100)
    usual, slow, slowest = (Effort(found, slow_down=factor) for factor in (1.0, 4.0, 1000.0))
    per_s = [each.busy(each.busy_bps()[1])[1] for each in (usual, slow, slowest)]
    assert per_s[1] == pytest.approx(per_s[0] / 4, rel=0.02)
    assert all(rate * effort.queue_drive_s >= 100 for rate, effort in zip(per_s, (usual, slow, slowest), strict=True))
    assert [effort.most_floods for effort in (usual, slow, slowest)] == [12, 3, 2]
    assert slow.queue_drive_s == pytest.approx(4 * usual.queue_drive_s)
    assert slow.rate_drive_s >= 4 * usual.rate_drive_s
    assert slow.ahead_s / slow.queue_drive_s == pytest.approx(usual.ahead_s / usual.queue_drive_s)
    assert [len(effort.ports_together(["a", "b", "c", "d"])) for effort in (usual, slowest)] == [2, 4]


def test_tenants_that_share_a_class_bring_its_rate_together_and_it_is_reserved_once() -> None:
    queue = Queue(0x10, LINK_BPS, LINK_BPS, 4000, 1514, 99)
    rules = tuple(Rule(f"t{n}", n, f"10.1.0.{n}", "10.2.0.1", None, queue) for n in range(1, 5))
    effort = Effort(DomainProgram("west", "userspace", LINK_BPS, (), rules))
    assert reserved_bps(rules) == LINK_BPS
    assert sum(effort.busy_bps().values()) == LINK_BPS
