"""What the serving domains may promise of their servers, as a warm-up shows it.

Of a server that a scenario describes only the share of each tenant is known beforehand. How long it computes, and how
much later than a share of an ideal server the host makes its requests, is measured and then signed: the domain answers
for it in the windows that follow, as for its network. A server that is one process of a busy machine is paused now and
then; what that adds to a computation is the host's lateness, not the model's cost, and is granted as such. Agents of a
federation declare their computations beforehand; theirs get the tail that a warm-up supports.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from testbed.audit.quantile import quantile as latency_quantile
from testbed.envelope.calibration import CONFIDENCE, Calibration, digest
from testbed.envelope.descriptor import Envelope, Evidence, Validity
from testbed.envelope.units import bits_up, ppm_down
from testbed.errors import FidelityError
from testbed.management.requests import ComputeReservation, served_rate_bps, turn_s
from testbed.management.sealing import Computation, compute_envelope, computing_rate_bps
from testbed.run.calibrate import DOMAIN_FLOOR_S, HEADROOM, PATH_CAP_S
from testbed.run.excess import Excess, computed, computed_under, refuted, supported
from testbed.run.request_terms import request_risk
from testbed.run.requests import WORKERS, RequestOutcome, asking
from testbed.run.reservations import Reservations
from testbed.scenario.model import Requests, Scenario, Tenant
from testbed.telemetry.fidelity import quantile
from testbed.traffic.request_demand import demand, least_wire_bits
from testbed.traffic.request_makers import maker_of

COMPUTED_WITHIN = 0.95
"""Share of its computations that a server promises to end in the time it signs. The others are paused ones: what they
take beyond it is the host's, which its allowance covers and a gate polices."""

_GRAIN_S = 1e-4
_ANY_TIME = Validity(0, 1)


def computations(
    scenario: Scenario, reservations: Reservations, outcomes: Mapping[str, RequestOutcome]
) -> dict[str, Computation]:
    """What may be promised of the servers to every request tenant with a reservation, by name.

    Args:
        scenario: Tenants and their shares.
        reservations: What their networks promise.
        outcomes: The warm-up, by request tenant.

    Raises:
        FidelityError: The warm-up answered nothing.
    """
    serving = [(tenant, asked) for tenant, asked in asking(scenario) if tenant.reservation is not None]
    sites = {tenant.site for tenant, _ in serving}
    # Of a site where nobody reserves nothing is promised.
    shared = {tenant.name: outcomes[tenant.name] for tenant, _ in asking(scenario) if tenant.site in sites}
    computed_s = {name: computation_s(name, outcome) for name, outcome in shared.items()}
    # What turns go by is the server's own estimate of just this.
    usual_s = {name: float(np.nanmedian(outcome.match.samples.compute_s)) for name, outcome in shared.items()}
    found = {}
    for tenant, asked in serving:
        name, envelopes = tenant.name, reservations.envelopes(tenant)
        if not envelopes:
            continue
        beside = [
            (other.compute_share, computed_s[each.name], usual_s[each.name])
            for each, other in asking(scenario)
            if each.name != name and each.site == tenant.site
        ]
        share = ComputeReservation(
            WORKERS,
            asked.compute_share,
            computed_s[name],
            foreign_work_s=tuple(longest_s for _, longest_s, _ in beside),
            turn_s=turn_s(asked.compute_share, computed_s[name], usual_s[name], beside),
        )
        network_bps = min(envelope.guardrails.reserved_rate_bps for envelope in envelopes)
        found[tenant.name] = computation(
            tenant, asked, share, outcomes[tenant.name], network_bps=network_bps, slow_down=scenario.slow_down
        )
    return found


