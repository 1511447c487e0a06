"""What request tenants are held against: calibrated from a warm-up, policed in every measured window.

A warm-up tells what messages cost on the wire, and how much later the emulating host makes requests than queues, shares
and the ideal order of work would. What domains promise of networks and servers is what they have signed
(`testbed.run.serving`). The measured window, which the calibration has not seen, is compared with all of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from testbed.management.bounds import HOST_RISK
from testbed.management.request_bounds import RequestTerms, services_of
from testbed.management.requests import require_forwarded_rate
from testbed.run.calibrate import HEADROOM, PATH_FLOOR_S
from testbed.run.requests import WORKERS, RequestOutcome, asking
from testbed.run.reservations import Reservations
from testbed.run.window import Shaper
from testbed.scenario.model import Scenario, Tenant
from testbed.telemetry.fidelity import LATENESS_MAX_S, Gate, lateness, percentile, quantile
from testbed.telemetry.idle_path import NONE, IdlePath, law_s
from testbed.telemetry.lag import fifo
from testbed.traffic.request_demand import demand
from testbed.traffic.request_makers import maker_of

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

HOST_CAP_S = 40e-3
"""Two ways and two ends: twice what a host may add to packets."""

REPLAY_SHARE = 0.05
"""How far the network part may be from the ideal queue's, at the promised percentile."""

RESOLVED_S = 2e-3
"""What a sender in Python, HTTP/2 and its TCP can be resolved to."""

LATENESS_P999_S = 5e-3
"""Of handing a request to its connection; what that makes of it is in the client's wait."""

_GRAIN_S = 1e-4


@dataclass(frozen=True)
class Granted:
    """What one request tenant is held against.

    Attributes:
        terms: What the warm-up says of it and its path.
        host_s: What the host may add.
        idle: What requests take on an idle path beyond their own transmission: see `idle_law_s`.
        ends_s: Part of `idle_s`: until the request's first byte has entered the first domain.
    """

    terms: RequestTerms
    host_s: float
    idle: IdlePath = NONE
    ends_s: float = 0.0

    def bracketed(self, cool_down: RequestOutcome, shaper: Shaper, window_s: float) -> Granted:
        """The same with what a cool-down behind a window says of the idle path.

        Args:
            cool_down: The tenant's requests there.
            shaper: Its narrowest queue.
            window_s: Length of the window.
        """
        idle = IdlePath(self.idle.before_s, idle_law_s(cool_down, shaper), window_s)
        return replace(self, idle=idle, ends_s=max(self.ends_s, idle_ends_s(cool_down, shaper)))

    @property
    def declared_s(self) -> float:
        """What the domains of the path declare, without their host, for a request that waits for nobody."""
        return sum(service.latency_s for service in self.terms.services)


def calibrate_requests(
    scenario: Scenario,
    reservations: Reservations,
    outcomes: Mapping[str, RequestOutcome],
    shapers: Mapping[str, Shaper],
) -> dict[str, Granted]:
    """The terms of every request tenant with a reservation, by name.

    Args:
        scenario: Tenants and domains.
        reservations: Holds what domains have signed of their networks and servers.
        outcomes: The warm-up, by request tenant.
        shapers: Each tenant's narrowest queue, as read back.
    """
    found = {}
    for tenant, asked in asking(scenario):
        envelopes, server = reservations.envelopes(tenant), reservations.server(tenant)
        if not envelopes or server is None:
            continue
        outcome = outcomes[tenant.name]
        maker = maker_of(tenant.name, asked, tenant.arrivals)
        terms = RequestTerms(
            demand=demand(tenant.arrivals, asked.size, maker),
            out=outcome.match.out,
            back=outcome.match.back,
            answer_bits=8 * int(outcome.record.response_bytes.max()),
            server=server,
            workers=WORKERS,
            services=services_of(envelopes),
        )
        require_forwarded_rate(envelopes, terms.path, terms.least_bits)
        late_s = host_lateness(outcome, terms)
        late_s = late_s[np.isfinite(late_s)]
        needed_s = quantile(late_s, 1.0 - request_risk(tenant)) * HEADROOM
        host_s = min(scenario.slow_down * HOST_CAP_S, max(PATH_FLOOR_S, math.ceil(needed_s / _GRAIN_S) * _GRAIN_S))
        shaper = shapers[tenant.name]
        found[tenant.name] = Granted(
            terms,
            host_s,
            IdlePath(idle_law_s(outcome, shaper)),
            idle_ends_s(outcome, shaper),
        )
    return found


def host_lateness(outcome: RequestOutcome, terms: RequestTerms) -> FloatArray:
    """How much later than its path alone explains each request was answered; NaN without an answer; [n].

    That is its latency less its wait in one queue of virtual sizes, fed as the requests were meant to be sent, less
    every latency of the path.
    """
    record, path = outcome.record, terms.path
    sent = record.request_bytes > 0
    sizes_s = terms.virtual_s((8 * record.request_bytes[sent]).astype(np.float64))
    wait_s = np.full(len(record.schedule), np.nan)
    wait_s[sent] = _wait_s(record.schedule.time_s[sent], sizes_s)
    return np.asarray(record.latency_s - wait_s - sum(service.latency_s for service in path.services))


def ideal_network_s(outcome: RequestOutcome, shaper: Shaper, idle: IdlePath = NONE) -> FloatArray:
    """Network part of each request sent, in an ideal queue of the rate and burst read back; NaN otherwise; [n].

    Fed its own calls at their intended times, each as large on the wire as the messages of the window were on average.
    Its own transmission counts once, but for its last packet, which HTB sends as soon as it has paid for those before;
    the burst, which a queue sends at once after a pause, is credited.

    Args:
        outcome: The window.
        shaper: The queue.
        idle: What the path takes of a request, queue or no queue.
    """
    sent, wait_s, own_s = _ideal_parts_s(outcome, shaper)
    found = np.full(sent.size, np.nan)
    found[sent] = np.maximum(0.0, wait_s + own_s) + idle.drawn_s(outcome.record.schedule.time_s[sent])
    return found


