"""Latencies of HTB classes and of compute stages, held to random and adversarial systems departure by departure."""

from __future__ import annotations

import math

import numpy as np
import pytest

from testbed.calculus import (
    Batches,
    CalculusError,
    CompoundPoisson,
    EnvelopeService,
    HtbClass,
    RequestClass,
    RequestPath,
    SharedStage,
    Workers,
    delay_bound,
    htb_latency,
    htb_service,
    overtaking_latency,
)
from tests.unit.calculus import stages

SYSTEMS = 60


def bursty(rng, groups: int, mean_gap: float, largest_group: int) -> np.ndarray:
    """Arrival times of groups that come at once, some directly behind each other."""
    counts = rng.integers(1, largest_group + 1, groups)
    gaps = rng.exponential(mean_gap * counts) * (rng.random(groups) < 0.8)
    return np.repeat(np.cumsum(gaps), counts)


def affine(rng):
    """A batch's service time: growing, and per request not growing."""
    base, slope = rng.random(), rng.random() * 0.3 * (rng.random() < 0.7)
    return lambda size: base + (slope + 1e-9) * size


def lag(arrivals, sizes, rate, departures) -> float:
    """The largest lag of a departure behind the ideal start."""
    return float((departures - stages.ideal_starts(arrivals, sizes, rate)).max())


def test_workers_lag_the_ideal_server_by_their_latency_at_most():
    worst = 0.0
    for seed in range(SYSTEMS):
        rng = np.random.default_rng(seed)
        stage = Workers(int(rng.integers(1, 7)), 1.0)
        arrivals = bursty(rng, 200, rng.uniform(0.8, 1.5) / stage.count, int(rng.integers(1, 20)))
        work = np.where(rng.random(len(arrivals)) < rng.uniform(0.1, 1.0), 1.0, rng.random(len(arrivals)))
        departures = stages.worker_departures(arrivals, work, stage.count)
        worst = max(worst, lag(arrivals, work, stage.work_per_s, departures) / stage.latency_s)
    assert 0.9 < worst <= 1.0 + 1e-9


@pytest.mark.parametrize("several", [False, True], ids=["one worker", "several workers"])
def test_batches_lag_the_ideal_server_by_their_latency_at_most(several):
    worst = 0.0
    for seed in range(SYSTEMS):
        rng = np.random.default_rng(seed)
        service, largest = affine(rng), int(rng.integers(1, 17))
        full = service(largest)
        stage = Batches(largest, full, rng.uniform(0.0, 3.0) * full, int(rng.integers(2, 6)) if several else 1)
        arrivals = bursty(rng, 300, rng.uniform(0.8, 1.5) / stage.work_per_s, int(rng.integers(1, 3 * largest + 1)))
        departures = stages.batch_departures(arrivals, largest, service, stage.longest_wait_s, stage.workers)
        worst = max(worst, lag(arrivals, np.ones(len(arrivals)), stage.work_per_s, departures) / stage.latency_s)
    assert 0.9 < worst <= 1.0 + 1e-9


def test_a_shared_stage_lags_by_one_foreign_batch_of_each_tenant_more():
    worst = 0.0
    for seed in range(SYSTEMS):
        rng = np.random.default_rng(seed)
        tenants = int(rng.integers(2, 5))
        services, largest = [affine(rng) for _ in range(tenants)], rng.integers(1, 9, tenants).tolist()
        full = [service(size) for service, size in zip(services, largest, strict=True)]
        arrivals = [bursty(rng, 300, sum(full) / size * rng.uniform(0.5, 1.5), 3 * size) for size in largest]
        stage = SharedStage(Batches(largest[0], full[0]), full[0] / sum(full), tuple(full[1:]))
        departures = stages.round_robin_departures(arrivals, largest, services)[0]
        worst = max(worst, lag(arrivals[0], np.ones(len(departures)), stage.work_per_s, departures) / stage.latency_s)
    assert 0.5 < worst <= 1.0 + 1e-9


def _path(rng, workers: int, resequenced: bool) -> tuple[RequestPath, np.ndarray, np.ndarray]:
    """A random request path, and arrivals with the kind of each request."""
    kinds = int(rng.integers(1, 4))
    up, work, down = (rng.uniform(0.05, 1.0, kinds) for _ in range(3))
    requests = RequestClass(tuple(up), tuple(work), tuple(down))
    links = [EnvelopeService(float(rate), 0.0) for rate in rng.uniform(0.5, 2.0, 2) * workers]
    path = RequestPath(requests, [links[0]], Workers(workers, float(work.max())), [links[1]], resequenced=resequenced)
    mean = float(path.virtual_sizes_s.mean())
    arrivals = bursty(rng, 400, mean * rng.uniform(0.9, 1.5), int(rng.integers(1, 15)))
    return path, arrivals, rng.integers(0, kinds, len(arrivals))


def _departures(path: RequestPath, arrivals, kinds) -> np.ndarray:
    up, down = (np.array(bits)[kinds] for bits in (path.requests.up_bits, path.requests.down_bits))
    uplink, downlink = (float(way[0].rate_bps) for way in (path.up, path.down))
    ready = stages.fifo_departures(arrivals, up, uplink)
    done = stages.worker_departures(ready, np.array(path.requests.work)[kinds], path.stage.count)
    answered = np.maximum.accumulate(done) if path.resequenced else done
    return stages.fifo_departures(answered, down, downlink)


