"""Queues of a scenario file are as long under every scheduler as the file says, and what finds them full is counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from testbed.errors import ScenarioError
from testbed.management.queues import SHORT_QUEUE
from testbed.report.record import read_record
from testbed.run.progress import Silent
from testbed.scenario import guardrails
from testbed.scenario.loader import load
from testbed.scenario.model import Misbehaviour, Scenario
from testbed.simulation.choices import Choices
from testbed.simulation.clock import PS_PER_S
from testbed.simulation.known import known
from testbed.simulation.meter import Policy
from testbed.simulation.network import network
from testbed.simulation.pipeline import Options, simulate_scenario
from testbed.simulation.system import Scheduler
from testbed.simulation.tally import LATER_METER, METER, QUEUE
from testbed.simulation.window import Plan, simulate
from tests.unit.simulation import references
from tests.unit.simulation.references import Packet

SHORT = """
name: short-queues
seed: 5
duration: 10 s
allow-zero-delay: true
domains:
  - {name: west, link-rate: 10 Mbit/s, link-delay: 1 ms}
  - {name: east, link-rate: 8 Mbit/s, compute: true}
tenants:
  - name: bursty
    arrivals: {model: on-off, peak: 20 Mbit/s, mean-on: 5 ms, mean-off: 15 ms, size: 1000 B}
    reservation: {rate: 5903 kbit/s, burst: 400 kbit, queue: 6 kB}
  - name: smooth
    arrivals: {model: poisson, rate: 1 Mbit/s, size: 500 B}
    reservation: {rate: 1.5 Mbit/s, burst: 100 kbit, queue: 2 kB}
  - name: bulk
    arrivals: {model: poisson, rate: 3 Mbit/s, size: 1250 B}
"""
LINKS = (10_000_000, 8_000_000)
DELAYS = (Fraction(1, 1000), Fraction(0))
TENANTS = 3

UNPOLICED = Policy(1e12, 1e12)

# As the file says: 6 kB of 1000 B, 2 kB of 500 B, and the 200 packets of best effort.
OWN = (6, 4, 200)
QUEUES = {
    Scheduler.FIFO: ([0, 0, 0], [210]),
    Scheduler.PRIORITY: ([0, 0, 1], [10, 200]),
    Scheduler.WEIGHTED: ([], OWN),
}


@pytest.fixture
def short(tmp_path: Path) -> Scenario:
    path = tmp_path / "short.yaml"
    path.write_text(SHORT, encoding="utf-8")
    return load(path)


def served(scheduler: Scheduler, packets: list[Packet], link: int) -> tuple[dict[int, Fraction], list[int]]:
    ranks, limits = QUEUES[scheduler]
    if scheduler is Scheduler.WEIGHTED:
        # Reserved rates, and a hundredth of the narrowest link.
        return references.weighted(packets, link, (5_903_000, 1_500_000, 80_000), limits)
    return references.priority(packets, link, ranks, limits)


@pytest.mark.parametrize("scheduler", QUEUES)
def test_every_scheduler_keeps_the_queues_of_the_file_as_a_plain_model_does(
    short: Scenario, scheduler: Scheduler, tmp_path: Path
) -> None:
    ready = network(short, Choices(scheduler))
    outcome = simulate(ready.system, Plan(5, 1, 10.0, 10.0))
    (passage,) = outcome.passages
    packets = [
        Packet(number, Fraction(int(time), PS_PER_S), int(bits), int(tenant))
        for number, (time, bits, tenant) in enumerate(
            zip(passage.born_ps, passage.size_bits, passage.tenant, strict=True)
        )
    ]
    metered, full = Counter[int](), Counter[int]()
    for domain, hop in enumerate(ready.system.hops):
        bought = [policy or UNPOLICED for policy in hop.meters]
        passed = set(
            references.meter(
                packets, [int(policy.rate_bps) for policy in bought], [int(policy.burst_bits) for policy in bought]
            )
        )
        metered.update(packet.tenant for packet in packets if packet.number not in passed)
        conforming = [packet for packet in packets if packet.number in passed]
        departures, dropped = served(scheduler, conforming, LINKS[domain])
        full.update(packet.tenant for packet in packets if packet.number in set(dropped))
        packets = sorted(
            (
                replace(packet, time=departures[packet.number] + DELAYS[domain])
                for packet in conforming
                if packet.number in departures
            ),
            key=lambda packet: packet.time,
        )
        seen = passage.border_ps[:, domain + 1]
        expected = {packet.number: round(packet.time * PS_PER_S) for packet in packets}
        assert {number: int(at) for number, at in enumerate(seen) if at >= 0} == expected
    assert sum(full.values()) > 100
    for tenant in range(TENANTS):
        assert outcome.tally.lost[tenant, QUEUE] == full[tenant]
        assert outcome.tally.lost[tenant, [METER, LATER_METER]].sum() == metered[tenant]
    found = read_record(
        simulate_scenario(short, Options(out=tmp_path, choices=Choices(scheduler), page=False), Silent())
    )
    for tenant, row in enumerate(found.tenants):
        assert row.lost == full[tenant] + metered[tenant]
        if row.conformance is not None:
            assert (row.conformance.queue_dropped, row.conformance.meter_dropped) == (full[tenant], metered[tenant])


@pytest.mark.parametrize("scheduler", [Scheduler.SHARED, Scheduler.FIFO, Scheduler.PRIORITY, Scheduler.WEIGHTED])
def test_a_domains_one_queue_is_as_long_as_it_says_under_every_scheduler(tmp_path: Path, scheduler: Scheduler) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(
        """
