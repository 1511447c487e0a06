"""Small scenarios for the simulator's tests, in Python rather than in files."""

from __future__ import annotations

from dataclasses import replace

from testbed.scenario.model import (
    Arrivals,
    Domain,
    Misbehaviour,
    OnOffArrivals,
    PoissonArrivals,
    Promise,
    Reservation,
    Scenario,
    Tenant,
)

BURSTY = OnOffArrivals(peak_bps=20e6, mean_on_s=5e-3, mean_off_s=7.5e-3, size_bits=11_200)
SMOOTH = PoissonArrivals(rate_per_s=1000.0, size_bits=1_200)

DOMAINS = (Domain("west", 40_000_000), Domain("east", 40_000_000, link_delay_s=2e-3, compute=True))


def tenant(name: str, arrivals: Arrivals, rate_bps: int | None, **more: object) -> Tenant:
    reservation = None
    if rate_bps is not None:
        meter_bps = rate_bps * 9 // 10
        reservation = Reservation(rate_bps, meter_bps, burst_bits=2_000_000, queue_bits=4_000_000)
    promise = Promise(0.2, 0.001) if reservation else None
    made = Tenant(name, arrivals, "east", reservation, promise)
    return replace(made, **more)  # type: ignore[arg-type]


def scenario(*tenants: Tenant, duration_s: float = 5.0, domains: tuple[Domain, ...] = DOMAINS) -> Scenario:
    return Scenario("small", domains, tenants, seed=3, warmup_s=1.0, duration_s=duration_s, allow_zero_delay=True)


def mixed(duration_s: float = 5.0) -> Scenario:
    """A bursty tenant, a flood, a tenant that leaves early, and best effort."""
    return scenario(
        tenant("bursty", BURSTY, 10_000_000),
        tenant("flood", SMOOTH, 4_000_000, misbehaviour=Misbehaviour("flood", offered_bps=8e6)),
        tenant("near", replace(SMOOTH, rate_per_s=500.0), 2_000_000, site="west"),
        tenant("bulk", PoissonArrivals(200.0, 8_000), None),
        duration_s=duration_s,
        domains=(replace(DOMAINS[0], compute=True), DOMAINS[1]),
    )
