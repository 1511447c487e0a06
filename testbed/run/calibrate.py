"""What a warm-up shows of each domain: how far its host lags beyond the latency that the queues alone would have.

The domains here declare no impairment of their own, so all lag beyond the queues' latency is the emulating host's. It
is granted as a deterministic allowance inside the latency each domain promises, and a share of the risk
(`testbed.management.bounds.HOST_RISK`) covers what exceeds it; a gate compares both with the measured window, which the
calibration has not seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from testbed.errors import FidelityError
from testbed.management.bounds import HOST_RISK
from testbed.management.domain import HOST_ALLOWANCE_CAP_S
from testbed.management.federation import Federation
from testbed.run.window import Shaper, Window
from testbed.scenario.model import Scenario
from testbed.telemetry.lag import replay

ALLOWANCE_FLOOR_S = 2.5e-3
"""No host is trusted to be better than this, however quiet its warm-up was."""

HEADROOM = 1.5
"""A short warm-up has not seen the worst; the measured window polices what this factor misses."""

_GRAIN_S = 1e-4


def calibrate(
    scenario: Scenario, federation: Federation, warm_up: Window, shapers: Mapping[str, Shaper]
) -> dict[str, float]:
    """Host allowance of each domain, in seconds.

    Args:
        scenario: Tenants and domains.
        federation: Holds the offers the warm-up ran under.
        warm_up: A window of conforming traffic.
        shapers: Narrowest queue of each tenant as read back.

    Raises:
        FidelityError: The host lags more than the largest allowance it may be granted.
    """
    lags: dict[str, float] = {domain.name: 0.0 for domain in scenario.domains}
    for tenant in scenario.tenants:
        envelopes = federation.envelopes(tenant)
        if not envelopes:
            continue
        queues_alone = [e.latency_s - e.guardrails.host_allowance_s for e in envelopes]
        seen = replay(warm_up.matches[tenant.name].samples, shapers[tenant.name].rate_bps, queues_alone)
        epsilon = tenant.promise.epsilon if tenant.promise else 1e-3
        level = 1.0 - HOST_RISK * epsilon / len(envelopes)
        for d, envelope in enumerate(envelopes):
            crossed = seen.lag_s[np.isfinite(seen.lag_s[:, d]), d]
            if crossed.size:
                lag = float(np.quantile(crossed, level, method="higher"))
                lags[envelope.domain] = max(lags[envelope.domain], lag)
    allowances = {name: max(ALLOWANCE_FLOOR_S, _grain(HEADROOM * lag)) for name, lag in lags.items()}
    slow = {name: value for name, value in allowances.items() if value > HOST_ALLOWANCE_CAP_S}
    if slow:
        raise FidelityError(
            [
                f"domain {name}: the host lagged {value / HEADROOM * 1e3:.1f} ms behind its queues during the warm-up, "
                f"more than can be granted ({HOST_ALLOWANCE_CAP_S / HEADROOM * 1e3:.1f} ms); end what else runs on it "
                "or lower the scenario's rates"
                for name, value in slow.items()
            ]
        )
    return allowances


def _grain(value_s: float) -> float:
    return math.ceil(value_s / _GRAIN_S) * _GRAIN_S