name: one
domains: [{name: only, link-rate: 10 Mbit/s, compute: true, shared-queue: 25 kB}]
tenants:
  - {name: a, arrivals: {model: poisson, rate: 1 Mbit/s, size: 500 B}}
  - {name: b, arrivals: {model: poisson, rate: 1 Mbit/s, size: 1250 B}}
""",
        encoding="utf-8",
    )
    (hop,) = network(load(path), Choices(scheduler)).system.hops
    expected = {Scheduler.SHARED: (), Scheduler.FIFO: (20,), Scheduler.PRIORITY: (20, 20), Scheduler.WEIGHTED: (20, 20)}
    assert hop.limits == expected[scheduler]
    if scheduler is Scheduler.SHARED:
        assert {one.limit_packets for one in hop.classes} == {20}


def test_a_queue_that_drops_before_anybody_is_as_late_as_the_bound_leaves_no_bound(short: Scenario) -> None:
    ready = network(short, Choices())
    assert not ready.bounds
    assert ready.unbound == {"bursty": SHORT_QUEUE, "smooth": SHORT_QUEUE}
    longer = tuple(
        replace(tenant, reservation=tenant.reservation and replace(tenant.reservation, queue_bits=8_000_000))
        for tenant in short.tenants
    )
    lengthened = network(replace(short, tenants=longer), Choices())
    assert set(lengthened.bounds) == {"bursty", "smooth"}
    assert not lengthened.unbound


@pytest.mark.parametrize("recorded", [1_000, 1_000_000])
def test_the_record_says_that_a_queue_is_too_short_for_a_bound(short: Scenario, tmp_path: Path, recorded: int) -> None:
    """Whether every packet is recorded or most are only counted."""
    options = Options(tmp_path / "runs", recorded_packets=recorded, page=False)
    record = read_record(simulate_scenario(short, options, Silent()))
    assert {tenant.name: tenant.unbound for tenant in record.tenants} == {
        "bursty": SHORT_QUEUE,
        "smooth": SHORT_QUEUE,
        "bulk": "",
    }


def test_without_meters_a_bound_rests_on_the_arrival_model_alone(short: Scenario) -> None:
    flood = Misbehaviour("flood", offered_bps=3e6)
    members = [
        replace(tenant, reservation=tenant.reservation and replace(tenant.reservation, queue_bits=80_000_000))
        for tenant in short.tenants
    ]
    tight = members[0].reservation
    assert tight is not None
    # A bucket of ten packets, which its meter keeps it to and its own bursts do not.
    members[0] = replace(members[0], reservation=replace(tight, burst_bits=80_000))
    members[1] = replace(members[1], misbehaviour=flood)
    policed = network(replace(short, tenants=tuple(members)), Choices()).bounds
    free = network(replace(short, tenants=tuple(members)), Choices(metered=False)).bounds
    assert set(policed) == {"bursty", "smooth"}
    assert set(free) == {"bursty"}
    assert policed["bursty"].method == "deterministic"
    assert free["bursty"].bound_s > 1.2 * policed["bursty"].bound_s


def test_best_effort_behind_isolated_ports_needs_a_rate_that_nobody_reserved(short: Scenario) -> None:
    full = replace(short, domains=tuple(replace(domain, link_rate_bps=7_403_000) for domain in short.domains))
    with pytest.raises(ScenarioError, match=r"domain west: found a link of 7\.403e\+06 bit/s that is reserved"):
        simulate(network(full, Choices(Scheduler.ISOLATED)).system, Plan(5, 1, 1.0))


ASKING = """
name: asking
seed: 5
duration: 10 s
allow-zero-delay: true
domains:
  - {name: only, link-rate: 10 Mbit/s, compute: true}
