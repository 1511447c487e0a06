"""A window's result depends on the system and the seed alone, and its memory not on the number of packets."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from testbed.scenario.model import Misbehaviour
from testbed.simulation.choices import Choices
from testbed.simulation.clock import PS_PER_S
from testbed.simulation.compute import Compute
from testbed.simulation.impairment import Excess, Exponential
from testbed.simulation.network import network
from testbed.simulation.system import Scheduler, System
from testbed.simulation.tally import Tally
from testbed.simulation.window import Outcome, Plan, simulate
from tests.unit.simulation.systems import BURSTY, DOMAINS, mixed, scenario, tenant

EXCESS = Excess(0.01, Exponential(0.002))


def system(scheduler: Scheduler = Scheduler.RESERVED) -> System:
    """Everything at once: meters, a scheduler, excess latency, loss, and a compute stage behind each domain."""
    built = network(mixed(), Choices(scheduler, excess=EXCESS, loss=0.01)).system
    compute = Compute(2, each_s=20e-6, setup_s=50e-6, batch=4, patience_s=1e-3, factor=Exponential(1.0))
    return replace(built, hops=tuple(replace(hop, compute=compute) for hop in built.hops))


def same(one: Tally, other: Tally) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("fine", "coarse", "n", "lost", "late", "smallest_ps", "largest_ps")
    )


@pytest.mark.parametrize("scheduler", Scheduler)
def test_the_size_of_chunks_changes_nothing(scheduler: Scheduler) -> None:
    built = system(scheduler)
    whole, pieces = (simulate(built, Plan(1, 1, 2.0, 1.0, chunk)) for chunk in (10**6, 300))
    assert same(whole.tally, pieces.tally)
    for one, other in zip(whole.passages, pieces.passages, strict=True):
        assert one.born_ps.size > 0
        assert np.array_equal(one.border_ps, other.border_ps)


@pytest.mark.parametrize("scheduler", Scheduler)
def test_every_packet_is_delivered_or_lost_once(scheduler: Scheduler) -> None:
    outcome = simulate(system(scheduler), Plan(1, 1, 2.0, 2.0))
    tally = outcome.tally
    assert tally.n.sum() == outcome.packets == sum(passage.born_ps.size for passage in outcome.passages)
    assert np.array_equal(tally.fine.sum(axis=1) + tally.lost.sum(axis=1), tally.n)
    assert np.array_equal(tally.coarse.sum(axis=(0, 2)), tally.n)
    assert tally.lost[1, 1] > 0.4 * tally.n[1], "the flood's meter drops what exceeds its bucket"
    assert np.all(tally.lost[[0, 2], 1] == 0), "nobody else's meter drops anything"


def test_recorded_packets_are_those_that_are_counted() -> None:
    outcome = simulate(network(mixed(), Choices()).system, Plan(1, 1, 2.0, 2.0))
    (passage,) = outcome.passages
    for k, source in enumerate(network(mixed(), Choices()).system.sources):
        own = passage.tenant == k
        latency = passage.border_ps[own, source.hops] - passage.born_ps[own]
        delivered = latency[passage.border_ps[own, source.hops] >= 0]
        assert delivered.size == outcome.tally.fine[k].sum()
        assert delivered.max() == outcome.tally.largest_ps[k]
        assert np.all(np.diff(passage.border_ps[own][delivered.argsort()], axis=1)[:, : source.hops] >= -(2**62))


def test_tenants_leave_behind_the_domain_that_serves_them() -> None:
    outcome = simulate(network(mixed(), Choices()).system, Plan(1, 1, 1.0, 1.0))
    (passage,) = outcome.passages
    near = passage.border_ps[passage.tenant == 2]
    assert np.all(near[:, 1] >= 0)
    assert np.all(near[:, 2] == -1)
    far = passage.border_ps[passage.tenant == 0]
    assert np.all(far[:, 2] - far[:, 1] >= 2e-3 * PS_PER_S), "propagation behind the second domain"


def test_an_early_end_keeps_what_was_sent_until_then() -> None:
    asked = iter([False, False, True])
    outcome = simulate(system(), Plan(1, 1, 5.0, 5.0, 1000), stop=lambda: next(asked, True))
    assert 0 < outcome.duration_s < 5.0
    assert outcome.tally.n.sum() == outcome.packets > 0
    cut = simulate(system(), Plan(1, 1, outcome.duration_s, outcome.duration_s))
    assert np.array_equal(outcome.tally.fine, cut.tally.fine)


def test_a_whole_window_is_as_long_as_was_planned() -> None:
    awkward_s = 3000 / 4321.7
    assert simulate(system(), Plan(1, 1, awkward_s)).duration_s == awkward_s


def peak_bytes(duration_s: float) -> tuple[int, Outcome]:
    tracemalloc.start()
    outcome = simulate(system(), Plan(1, 1, duration_s, 1.0, chunk_packets=4000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, outcome


def test_memory_does_not_grow_with_the_number_of_packets() -> None:
    simulate(system(), Plan(1, 1, 1.0, 1.0))
    (little, short), (much, long) = peak_bytes(5.0), peak_bytes(50.0)
    assert long.packets > 9 * short.packets
    assert much < 1.1 * little


def test_a_shared_queue_serves_everybody_in_the_order_of_arrival_at_the_links_rate() -> None:
    domains = tuple(replace(domain, link_rate_bps=20_000_000, shared_queue_bits=4_000_000) for domain in DOMAINS)
    bursty = replace(BURSTY, mean_off_s=45e-3)
    members = [
        tenant(f"t{k}", bursty, None, misbehaviour=Misbehaviour("correlated", group="g", strength=strength))
        for k, strength in enumerate((1.0, 0.6, 0.6))
    ]
    built = network(scenario(*members, domains=domains), Choices()).system
    assert {hop.scheduler for hop in built.hops} == {Scheduler.SHARED}
    (passage,) = simulate(built, Plan(3, 1, 20.0, 20.0)).passages
    entered, left = passage.border_ps[:, 0], passage.border_ps[:, 1]
    by_arrival = np.argsort(entered, kind="stable")
    assert (np.diff(left[by_arrival]) >= 0).all(), "whoever came first leaves first, whoever's it is"
    # No more in any ten milliseconds than the link and the bucket of its class allow.
    burst_bits = built.hops[0].classes[0].burst_bits
    ends = np.sort(left)
    counts = np.searchsorted(ends, ends + PS_PER_S // 100, side="right") - np.arange(ends.size)
    assert counts.max() * BURSTY.size_bits <= 20_000_000 * 0.01 + burst_bits + 2 * BURSTY.size_bits
    assert len(set(passage.tenant.tolist())) == 3
