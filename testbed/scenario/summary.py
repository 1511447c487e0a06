"""A scenario in a few lines, in which derived guardrails stand like written ones.

For readers of `testbed validate` and of reports; nothing decides anything by these texts.
"""

from __future__ import annotations

from testbed.scenario.model import Arrivals, OnOffArrivals, PoissonArrivals, RenewalArrivals, Scenario, Tenant
from testbed.scenario.units import RATE, SIZE, TIME, quantity


def lines(scenario: Scenario) -> list[str]:
    """Headline, domains, and a block a tenant, each line without its end."""
    width = max(len(tenant.name) for tenant in scenario.tenants)
    times = f"warm-up {quantity(scenario.warmup_s, TIME)}, window {quantity(scenario.duration_s, TIME)}"
    described = [
        f"{scenario.name}: {times}, seed {scenario.seed}, datapath {scenario.datapath}",
        "domains: " + " > ".join(_domains(scenario)),
    ]
    for tenant in scenario.tenants:
        first, *others = _tenant(tenant)
        described.append(f"{tenant.name:{width}}  {first}")
        described.extend(f"{'':{width}}  {line}" for line in others)
    return described


def arrivals_text(arrivals: Arrivals) -> str:
    """Model, mean rate and packet size."""
    size = quantity(arrivals.size_bits, SIZE)
    match arrivals:
        case PoissonArrivals(rate_per_s=rate, size_bits=bits):
            return f"Poisson {quantity(rate * bits, RATE)}, {size}"
        case OnOffArrivals(peak_bps=peak, mean_on_s=on, mean_off_s=off):
            mean = quantity(peak * on / (on + off), RATE)
            return f"on-off {mean} (peak {quantity(peak, RATE)}), {size}"
        case RenewalArrivals(rate_per_s=rate, gap=gap, cv=cv, size_bits=bits):
            return f"{gap} gaps (cv {cv:g}) {quantity(rate * bits, RATE)}, {size}"
        case _:
            return f"trace {arrivals.path.name} at {arrivals.speed_up:g} times its speed, up to {size}"


def _domains(scenario: Scenario) -> list[str]:
    return [
        f"{domain.name} {quantity(domain.link_rate_bps, RATE)}"
        + (f" + {quantity(domain.link_delay_s, TIME)}" if domain.link_delay_s else "")
        + (" (compute)" if domain.compute else "")
        for domain in scenario.domains
    ]


def _tenant(tenant: Tenant) -> list[str]:
    described = [f"declares {arrivals_text(tenant.arrivals)}, served at {tenant.site}"]
    reserved = tenant.reservation
    if reserved is None:
        described.append("best effort")
    else:
        rate, meter = quantity(reserved.rate_bps, RATE), quantity(reserved.meter_rate_bps, RATE)
        burst, queue = quantity(reserved.burst_bits, SIZE), quantity(reserved.queue_bits, SIZE)
        described.append(f"reserves {rate}; meter {meter} with a burst of {burst}; queue {queue}")
    if tenant.promise is not None:
        share = f"{100 * (1 - tenant.promise.epsilon):.6g} %"
        described.append(f"is promised {quantity(tenant.promise.deadline_s, TIME)} for {share} of its packets")
    breach = tenant.misbehaviour
    if breach is not None and breach.offered_bps is not None:
        described.append(f"floods at {quantity(breach.offered_bps, RATE)}")
    elif breach is not None:
        described.append(f"bursts together with the group {breach.group}")
    return described