@pytest.mark.parametrize("resequenced", [True, False], ids=["resequenced", "out of order"])
def test_every_request_obeys_the_queue_of_virtual_sizes(resequenced):
    worst = 0.0
    for seed in range(2 * SYSTEMS):
        rng = np.random.default_rng(seed)
        path, arrivals, kinds = _path(rng, int(rng.integers(1, 6)), resequenced)
        waits = stages.ideal_starts(arrivals, path.virtual_sizes_s[kinds], 1.0) - arrivals
        limit = waits + math.fsum(service.latency_s for service in path.services)
        delays = _departures(path, arrivals, kinds) - arrivals
        assert np.all(delays <= limit + 1e-9)
        worst = max(worst, float(((delays - waits) / (limit - waits)).max()))
    assert worst > 0.5


def test_without_resequencing_answers_that_overtake_are_charged():
    requests = RequestClass((1.0,), (2.0,), (8.0,))
    link = EnvelopeService(4.0, 0.0)
    ordered, unordered = (RequestPath(requests, [link], Workers(3, 2.0), [link], resequenced=r) for r in (True, False))
    extra = math.fsum(s.latency_s for s in unordered.services) - math.fsum(s.latency_s for s in ordered.services)
    assert extra == pytest.approx(overtaking_latency(Workers(3, 2.0), requests, 4.0)) == 2 * 2.0 * 4.0 / 4.0
    assert overtaking_latency(Workers(1, 2.0), requests, 4.0) == 0.0
    assert overtaking_latency(Batches(8, 1.0, workers=2), requests, 4.0) == pytest.approx(8 * 4.0 / 4.0)
    with pytest.raises(CalculusError, match="requests without work can overtake in any number"):
        overtaking_latency(Workers(2, 1.0), RequestClass((1.0,), (0.0,), (1.0,)), 1.0)


def test_a_request_path_is_bounded_like_any_other():
    requests = RequestClass((1e4, 2e5), (1.0, 1.0), (1e3, 1e3), (0.9, 0.1))
    path = RequestPath(requests, [EnvelopeService(1e7, 1e-3)], Batches(8, 0.05, 0.02), [EnvelopeService(1e7, 1e-3)])
    bound = delay_bound(CompoundPoisson(60.0, path.size), path.services, 1e-3)
    assert [line.domain for line in bound.budget] == ["own burst", "domain 1", "compute", "domain 3"]
    assert bound.delay_s > 0.1 + 2e5 / 1e7


def random_htb(rng):
    """A class with exactly the burst and quantum that it needs, beside random others; and its latency."""
    count, drain = int(rng.integers(1, 8)), 100.0
    rates = rng.dirichlet(np.ones(count + 1)) * rng.uniform(0.5, 1.0) * drain
    packets = rng.uniform(0.1, 2.0, count + 1)
    others = [
        HtbClass(rate, packet * rng.uniform(1.0, 10.0), packet * rng.uniform(1.0, 8.0), packet)
        for rate, packet in zip(rates[1:].tolist(), packets[1:].tolist(), strict=True)
    ]
    timer = rng.uniform(0.0, 0.2) * (rng.random() < 0.7)
    latency = htb_latency(HtbClass(rates[0], 1e9, 1e9, packets[0]), others, drain, timer)
    needed = (rates[0] * latency + packets[0]) * (1.0 + 1e-9)
    return HtbClass(rates[0], needed, needed, packets[0]), others, stages.Port(drain, timer), latency


def test_a_reserved_htb_class_lags_by_its_latency_at_most_and_by_more_than_one_round():
    worst, with_one_round = 0.0, 0.0
    for seed in range(5 * SYSTEMS):
        rng = np.random.default_rng(seed)
        own, others, port, latency = random_htb(rng)
        mean_gap = own.packet_bits / own.rate_bps * rng.uniform(0.9, 1.4)
        arrivals = bursty(rng, 300, mean_gap, int(rng.integers(1, 30)))
        bits = own.packet_bits * np.where(rng.random(len(arrivals)) < 0.6, 1.0, rng.random(len(arrivals)))
        leaves = [stages.Leaf(c.rate_bps, c.burst_bits, c.quantum_bits, c.packet_bits) for c in (own, *others)]
        departures = stages.htb_departures(arrivals, bits, leaves, port, rng)
        seen = lag(arrivals, bits, own.rate_bps, departures)
        worst = max(worst, seen / latency)
        fixed = own.packet_bits / port.drain + port.timer
        with_one_round = max(with_one_round, seen / (0.5 * (latency - fixed) + fixed))
    assert worst <= 1.0
    assert with_one_round > 1.0, "the second round is not needed"


def test_an_htb_class_without_the_burst_the_quantum_or_the_rate_it_needs_is_refused():
    other = [HtbClass(60.0, 10.0, 10.0, 1.0)]
    service = htb_service(HtbClass(30.0, 100.0, 100.0, 1.0), other, 100.0, 0.01, "metro")
    assert (service.rate_bps, service.name) == (30.0, "metro")
    assert service.latency_s == pytest.approx(2.0 * (10.0 + 1.0) / 100.0 + 1.0 / 100.0 + 0.01)
    with pytest.raises(CalculusError, match=r"burst >= rate x latency \+ packet fails: 2 against 8\.2 bits"):
        htb_latency(HtbClass(30.0, 2.0, 100.0, 1.0), other, 100.0, 0.01)
    with pytest.raises(CalculusError, match=r"quantum >= rate x latency \+ packet fails"):
        htb_latency(HtbClass(30.0, 100.0, 2.0, 1.0), other, 100.0, 0.01)
    with pytest.raises(CalculusError, match=r"sum of reserved rates <= drain rate fails: 110 against 100"):
        htb_latency(HtbClass(50.0, 100.0, 100.0, 1.0), other, 100.0, 0.01)
