"""What is captured, calibrated and declared of a request tenant becomes a bound that holds for its requests."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from testbed.calculus import EnvelopeService, NotApplicableError, RequestPath, delay_bound
from testbed.envelope.descriptor import Envelope
from testbed.envelope.errors import WrongRateError
from testbed.management.requests import (
    ComputeReservation,
    SignedStage,
    metered_arrival,
    replayed_arrival,
    request_arrival,
    request_class,
    request_path,
    require_forwarded_rate,
    traced_arrival,
)
from testbed.scenario.model import Arrivals, MmppArrivals, OnOffArrivals, PoissonArrivals, RenewalArrivals
from testbed.telemetry.lag import fifo
from testbed.telemetry.requests import Framing

OUT = Framing(64_000_000, 67_000_000.0, 500_000.0, 1514 / 1448, 1000.0)
BACK = Framing(2_400_000, 3_400_000.0, 600_000.0, 1.2, 500.0)
RATE = 10e6
DOMAINS = [EnvelopeService(RATE, 1e-3, name=name) for name in ("a", "b", "c")]
LEAST = np.array([64_000, 32_000]) * 1.05
COMPUTE = ComputeReservation(workers=1, share=0.5, most_work_s=2e-3, foreign_work_s=(1e-3,))


def path(message_bits: tuple[int, ...] = (64_000,), weights: tuple[float, ...] = ()) -> RequestPath:
    return request_path(
        request_class(message_bits, 2_400, OUT, BACK, work=2e-3, weights=weights), DOMAINS, COMPUTE.stage, DOMAINS
    )


def simulated_waits(gaps_s: np.ndarray, sizes_s: np.ndarray) -> np.ndarray:
    """Lindley's recursion, written as a running maximum."""
    walk = np.concatenate(([0.0], np.cumsum(sizes_s[:-1] - gaps_s[1:])))
    return walk - np.minimum.accumulate(walk)


def test_a_request_costs_on_the_wire_what_was_captured() -> None:
    kinds = path((64_000, 8_000)).requests
    assert kinds.up_bits == pytest.approx((1000 + 64_000 * 1514 / 1448, 1000 + 8_000 * 1514 / 1448))
    assert kinds.down_bits == pytest.approx((500 + 1.2 * 2400,) * 2)
    assert kinds.work == (2e-3, 2e-3)


def test_a_request_counts_for_as_long_as_it_keeps_its_busiest_stage_busy() -> None:
    assert path((64_000,)).virtual_sizes_s == pytest.approx([(1000 + 64_000 * 1514 / 1448) / RATE])
    assert path((8_000,)).virtual_sizes_s == pytest.approx([2e-3 / 0.5]), "half a worker is slower than the line here"


def test_a_poisson_tenants_bound_is_its_wait_and_what_the_stages_add() -> None:
    whole = path()
    size_s = float(whole.virtual_sizes_s[0])
    arrivals = PoissonArrivals(0.7 / size_s, 64_000)
    found = delay_bound(request_arrival(arrivals, whole), whole.services, 1e-3).delay_s
    rng = np.random.default_rng(1)
    wait_s = simulated_waits(rng.exponential(size_s / 0.7, 10**6), np.full(10**6, size_s))
    fixed_s = 6 * 1e-3 + size_s + (2e-3 + 1e-3) + (500 + 1.2 * 2400) / RATE
    assert 1.0 <= found / (np.quantile(wait_s, 0.999) + fixed_s) < 1.1


def test_of_varying_sizes_the_largest_is_charged() -> None:
    whole = path((64_000, 32_000), (1.0, 9.0))
    total_s = sum(service.latency_s for service in whole.services)
    largest_s = float(OUT.wire_bits(64_000)) / RATE
    assert total_s == pytest.approx(6e-3 + largest_s + 3e-3 + float(BACK.wire_bits(2400)) / RATE)


@pytest.mark.parametrize(
    ("arrivals", "kind"),
    [
        (RenewalArrivals(100.0, "deterministic", 0.0, 64_000), "Renewal"),
        (RenewalArrivals(100.0, "gamma", 1.5, 64_000), "Renewal"),
        (MmppArrivals((50.0, 150.0), ((0.0, 1.0), (1.0, 0.0)), 64_000), "MarkovPoisson"),
        (OnOffArrivals(12e6, 0.1, 0.1, 64_000), "MarkovOnOff"),
    ],
)
def test_every_arrival_process_of_equal_requests_has_its_model(arrivals: Arrivals, kind: str) -> None:
    whole = path()
    model = request_arrival(arrivals, whole)
    assert type(model).__name__ == kind
    rate_per_s = 12e6 / 64_000 / 2 if isinstance(arrivals, OnOffArrivals) else 100.0
    assert model.mean_bps == pytest.approx(rate_per_s * float(whole.virtual_sizes_s[0]))
    assert np.isfinite(delay_bound(model, whole.services, 1e-3).delay_s)


