"""Carries a scenario's tenants through every domain: offers in path order, verified, then prepare and commit.

Domains do not know each other; here is who walks the path. A later domain's meter must let through what earlier domains
may have bunched together, so its burst follows from their promises. Any failure releases what was held everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from controller.client import CallError
from controller.program import DomainProgram
from testbed.calculus import TokenBucket, burst_after
from testbed.envelope.descriptor import Envelope
from testbed.envelope.keys import PublicKey, SigningKey
from testbed.envelope.service import to_service
from testbed.envelope.store import verify
from testbed.envelope.trust import Trust
from testbed.errors import ReservationError, TestbedError
from testbed.management.domain import Controller, DomainAgent
from testbed.management.sealing import Computation, Demand
from testbed.management.sizing import PAUSE_S
from testbed.scenario.model import Reservation, Scenario, Tenant, whole_kbit


@dataclass(frozen=True)
class Signed:
    """A verified envelope beside the bytes that carry it."""

    envelope: Envelope
    sealed: bytes


@dataclass
class Federation:
    """All domains of a scenario as seen by whoever reserves across them.

    Attributes:
        scenario: Tenants and their paths.
        agents: One per domain, by name.
        addresses: (client, server) address of each tenant, by name.
        trust: Who may sign for which domain.
        clock: Unix time in seconds.
        offers: What each domain signed for each tenant that crosses it, of its network.
        servers: What was signed of the servers, by tenant, with the latest offers.
    """

    scenario: Scenario
    agents: Mapping[str, DomainAgent]
    addresses: Mapping[str, tuple[str, str]]
    trust: Trust
    clock: Callable[[], float] = time.time
    offers: dict[str, dict[str, Signed]] = field(default_factory=dict)
    servers: dict[str, Signed] = field(default_factory=dict)

    def collect_offers(self) -> None:
        """Ask every domain, in path order, for an envelope for each tenant that crosses it.

        Bursts stay those of the first offers, so that what is installed need not change when it is asked again.

        Raises:
            EnvelopeError: An offer does not verify.
            ReservationError: A domain cannot carry what is asked.
        """
        previous = self.offers
        self.offers, self.servers = {}, {}
        numbers = {tenant.name: number for number, tenant in enumerate(self.scenario.tenants, start=1)}
        for domain in self.scenario.domains:
            crossing = self._crossing(domain.name)
            demands = [self._demand(tenant, numbers[tenant.name], domain.name, previous) for tenant in crossing]
            sealed = self.agents[domain.name].offer(demands)
            self.offers[domain.name] = {
                tenant: Signed(verify(data, self.trust, self.clock()), data) for tenant, data in sealed.items()
            }

    def reserve(self) -> None:
        """Prepare every offer in every domain, then commit all of them.

        Raises:
            TestbedError: A domain refused or could not install; nothing is left reserved anywhere.
        """
        try:
            for name, agent in self.agents.items():
                for tenant in self._crossing(name):
                    signed = self.offers[name].get(tenant.name)
                    agent.prepare(tenant.name, b"" if signed is None else signed.sealed)
            for agent in self.agents.values():
                agent.commit()
        except TestbedError:
            self.release()
            raise

    def release(self) -> None:
        """Give everything back in every domain; the first failure is raised after all were asked."""
        failures: list[TestbedError] = []
        for agent in self.agents.values():
            try:
                agent.release()
            except TestbedError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def calibrated(self, domains_s: Mapping[str, float], _warm_up: object, /) -> None:
        """Have every domain sign again with what it may grant the emulating host; what is installed stays.

        Raises:
            TestbedError: As `collect_offers` and `reserve`.
        """
        for name, allowance_s in domains_s.items():
            self.agents[name].host_allowance_s = allowance_s
        self.collect_offers()
        self.reserve()

    def serve(self, promised: Mapping[str, Computation]) -> None:
        """Have the serving domains sign what tenants are promised of their servers, with the offers in force.

        Args:
            promised: By tenant, with the meter and the burst of its reservation; what earlier domains may have held
                back arrives at the server at once, and is added to the burst.

        Raises:
            EnvelopeError: No promise of this kind can be signed.
        """
        for tenant in self.scenario.tenants:
            if tenant.name in promised:
                data = self.agents[tenant.site].serve(self._arriving(tenant, promised[tenant.name]))
                self.servers[tenant.name] = Signed(verify(data, self.trust, self.clock()), data)

    @property
    def programs(self) -> dict[str, DomainProgram]:
        """What each domain's controller is to have installed."""
        return {name: agent.program for name, agent in self.agents.items()}

    @property
    def public_keys(self) -> dict[str, PublicKey]:
        """What verifies each domain's envelopes."""
        return {name: agent.public_key for name, agent in self.agents.items()}

    def signed(self) -> list[Signed]:
        """Every envelope in force, those of servers included."""
        return [*(signed for offers in self.offers.values() for signed in offers.values()), *self.servers.values()]

    def plan(self) -> dict[str, Any]:
        """Nothing: the scenario says who serves whom."""
        return {}

    def drift(self) -> tuple[str, ...]:
        """Differences between what is committed and what the switches hold, all domains."""
        found: list[str] = []
        for name, agent in self.agents.items():
            try:
                found += agent.drift()
            except CallError as error:
                found += [f"domain {name}: {problem}" for problem in error.problems]
        return tuple(found)

    def envelopes(self, tenant: Tenant) -> list[Envelope]:
        """A tenant's envelopes in path order; empty for best effort."""
        names = [domain.name for domain in self.scenario.path(tenant)]
        return [self.offers[name][tenant.name].envelope for name in names if tenant.name in self.offers[name]]

    def server(self, tenant: Tenant) -> Envelope | None:
        """What the tenant is promised of its server; None where nothing was signed."""
        signed = self.servers.get(tenant.name)
        return None if signed is None else signed.envelope

    def _crossing(self, domain: str) -> list[Tenant]:
        return [t for t in self.scenario.tenants if any(d.name == domain for d in self.scenario.path(t))]

    def _demand(self, tenant: Tenant, number: int, domain: str, previous: Mapping[str, Mapping[str, Signed]]) -> Demand:
        client, server = self.addresses[tenant.name]
        earlier = previous.get(domain, {}).get(tenant.name)
        return Demand(
            tenant=tenant.name,
            number=number,
            client=client,
            server=server,
            reservation=tenant.reservation,
            burst_bits=self._burst_bits(tenant, domain) if earlier is None else earlier.envelope.guardrails.burst_bits,
            largest_packet_bits=tenant.packet_bits,
        )

    def _burst_bits(self, tenant: Tenant, domain: str) -> int:
        """The burst of the tenant's meter in `domain`, whose upstream domains have offered already."""
        if tenant.reservation is None:
            return 0
        path = [d.name for d in self.scenario.path(tenant)]
        upstream = [self.offers[name][tenant.name].envelope for name in path[: path.index(domain)]]
        return _burst_behind(upstream, tenant.reservation)

    def _arriving(self, tenant: Tenant, promised: Computation) -> Computation:
        """The same promise for requests in the bursts in which they may arrive."""
        if tenant.reservation is None:
            raise ReservationError(f"tenant {tenant.name}: best effort is not promised anything of a server either")
        burst_bits = _burst_behind(self.envelopes(tenant), tenant.reservation)
        return replace(promised, burst_bits=max(burst_bits, promised.largest_request_bits))


