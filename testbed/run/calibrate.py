"""What a warm-up shows of the emulating host: how much later it makes packets than queues alone would.

The domains here declare no impairment of their own, so all lateness beyond their queues is the host's. It is granted
twice, for two purposes. Each domain signs a latency with an allowance in it, which its own contract is judged by. On a
whole path those allowances are not added up: a host that stands still delays a packet once, wherever it is, so the
end-to-end bound counts one allowance for the path, and a share of the risk
(`testbed.management.bounds.HOST_RISK`) covers what exceeds it. A gate compares both with the measured window, which the
calibration has not seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from testbed.management.bounds import HOST_RISK
from testbed.management.domain import HOST_ALLOWANCE_CAP_S
from testbed.run.reservations import Reservations
from testbed.run.terms import Terms
from testbed.run.window import Window
from testbed.scenario.model import Scenario
from testbed.telemetry.fidelity import host_lateness
from testbed.telemetry.idle_path import IdlePath, law_s
from testbed.telemetry.lag import replay

DOMAIN_FLOOR_S = 2.5e-3
"""No host is trusted to be better than this in a domain, however quiet its warm-up was."""

PATH_FLOOR_S = 10e-3
"""The same for a whole path. A minute of an ordinary virtual machine has a few pauses of 5 to 8 ms in it, and a short
warm-up may have none."""

PATH_CAP_S = 20e-3
"""A host that needs more is no place to measure tails of some ten milliseconds: it gets this, and the gate says so."""

HEADROOM = 1.5
"""A short warm-up has not seen the worst; the measured window polices what this factor misses."""

_GRAIN_S = 1e-4


@dataclass(frozen=True)
class Allowances:
    """What the host is granted.

    Attributes:
        domains_s: Per domain, part of the latency it signs.
        path_s: On a whole path, from the intended send time to the server.
        idle: Per tenant that sends packets, what its path takes of those that wait for nobody. It is granted to the
            ideal replay alone: no bound counts it.
    """

    domains_s: Mapping[str, float]
    path_s: float
    idle: Mapping[str, IdlePath]


def calibrate(
    scenario: Scenario, reservations: Reservations, warm_up: Window, terms: Mapping[str, Terms]
) -> Allowances:
    """What the host is granted from now on.

    Args:
        scenario: Tenants and domains.
        reservations: Holds the offers the warm-up ran under.
        warm_up: A window of conforming traffic.
        terms: What the warm-up ran under, by tenant.
    """
    lags = {domain.name: 0.0 for domain in scenario.domains}
    latest_s = 0.0
    idle = {}
    for tenant in scenario.tenants:
        envelopes = reservations.envelopes(tenant)
        if not envelopes or tenant.requests is not None:
            continue
        samples, own = warm_up.matches[tenant.name].samples, terms[tenant.name]
        seen = replay(samples, own.shaper.rate_bps, [e.latency_s - e.guardrails.host_allowance_s for e in envelopes])
        risk = HOST_RISK * (tenant.promise.epsilon if tenant.promise else 1e-3)
        latest_s = max(latest_s, _quantile(host_lateness(samples, seen, own.queues_s), 1.0 - risk))
        idle[tenant.name] = IdlePath(law_s(samples.network_s - own.links_s, seen.ideal_s))
        for d, envelope in enumerate(envelopes):
            lag_s = _quantile(seen.lag_s[:, d], 1.0 - risk / len(envelopes))
            lags[envelope.domain] = max(lags[envelope.domain], lag_s)
    # Floors are the host's, which is as fast as ever; caps say how much of a tail it may own.
    path_cap_s, domain_cap_s = scenario.slow_down * PATH_CAP_S, scenario.slow_down * HOST_ALLOWANCE_CAP_S
    path_s = min(path_cap_s, max(PATH_FLOOR_S, _grain(HEADROOM * latest_s)))
    domains_s = {name: min(domain_cap_s, max(DOMAIN_FLOOR_S, _grain(HEADROOM * lag))) for name, lag in lags.items()}
    return Allowances(domains_s, path_s, idle)


def bracketed(
    known: Mapping[str, IdlePath], cool_down: Window, terms: Mapping[str, Terms], window_s: float
) -> dict[str, IdlePath]:
    """What idle paths take of packets in a window, by tenant, with what a cool-down behind it says.

    Args:
        known: What the warm-up said.
        cool_down: A window of conforming traffic.
        terms: What it ran under.
        window_s: Length of the window between the two.
    """
    found = {}
    for name, before in known.items():
        samples, own = cool_down.matches[name].samples, terms[name]
        after_s = law_s(samples.network_s - own.links_s, own.replay(samples).ideal_s)
        found[name] = IdlePath(before.before_s, after_s, window_s)
    return found


def _quantile(values: np.ndarray, level: float) -> float:
    """Order statistic of what was delivered, 0 if nothing was."""
    finite = values[np.isfinite(values)]
    return float(np.quantile(finite, level, method="higher")) if finite.size else 0.0


def _grain(value_s: float) -> float:
    return math.ceil(value_s / _GRAIN_S) * _GRAIN_S