def test_bursts_of_varying_requests_have_no_model_but_their_meter_bounds_them() -> None:
    whole = path((64_000, 32_000))
    with pytest.raises(NotApplicableError, match="bound them by what their meter lets pass"):
        request_arrival(OnOffArrivals(12e6, 0.1, 0.1, 64_000), whole)
    bucket = metered_arrival(0.8 * RATE, 400_000, whole, LEAST)
    worst = max(whole.virtual_sizes_s / LEAST)
    assert (bucket.rate_bps, bucket.burst_bits) == pytest.approx((0.8 * RATE * worst, 400_000 * worst))
    assert np.isfinite(delay_bound(bucket, whole.services, 1e-3).delay_s)


def test_what_a_meter_lets_pass_of_requests_that_are_smaller_than_they_are_counted_stays_below_its_bound() -> None:
    """One request dearer than all others sets what each is counted as; the meter sees what each of them is."""
    work_s, true_bits, burst = 10e-3, 64_000 * 1514 / 1448, 50
    dear = replace(OUT, bits_per_request=4000.0)
    kinds = request_class((64_000,), 2_400, dear, BACK, work=64_000.0)
    whole = request_path(kinds, DOMAINS[:1], SignedStage(64_000 / work_s, work_s, 1, 64_000.0), DOMAINS[:1])
    bucket = metered_arrival(0.6 * RATE, burst * true_bits, whole, [true_bits])
    bound_s = delay_bound(bucket, whole.services, 1e-3).delay_s
    # As fast as the meter lets them.
    arrival_s = np.concatenate((np.zeros(burst), np.arange(1, 4000) * true_bits / (0.6 * RATE)))
    at_s = arrival_s
    for size, rate, link_s in ((true_bits, RATE, 1e-3), (work_s, 1.0, 0.0), (BACK.wire_bits(2_400), RATE, 1e-3)):
        at_s = fifo(at_s, np.full(at_s.size, size), rate).start_s + size / rate + link_s
    assert 0.9 * bound_s < float((at_s - arrival_s).max()) <= bound_s


def test_no_request_of_a_replayed_trace_waits_longer_than_its_bucket_says() -> None:
    rng = np.random.default_rng(3)
    bits, gaps_s = rng.choice([16_000.0, 64_000.0], 20_000), rng.pareto(1.5, 20_000) * 0.01
    time_s = np.cumsum(gaps_s)
    whole = path((16_000, 64_000))
    period_s = float(time_s[-1]) + 0.01
    bucket = replayed_arrival(time_s, period_s, bits, whole, OUT)
    sizes_s = np.maximum(OUT.wire_bits(bits) / RATE, whole.virtual_sizes_s.min())
    again_s, twice_s = np.concatenate((time_s, time_s + period_s)), np.tile(sizes_s, 2)
    wait_s = fifo(again_s, twice_s, 1.0).start_s - again_s
    assert float((wait_s + twice_s).max()) == pytest.approx(bucket.burst_bits, rel=1e-6)
    assert bucket.rate_bps < 1.0


def test_a_trace_of_requests_is_bounded_by_a_fit_that_its_other_half_does_not_contradict() -> None:
    rng = np.random.default_rng(3)
    bits = rng.choice([16_000.0, 64_000.0], 20_000)
    time_s = np.cumsum(rng.exponential(0.008, 20_000))
    whole = path((16_000, 64_000))
    flow = traced_arrival(time_s, bits, whole, OUT)
    assert np.isfinite(delay_bound(flow, whole.services, 1e-2).delay_s)


def test_a_domains_tail_holds_only_where_nothing_is_busier_with_a_request_than_its_link() -> None:
    """Half a worker takes 4 ms; the line 6.4 ms at least for the larger request, 3.9 for one of 39 kbit."""
    tail = SimpleNamespace(domain="a", tail=SimpleNamespace(rate_bps=int(RATE)))
    silent = SimpleNamespace(domain="b", tail=None)
    envelopes = cast("list[Envelope]", [silent, tail])
    require_forwarded_rate(envelopes, path((64_000,)), [64_000])
    require_forwarded_rate(envelopes, path((64_000, 41_000)), [64_000, 41_000])
    require_forwarded_rate(envelopes[:1], path((64_000, 39_000)), [64_000, 39_000])
    with pytest.raises(WrongRateError, match="domain a: its tail was measured at 10000000 bit/s"):
        require_forwarded_rate(envelopes, path((64_000, 39_000)), [64_000, 39_000])