tenants:
  - name: vision
    arrivals: {model: poisson, rate: 60 requests/s, size: 500 B}
    requests: {model: digits-small, images: 1, work: {mean: 1 ms}}
    reservation: {rate: 600 kbit/s}
    promise: {deadline: 500 ms, epsilon: 0.01}
"""


def test_queues_of_requests_hold_as_many_packets_as_small_messages_are(tmp_path: Path) -> None:
    path = tmp_path / "asking.yaml"
    path.write_text(ASKING, encoding="utf-8")
    scenario = load(path)
    (vision,) = scenario.tenants
    bought = vision.reservation
    assert bought is not None
    # A message in one packet and two without payload take the room of three full ones in a queue that counts packets.
    declared = guardrails.queue_bits(bought.burst_bits, bought.rate_bps)
    assert bought.queue_bits > 5 * declared
    assert set(network(scenario, Choices(), known(scenario)).bounds) == {"vision"}
    twice = replace(vision, reservation=replace(bought, queue_bits=2 * declared))
    shorter = network(replace(scenario, tenants=(twice,)), Choices(), known(scenario))
    assert shorter.unbound == {"vision": SHORT_QUEUE}


PILED_UP = """
name: piled-up
seed: 3
duration: 10 s
allow-zero-delay: true
domains:
  - {name: only, link-rate: 20 Mbit/s, compute: true}
tenants:
  - name: vision
    site: only
    arrivals: {model: poisson, rate: 345 kbit/s, size: 400 B}
    requests: {model: digits-small, images: 1, timeout: 60 s, compute-share: 0.01, work: {mean: 0.1 ms, cv: 0}}
    reservation: {rate: 1 Mbit/s, burst: 80 kbit, queue: 76 kB}
    promise: {deadline: 59 s, epsilon: 0.0001}
  - name: other
    site: only
    arrivals: {model: poisson, rate: 400 kbit/s, size: 400 B}
    requests: {model: digits-small, images: 1, timeout: 25 ms, compute-share: 0.9, work: {mean: 10 ms, cv: 0}}
    reservation: {rate: 3 Mbit/s}
"""

SIFTED = """
name: sifted
seed: 3
duration: 10 s
allow-zero-delay: true
domains:
  - {name: only, link-rate: 20 Mbit/s, compute: true}
tenants:
  - name: vision
    arrivals: {model: poisson, rate: 345 kbit/s, size: 400 B}
    requests: {model: digits-small, images: 1, timeout: 60 s, compute-share: 0.9, work: {mean: 0.1 ms, cv: 0}}
    reservation: {rate: 1 Mbit/s, burst: BURST, queue: 180 kB}
    promise: {deadline: 59 s, epsilon: 0.001}
"""


def asked(tmp_path: Path, text: str) -> Scenario:
    path = tmp_path / "asked.yaml"
    path.write_text(text, encoding="utf-8")
    return load(path)


def test_a_queue_that_answers_may_fill_that_piled_up_at_the_server_leaves_no_bound(tmp_path: Path) -> None:
    scenario = asked(tmp_path, PILED_UP)
    assert network(scenario, Choices(), known(scenario)).unbound["vision"] == SHORT_QUEUE
    longer = asked(tmp_path, PILED_UP.replace("76 kB", "4 MB"))
    assert network(longer, Choices(), known(longer)).bounds["vision"].bound_s > 1


def test_a_queue_that_small_packets_may_fill_behind_a_meter_that_drops_the_others_leaves_no_bound(
    tmp_path: Path,
) -> None:
    # A bucket that drops nothing needs no room for small packets alone, although it is larger.
    for burst, unbound in (("80 kbit", {"vision": SHORT_QUEUE}), ("200 kbit", {})):
        scenario = asked(tmp_path, SIFTED.replace("BURST", burst))
        assert network(scenario, Choices(), known(scenario)).unbound == unbound
