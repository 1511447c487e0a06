"""Small scenarios for tests of what is built from them."""

from __future__ import annotations

from testbed.scenario.model import Domain, PoissonArrivals, Reservation, Scenario, Tenant

RESERVATION = Reservation(rate_bps=5_000_000, meter_rate_bps=4_000_000, burst_bits=100_000, queue_bits=400_000)


def scenario(
    count: int = 3,
    *,
    compute: tuple[int, ...] = (),
    delays_s: tuple[float, ...] = (),
    sites: tuple[int, ...] = (),
) -> Scenario:
    """`count` domains, compute in `compute` (the last one by default), a tenant for each of `sites`."""
    offering = compute or (count,)
    domains = tuple(
        Domain(f"dom{i}", 40_000_000, delays_s[i - 1] if delays_s else 0.0, compute=i in offering)
        for i in range(1, count + 1)
    )
    tenants = tuple(
        Tenant(f"t{number}", PoissonArrivals(100.0, 8000), f"dom{site}", RESERVATION)
        for number, site in enumerate(sites or (offering[-1], offering[-1]), 1)
    )
    return Scenario("unit", domains, tenants, seed=1, warmup_s=1.0, duration_s=1.0)
