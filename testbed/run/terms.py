"""What a tenant's measured delays are held against: its queues as read back, its domains' words, the host's share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from testbed.run.reservations import Reservations
from testbed.run.window import Shaper
from testbed.scenario.model import Scenario
from testbed.telemetry.idle_path import NONE, IdlePath
from testbed.telemetry.lag import replay
from testbed.telemetry.samples import Replay, TenantSamples


@dataclass(frozen=True)
class Terms:
    """The terms of one tenant in one window.

    Attributes:
        shaper: Its narrowest queue as read back.
        latencies_s: Latency that each domain of its path promises, what it grants its host included; empty for best
            effort.
        queues_s: Latency of all queues and links of the path together, without anything for the host.
        links_s: Propagation delay of all links of the path together, part of `queues_s`.
        host_s: What the host may add on the whole path.
        idle: What packets take of an idle path, links not counted.
    """

    shaper: Shaper
    latencies_s: tuple[float, ...]
    queues_s: float
    links_s: float
    host_s: float
    idle: IdlePath

    def replay(self, samples: TenantSamples) -> Replay:
        """The tenant's packets in the ideal servers of its path."""
        return replay(
            samples,
            self.shaper.rate_bps,
            self.latencies_s,
            burst_bits=self.shaper.burst_bits,
            links_s=self.links_s,
            idle=self.idle,
        )


def terms_of(
    scenario: Scenario,
    reservations: Reservations,
    shapers: Mapping[str, Shaper],
    host_s: float,
    idle: Mapping[str, IdlePath],
) -> dict[str, Terms]:
    """The terms of every tenant that has a queue of its own, by name."""
    found = {}
    for tenant in scenario.tenants:
        envelopes = reservations.envelopes(tenant)
        if tenant.name in shapers:
            found[tenant.name] = Terms(
                shaper=shapers[tenant.name],
                latencies_s=tuple(envelope.latency_s for envelope in envelopes),
                queues_s=sum(e.latency_s - e.guardrails.host_allowance_s for e in envelopes),
                links_s=sum(domain.link_delay_s for domain in reservations.scenario.path(tenant)),
                host_s=host_s,
                idle=idle.get(tenant.name, NONE),
            )
    return found
