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
    parts: tuple[int, ...] = (),
    choices: tuple[int, ...] = (),
) -> Scenario:
    """`count` domains, compute in `compute` (the last one by default), a tenant for each of `sites`.

    With `parts`, the segment of each domain, they stand beside each other; each tenant then takes, of each segment
    before its site's, the domain that its entry of `choices` says, wrapped round.
    """
    offering = compute or (count,)
    domains = tuple(
        Domain(
            f"dom{i}",
            40_000_000,
            delays_s[i - 1] if delays_s else 0.0,
            compute=i in offering,
            segment=f"part{parts[i - 1]}" if parts else None,
        )
        for i in range(1, count + 1)
    )
    tenants = tuple(
        Tenant(
            f"t{number}",
            PoissonArrivals(100.0, 8000),
            f"dom{site}",
            RESERVATION,
            way=_way(site, parts, choices[(number - 1) % len(choices)]) if parts else None,
        )
        for number, site in enumerate(sites or (offering[-1], offering[-1]), 1)
    )
    return Scenario("unit", domains, tenants, seed=1, warmup_s=1.0, duration_s=1.0)


def _way(site: int, parts: tuple[int, ...], choice: int) -> tuple[str, ...]:
    before = [[i for i, part in enumerate(parts, 1) if part == k] for k in range(1, parts[site - 1])]
    return (*(f"dom{part[choice % len(part)]}" for part in before), f"dom{site}")