def computation(
    tenant: Tenant,
    asked: Requests,
    share: ComputeReservation,
    outcome: RequestOutcome,
    *,
    network_bps: int,
    slow_down: float = 1.0,
) -> Computation:
    """What one tenant may be promised.

    The domain declares that its server has no impairment, as it does of its switches, unless the warm-up refutes that
    with the host's share granted; then it signs the tail that was seen.

    Args:
        tenant: With a reservation.
        asked: What it asks.
        share: Of the server, with the time of a computation.
        outcome: Its warm-up.
        network_bps: Smallest rate reserved on its way.
        slow_down: What limits on times are multiplied by.
    """
    if tenant.reservation is None:
        raise ValueError(f"tenant {tenant.name}: best effort is promised nothing")
    samples, stage = outcome.match.samples, share.stage
    sizes = demand(tenant.arrivals, asked.size, maker_of(tenant.name, asked, tenant.arrivals)).message_bits
    largest_bits = bits_up(float(outcome.match.out.wire_bits(sizes.max())))
    rate_bps = max(2, computing_rate_bps(share.share, share.workers, largest_bits, share.charged_s))
    behind = computed(samples, rate_bps, largest_bits, stage.latency_s)
    late_s = quantile(behind.lag_s - stage.latency_s, 1.0 - request_risk(tenant)) * HEADROOM
    host_s = min(slow_down * PATH_CAP_S, max(DOMAIN_FLOOR_S, math.ceil(late_s / _GRAIN_S) * _GRAIN_S))
    promised = declared_computation(tenant, asked, rate_bps, largest_bits, latency_s=stage.latency_s, host_s=host_s)
    declared = compute_envelope(tenant.site, promised, version=1, validity=_ANY_TIME)
    seen = computed_under(samples, declared)
    if not seen.none and not refuted([(declared, seen)], host_share=request_risk(tenant)):
        return promised
    found = server_calibration(outcome, declared, network_bps, declares_none=True)
    if found is None:
        return promised
    error_ppb = found.stochastic.error_ppb if found.stochastic is not None and seen.errors else 0
    return replace(promised, calibrated=(found.stochastic, found.evidence), error_cap_ppb=error_ppb)


def declared_computation(
    tenant: Tenant, asked: Requests, rate_bps: int, largest_bits: int, *, latency_s: float, host_s: float
) -> Computation:
    """What a share of a server does for a tenant's requests, without impairment.

    Args:
        tenant: With a reservation.
        asked: What it asks.
        rate_bps: Of the share, in bits of requests that all count as the largest.
        largest_bits: Largest request on the wire.
        latency_s: Of the share.
        host_s: What the emulating host may add.
    """
    if tenant.reservation is None:
        raise ValueError(f"tenant {tenant.name}: best effort is promised nothing")
    return Computation(
        tenant=tenant.name,
        model=asked.model,
        rate_bps=rate_bps,
        latency_s=latency_s + host_s,
        host_allowance_s=host_s,
        delay_cap_s=asked.timeout_s,
        largest_request_bits=largest_bits,
        meter_rate_bps=min(tenant.reservation.meter_rate_bps, rate_bps - 1),
        burst_bits=max(int(tenant.reservation.burst_bits), largest_bits),
    )


def server_calibration(
    outcome: RequestOutcome, declared: Envelope, network_bps: int, *, declares_none: bool
) -> Calibration | None:
    """What a domain may sign of its server: a declaration where true and wanted, else a tail at the rate of the path.

    Args:
        outcome: The tenant's warm-up.
        declared: What the server promises, without a tail.
        network_bps: Smallest rate reserved on the way.
        declares_none: Whether the domain would declare that its server has no impairment.

    Returns:
        None where too little is known.
    """
    rails, record, match = declared.guardrails, outcome.record, outcome.match
    seen = computed_under(match.samples, declared)
    if not seen.excess_s.size:
        return None
    if declares_none and seen.none:
        return supported(seen, rails.reserved_rate_bps, declares_none=True) or Calibration(None, _unknown(seen))
    rate_bps = served_rate_bps(
        rails.largest_packet_bits,
        float(least_wire_bits(8 * record.request_bytes.max())),
        float(match.back.wire_bits(8 * record.response_bytes.max())),
        network_bps=network_bps,
        server_bps=rails.reserved_rate_bps,
    )
    counted = computed(match.samples, rate_bps, rails.largest_packet_bits, declared.latency_s)
    return supported(counted, rate_bps, declares_none=False)


def computation_s(name: str, outcome: RequestOutcome) -> float:
    """What the server promises that a request of the tenant computes.

    The upper confidence limit of the time that `COMPUTED_WITHIN` of them keep, dependence paid for; of a warm-up that
    cannot tell it, half as much again as the longest one.

    Raises:
        FidelityError: The warm-up answered nothing.
    """
    compute_s = outcome.match.samples.compute_s
    known = compute_s[np.isfinite(compute_s)]
    if not known.size:
        raise FidelityError(
            f"tenant {name}: no request was answered during the warm-up ({outcome.record.summary()['status']}); "
            "its timeout or its reservation is too small, or the host too slow"
        )
    upper_s = latency_quantile(known, COMPUTED_WITHIN).upper_s
    return HEADROOM * float(known.max()) if upper_s is None else upper_s


def _unknown(seen: Excess) -> Evidence:
    """What a declaration rests on whose requests do not tell how they cling together: they count as one."""
    how = "nothing beyond T; too few to know how they cling together; declared without impairment"
    return Evidence(digest(seen.excess_s), seen.excess_s.size, 1, how, ppm_down(CONFIDENCE))
