"""Queues count packets: a bound holds only where they have room for all that it lets wait."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from testbed.management.queues import Calls, queues_hold, requests_behind_meter
from testbed.report.tenant_record import BoundPart, BoundRecord
from testbed.scenario import guardrails
from testbed.scenario.loader import load
from testbed.scenario.model import (
    FULL_FRAME_BITS,
    DrawnSize,
    Misbehaviour,
    PoissonArrivals,
    Requests,
    Reservation,
    Tenant,
    TraceArrivals,
)
from testbed.traffic.request_demand import Demand

# 100 packets of 10 kbit.
BOUGHT = Reservation(rate_bps=10_000_000, meter_rate_bps=5_000_000, burst_bits=900_000, queue_bits=1_000_000)
STEADY = Tenant("steady", PoissonArrivals(400.0, 10_000), "east", BOUGHT)
ASKING = replace(STEADY, requests=Requests("digits-small", 1, DrawnSize((8_000,)), 4, 0.3, 0.5))


def bound(bound_s: float, back_s: float = 0.0) -> BoundRecord:
    parts = (BoundPart(name="east back", delay_s=back_s, note=""),)
    return BoundRecord(bound_s=bound_s, network_bound_s=bound_s, method="lundberg", assumptions=(), parts=parts)


@pytest.mark.parametrize(
    ("bound_s", "queues_s", "host_s", "metered", "holds"),
    [
        (0.100, [9.0], 0.0, True, True),
        (0.101, [9.0], 0.0, True, False),
        (0.5, [0.01, 0.01], 0.0, True, True),
        (0.5, [0.01, 0.013], 0.0, True, False),
        (0.5, [0.01, 0.01], 0.003, True, False),
        (0.5, [0.01, 0.01], 0.0, False, False),
    ],
    ids=[
        "as late as the bound", "later", "all that the meter passes", "more of it", "a host that stands still",
        "no meter",
    ],
)  # fmt: skip
def test_a_queue_holds_what_is_as_late_as_the_bound_or_all_that_the_meter_lets_pass(
    bound_s: float, queues_s: list[float], host_s: float, metered: bool, holds: bool
) -> None:
    assert queues_hold(STEADY, bound(bound_s), queues_s, host_s=host_s, metered=metered) is holds


def test_requests_wait_in_queues_of_both_ways() -> None:
    calls = Calls(crowding=1.0, largest=2)
    # Some 82 full packets, of which 2 are the whole call that may be cut, and 74 that the meter lets pass.
    assert queues_hold(ASKING, bound(0.09), [], host_s=0.0, calls=(calls, calls))
    assert not queues_hold(ASKING, bound(0.09), [], host_s=0.0, calls=(replace(calls, crowding=1.1), calls))
    assert not queues_hold(ASKING, bound(0.09), [], host_s=0.0, calls=(replace(calls, largest=9), calls))


def test_answers_that_piled_up_at_the_server_wait_on_the_way_back_for_as_long_as_the_whole_bound() -> None:
    calls = Calls(crowding=1.0, largest=2)
    # A million bits are 83 full packets: 81, which take 98.1 ms, and a call that may be cut.
    assert queues_hold(ASKING, bound(0.098, back_s=0.01), [], host_s=0.0, calls=(calls, calls))
    assert not queues_hold(ASKING, bound(0.0985, back_s=0.01), [], host_s=0.0, calls=(calls, calls))
    crowded = calls, replace(calls, crowding=1.1)
    assert not queues_hold(ASKING, bound(0.098, back_s=0.01), [], host_s=0.0, calls=crowded)


def test_a_meter_that_may_drop_lets_small_packets_pass_alone() -> None:
    calls, declared = Calls(crowding=1.7, largest=3), Demand(np.array([8_000]), np.ones(1), 400.0)
    needed = guardrails.request_burst_bits(ASKING.arrivals, declared, BOUGHT.meter_rate_bps, 0)
    enough, short = (replace(ASKING, reservation=replace(BOUGHT, burst_bits=b)) for b in (needed, needed - 1000))
    assert requests_behind_meter(enough, declared, calls) == calls
    assert requests_behind_meter(replace(enough, misbehaviour=Misbehaviour("flood", 1e7)), declared, calls) != calls
    sifted = requests_behind_meter(short, declared, calls)
    # 66 bytes of headers and nothing in them.
    assert sifted.most_packets(528_000) == pytest.approx(1000 + 3)


def test_small_messages_are_more_packets_than_their_bits() -> None:
    small, large = Calls.of([800]), Calls.of([8_000_000])
    assert small.largest == 3
    assert large.crowding == pytest.approx(1.0, rel=0.01)
    assert small.most_packets(FULL_FRAME_BITS) > 3 * large.crowding


@pytest.fixture
def trace(tmp_path: Path) -> TraceArrivals:
    """A second of 10 full packets, one each 10 ms, then 300 of 100 bytes, one each 3 ms."""
    sizes = np.repeat([1250, 100], [10, 300])
    times = np.concatenate((0.01 * np.arange(10), 0.1 + 0.003 * np.arange(300)))
    rows = "\n".join(f"{time:.3f},{size}" for time, size in zip(times, sizes, strict=True))
    path = tmp_path / "packets.csv"
    path.write_text(f"time_s,size_bytes\n{rows}\n", encoding="utf-8")
    return TraceArrivals(path, "packets", 1.0, 0, 10_000)


@pytest.mark.parametrize(
    ("bits", "packets"),
    [(799, 0), (800, 1), (80_000, 100), (240_000, 300), (250_000, 301), (340_000, 310), (580_000, 610)],
)
def test_packets_of_a_trace_wait_in_the_order_in_which_it_has_them(
    trace: TraceArrivals, bits: float, packets: int
) -> None:
    assert guardrails.most_packets(trace, bits, bucket=(2_000_000, 1_000_000)) == packets


@pytest.mark.parametrize("bucket", [None, (500_000, 10_000)], ids=["a flood", "a bucket that drops some"])
def test_where_a_meter_drops_some_all_that_wait_may_be_the_smallest(
    trace: TraceArrivals, bucket: tuple[int, int] | None
) -> None:
    assert guardrails.most_packets(trace, 250_000, bucket=bucket) == 312


def test_a_trace_of_small_packets_gets_a_queue_of_as_many(trace: TraceArrivals) -> None:
    rate_bps, meter_bps = 2_000_000, 1_800_000
    burst = guardrails.burst_bits(trace, meter_bps)
    found = guardrails.packet_queue_bits(trace, burst, meter_bps, rate_bps)
    as_full = guardrails.queue_bits(burst, rate_bps)
    assert found // trace.size_bits >= guardrails.most_packets(trace, as_full, bucket=(meter_bps, burst)) > 200
    tenant = Tenant("replayed", trace, "east", Reservation(rate_bps, meter_bps, burst, found))
    assert queues_hold(tenant, bound(9.0), [0.01], host_s=0.01)
    full = replace(tenant, reservation=Reservation(rate_bps, meter_bps, burst, as_full))
    assert not queues_hold(full, bound(9.0), [0.01], host_s=0.01)


def test_a_file_that_leaves_the_queue_out_gets_one_for_the_small_packets_of_its_trace(trace: TraceArrivals) -> None:
    arrivals = f"{{model: trace, file: {trace.path.name}, format: packets, size: 1250 B}}"
    file = trace.path.parent / "traced.yaml"
    file.write_text(
        "name: n\ndomains: [{name: a, link-rate: 9 Mbit/s, compute: true}]\n"
        f"tenants: [{{name: t, arrivals: {arrivals}, reservation: {{rate: 2 Mbit/s}}}}]\n",
        encoding="utf-8",
    )
    bought = load(file).tenants[0].reservation
    assert bought is not None
    bucket = bought.meter_rate_bps, bought.burst_bits
    waiting = guardrails.queue_bits(bought.burst_bits, bought.rate_bps)
    assert bought.queue_bits // trace.size_bits >= guardrails.most_packets(trace, waiting, bucket=bucket)


def test_a_file_that_leaves_the_queue_out_gets_one_for_all_answers_that_are_not_too_late_yet(tmp_path: Path) -> None:
    file = tmp_path / "asking.yaml"
    arrivals, requests = "{model: poisson, rate: 20 requests/s, size: 8 kB}", "{model: digits-small}"
    file.write_text(
        "name: n\ndomains: [{name: a, link-rate: 9 Mbit/s, compute: true}]\n"
        f"tenants: [{{name: t, arrivals: {arrivals}, requests: {requests}, reservation: {{rate: 4 Mbit/s}}, "
        "promise: {deadline: 2 s, epsilon: 0.01}}]\n",
        encoding="utf-8",
    )
    tenant = load(file).tenants[0]
    smallest = Calls.of([8 * 5])
    assert queues_hold(tenant, bound(2.0), [0.01], host_s=0.01, calls=(Calls.of([64_000]), smallest))
    assert not queues_hold(tenant, bound(2.5), [0.01], host_s=0.01, calls=(Calls.of([64_000]), smallest))
