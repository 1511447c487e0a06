"""A scenario's words and a domain's integers become one bound."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from testbed.envelope.descriptor import Envelope, Stage, Subject, Validity
from testbed.envelope.guardrails import Guardrails
from testbed.management.bounds import HOST_RISK, bound_tenant
from testbed.scenario.model import (
    Arrivals,
    Misbehaviour,
    MmppArrivals,
    OnOffArrivals,
    PoissonArrivals,
    Promise,
    RenewalArrivals,
    Reservation,
    Tenant,
)

HOST_S = 0.01
DECAY_PER_BIT = 200 / 10e6 - (1000 / 7.5) / 10e6
"""theta* of one on-off fluid: off rate over (peak - R), less on rate over R."""

RESERVED = Reservation(rate_bps=10_000_000, meter_rate_bps=9_500_000, burst_bits=3_200_000, queue_bits=4_000_000)
BURSTY = OnOffArrivals(peak_bps=20e6, mean_on_s=5e-3, mean_off_s=7.5e-3, size_bits=11_200)


def tenant(arrivals: Arrivals = BURSTY, misbehaviour: Misbehaviour | None = None) -> Tenant:
    return Tenant("alpha", arrivals, "east", RESERVED, Promise(0.2, 1e-3), misbehaviour)


def envelopes(count: int = 3, latency_ns: int = 4_000_000, rate_bps: int = 10_000_000) -> list[Envelope]:
    rails = Guardrails(
        reserved_rate_bps=rate_bps, meter_rate_bps=9_500_000, peak_rate_bps=None, burst_bits=3_200_000,
        latency_ns=latency_ns, host_allowance_ns=3_000_000, largest_packet_bits=11_200, delay_cap_ns=400_000_000,
        loss_cap_ppb=0, error_cap_ppb=0, load_cap_ppm=950_000,
    )  # fmt: skip
    subject = Subject("alpha", "reserved", "packet-forwarding", Stage.NETWORK)
    return [Envelope(f"d{i}", subject, rails, None, Validity(0, 2**33), 1, None) for i in range(count)]


def test_the_bursty_tenant_has_the_martingale_bound_of_the_wait_plus_every_latency() -> None:
    found = bound_tenant(tenant(), envelopes(), host_s=HOST_S)
    assert found is not None
    assert found.method == "martingale"
    wait_s = 0.10362 + math.log(1 / (1 - HOST_RISK)) / (DECAY_PER_BIT * 10e6)
    # What three envelopes grant the host is replaced by what it is granted once, on the whole path.
    assert found.bound_s == pytest.approx(wait_s + 3 * (0.004 - 0.003) + HOST_S, abs=2e-5)
    assert found.bound_s == pytest.approx(sum(part.delay_s for part in found.parts))
    assert set(found.rejected) >= {"chernoff", "deterministic"}


@pytest.mark.parametrize(
    ("arrivals", "method"),
    [
        (PoissonArrivals(700.0, 11_200), "lundberg"),
        (RenewalArrivals(700.0, "gamma", 2.0, 11_200), "kingman"),
        (RenewalArrivals(700.0, "deterministic", 0.0, 11_200), "kingman"),
        (MmppArrivals((100.0, 2000.0), ((0.0, 50.0), (200.0, 0.0)), 11_200), "martingale"),
    ],
)
def test_each_model_is_bounded_by_a_theorem_of_its_own(arrivals: Arrivals, method: str) -> None:
    found = bound_tenant(tenant(arrivals), envelopes(), host_s=HOST_S)
    assert found is not None
    assert found.method == method


def test_of_a_tenant_that_misbehaves_only_its_meter_is_believed() -> None:
    found = bound_tenant(tenant(misbehaviour=Misbehaviour("flood", offered_bps=40e6)), envelopes(), host_s=HOST_S)
    assert found is not None
    assert found.method == "deterministic"
    assert found.bound_s == pytest.approx(0.32 + 0.003 + HOST_S)


def test_without_an_emulating_host_the_whole_risk_is_the_queues_and_nothing_is_added() -> None:
    found = bound_tenant(tenant(), envelopes(), host_s=0.0)
    assert found is not None
    assert found.bound_s == pytest.approx(0.10362 + 3 * 0.001, abs=2e-5)
    assert [part.name for part in found.parts] == ["own burst", "d0", "d1", "d2"]
    assert not any("host" in assumption for assumption in found.assumptions)


def test_best_effort_has_no_bound() -> None:
    assert bound_tenant(replace(tenant(), reservation=None, promise=None), envelopes(), host_s=HOST_S) is None


def test_one_slower_domain_sets_the_rate_of_the_whole_path() -> None:
    slower = [*envelopes(2), *envelopes(1, rate_bps=9_600_000)]
    fast, slow = bound_tenant(tenant(), envelopes(), host_s=HOST_S), bound_tenant(tenant(), slower, host_s=HOST_S)
    assert fast is not None
    assert slow is not None
    assert slow.bound_s > fast.bound_s


def test_the_curve_passes_through_the_bound() -> None:
    found = bound_tenant(tenant(), envelopes(), host_s=HOST_S)
    assert found is not None
    above = [delay for epsilon, delay in found.curve if epsilon >= 1e-3]
    below = [delay for epsilon, delay in found.curve if epsilon <= 1e-3]
    assert max(above) <= found.bound_s <= min(below)


def test_bursts_that_coincide_with_others_leave_a_reserved_tenant_its_own_law_and_a_flood_does_not() -> None:
    declared, together, flood = (
        bound_tenant(tenant(misbehaviour=breach), envelopes(), host_s=HOST_S)
        for breach in (
            None,
            Misbehaviour("correlated", group="g", strength=0.7),
            Misbehaviour("flood", offered_bps=30e6),
        )
    )
    assert declared is not None
    assert together is not None
    assert flood is not None
    assert together.bound_s == declared.bound_s < flood.bound_s
    assert flood.method == "deterministic"