def idle_law_s(outcome: RequestOutcome, shaper: Shaper) -> FloatArray:
    """What each request that waits for nobody takes beyond its own transmission, [k]; empty if every one waited.

    That is the sender, two TCP stacks, every switch and every link once: see `testbed.telemetry.idle_path`.
    """
    sent, wait_s, own_s = _ideal_parts_s(outcome, shaper)
    beyond_s = outcome.match.samples.network_out_s[sent] - np.maximum(0.0, own_s)
    return law_s(beyond_s, wait_s)


def idle_ends_s(outcome: RequestOutcome, shaper: Shaper) -> float:
    """Of `idle_law_s`, what sender and the client's TCP take: until the first byte is in the first domain."""
    sent, wait_s, _ = _ideal_parts_s(outcome, shaper)
    samples = outcome.match.samples
    handed_s = (samples.first_s - samples.intended_s)[sent]
    alone = (wait_s == 0.0) & np.isfinite(handed_s)
    return float(np.median(handed_s[alone])) if alone.any() else 0.0


def request_gates(
    tenant: Tenant,
    outcome: RequestOutcome,
    granted: Granted | None,
    shaper: Shaper | None,
    *,
    slow_down: float = 1.0,
    outside: BoolArray | None = None,
) -> list[Gate]:
    """Everything that must hold of a request tenant's window for it to count.

    Args:
        tenant: Whose.
        outcome: The window.
        granted: What its path takes, None for best effort.
        shaper: Its narrowest queue, None for best effort.
        slow_down: What limits on times are multiplied by.
        outside: Which requests no fault was to touch, [n]; None for all.
    """
    resolved_s = slow_down * RESOLVED_S
    kept = np.ones(len(outcome.record.schedule), dtype=np.bool_) if outside is None else outside
    name, untouched = tenant.name, outcome.take(kept)
    record, samples = untouched.record, untouched.match.samples
    lost = int(np.count_nonzero(record.answered & ~np.isfinite(samples.residual_s)))
    gates = [
        Gate.at_most(f"requests found, {name}", lost, 0, "answered requests that a capture or a stamp is missing of"),
        *lateness(name, record.lateness_s, p999_s=slow_down * LATENESS_P999_S, longest_s=slow_down * LATENESS_MAX_S),
    ]
    if granted is None or shaper is None or tenant.promise is None:
        return gates
    # What a queue holds is also what was sent into it while a fault lasted.
    late_s = host_lateness(outcome, granted.terms)[kept]
    beyond, answered = int(np.count_nonzero(late_s > granted.host_s)), int(np.count_nonzero(np.isfinite(late_s)))
    level = 1.0 - tenant.promise.epsilon
    both = np.isfinite(samples.network_out_s)
    ideal = ideal_network_s(outcome, shaper, granted.idle)[kept]
    both &= np.isfinite(ideal)
    measured_s, ideal_s = quantile(samples.network_out_s[both], level), quantile(ideal[both], level)
    return [
        *gates,
        Gate.at_most(
            f"host allowance, {name}",
            beyond / answered if answered else 1.0,
            request_risk(tenant),
            f"{beyond} of {answered} requests more than {granted.host_s * 1e3:.1f} ms later than their path explains",
        ),
        Gate.at_most(
            f"idle sender, {name}",
            granted.ends_s,
            resolved_s,
            "what passed of a request of the warm-up that waited for nobody until its first byte was in the network",
            "s",
        ),
        Gate.at_most(
            f"idle path, {name}",
            granted.idle.typical_s - granted.ends_s,
            granted.declared_s,
            "what it then took beyond its own transmission, against what the domains declare without their host",
            "s",
        ),
        Gate.at_most(
            f"replay, {name}",
            abs(measured_s - ideal_s),
            max(REPLAY_SHARE * ideal_s, resolved_s),
            f"network part {percentile(level)} measured {measured_s * 1e3:.3f} ms, ideal {ideal_s * 1e3:.3f} ms",
            "s",
        ),
    ]


def request_risk(tenant: Tenant) -> float:
    """Share of a tenant's requests that the host may delay beyond its allowance."""
    return HOST_RISK * (tenant.promise.epsilon if tenant.promise else 1e-3)


def _ideal_parts_s(outcome: RequestOutcome, shaper: Shaper) -> tuple[BoolArray, FloatArray, FloatArray]:
    """Which requests were sent, [n]; how long each of them waits in the ideal queue, and for itself, [those]."""
    sent, bits = _wire_bits(outcome)
    wait_s = _wait_s(outcome.record.schedule.time_s[sent], bits / shaper.rate_bps)
    before_last_bits = np.maximum(0.0, bits - outcome.match.last_bits[sent])
    return sent, wait_s, (before_last_bits - shaper.burst_bits) / shaper.rate_bps


def _wire_bits(outcome: RequestOutcome) -> tuple[BoolArray, FloatArray]:
    """Which requests were sent, [n], and what each of them is on the wire, [those]."""
    request_bytes = outcome.record.request_bytes
    sent = request_bytes > 0
    return sent, np.asarray(outcome.match.out.factor * 8.0 * request_bytes[sent])


def _wait_s(time_s: FloatArray, service_s: FloatArray) -> FloatArray:
    return np.asarray(fifo(time_s, service_s, 1.0).start_s - time_s)