def _burst_behind(upstream: Sequence[Envelope], asked: Reservation) -> int:
    """The burst in which what passed the first meter may arrive behind these domains, as a meter holds it.

    A hard cap on the excess makes it sure; a packet that exceeds the cap is a miss of its domain.
    """
    bucket = TokenBucket(asked.meter_rate_bps, asked.burst_bits)
    capped = [replace(to_service(e), latency_s=e.latency_s + e.guardrails.delay_cap_s, excess=None) for e in upstream]
    return whole_kbit(burst_after(bucket, capped)) if upstream else asked.burst_bits


def found(
    scenario: Scenario,
    addresses: Mapping[str, tuple[str, str]],
    seats: Mapping[str, tuple[Controller, DomainProgram]],
    *,
    host_allowance_s: float,
    clock: Callable[[], float] = time.time,
) -> Federation:
    """Found a federation with new keys, each domain trusted for itself only.

    Args:
        scenario: Domains and tenants.
        addresses: (client, server) address of each tenant, by name.
        seats: Per domain, who installs for it and its program without rules.
        host_allowance_s: Part of every latency granted to the emulating host.
        clock: Unix time in seconds.
    """
    keys = {domain.name: SigningKey.generate() for domain in scenario.domains}
    trust = Trust.of({name: [key.public_key] for name, key in keys.items()})
    agents = {
        domain.name: DomainAgent(
            domain=domain,
            controller=seats[domain.name][0],
            skeleton=seats[domain.name][1],
            key=keys[domain.name],
            trust=trust,
            host_allowance_s=host_allowance_s,
            clock=clock,
            pause_s=scenario.slow_down * PAUSE_S,
        )
        for domain in scenario.domains
    }
    return Federation(scenario, agents, addresses, trust, clock)
