"""Tenants with intents on a real network: every domain's agent a process of its own, an orchestrator between them.

The agents have keys, ledgers and controllers of their own and hear of each other only what is signed. The plan is made
from the file first, because the network is built for it; what the agents then sign and install is what counts, and a
run whose agents decide otherwise does not begin. Agents do not repair while a window is measured: a repair would hide
from the run's own comparison what it repaired.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from controller.client import CallError, ControllerClient
from controller.program import DomainProgram
from controller.report import sentence
from testbed.emulation import links
from testbed.emulation.network import TandemNetwork
from testbed.envelope.calibration import Calibration
from testbed.envelope.descriptor import Envelope, Stage
from testbed.envelope.keys import PublicKey
from testbed.envelope.store import EnvelopeStore, verify
from testbed.errors import FidelityError, ReservationError, TestbedError
from testbed.management.admission import Rule
from testbed.management.bounds import HOST_RISK
from testbed.management.entry import State
from testbed.management.federation import Signed
from testbed.management.installer import program_of
from testbed.management.journal import Journal
from testbed.management.ledger import Ledger
from testbed.management.orchestrator import Orchestrator, Outcome
from testbed.management.plan_record import plan_record
from testbed.management.planner import plan
from testbed.management.sealing import Computation
from testbed.management.sizing import PAUSE_S
from testbed.management.staging import scenario_of, slowed_scenario_of
from testbed.run.excess import Excess, computed_under, excess_of, refuted, supported
from testbed.run.members import Members
from testbed.run.pipeline import Options, controller_socket, run_reserved
from testbed.run.preflight import require_root
from testbed.run.progress import Progress
from testbed.run.requests import WORKERS
from testbed.run.serving import server_calibration
from testbed.run.window import Window
from testbed.scenario.federation import Market, Operator
from testbed.scenario.model import Scenario, Tenant

_LEASE_MS = 24 * 3600 * 1000
"""Longer than any run."""

_NEVER_S = 1e6
"""Between two looks of an agent at its switches."""

_START_S = 60.0


def run_market(sold: Market, options: Options, progress: Progress, *, slow_down: float = 1.0) -> Path:
    """Run the intents of a federation; as `testbed.run.pipeline.run_reserved`.

    Args:
        sold: As it was written.
        options: How.
        progress: Told how far it has come.
        slow_down: How many times slower than written to run it.

    Raises:
        ScenarioError: What is planned cannot be emulated, or not so slowly.
    """
    require_root()
    if sold.allow_zero_delay and not links.netem_available():
        # Planned with the delays that the network will have, as every promise must be.
        sold = replace(sold, operators=tuple(replace(one, link_delay_s=0.0) for one in sold.operators))
    if slow_down == 1:
        scenario = scenario_of(sold, plan(sold), workers=WORKERS)
    else:
        sold, scenario = slowed_scenario_of(sold, slow_down, workers=WORKERS)
    return run_reserved(scenario, options, progress, functools.partial(reserving, sold))


@contextmanager
def reserving(
    sold: Market, network: TandemNetwork, controllers: Mapping[str, ControllerClient]
) -> Iterator[AgentReservations]:
    """Start the agents of a network, have the intents carried through them, and give everything back in the end.

    Raises:
        ReservationError: An agent decides otherwise than the network was built for; nothing is left reserved.
    """
    with ExitStack() as stack:
        members = Members.found(
            network.journal.directory / "management", sold.name, [one.name for one in sold.operators]
        )
        clients = {}
        by_name = {operator.name: operator for operator in sold.operators}
        for index, skeleton in enumerate(network.layout.skeletons):
            operator = by_name[skeleton.domain]
            member = members.settle(
                operator,
                skeleton,
                controller_socket(network, index),
                look_every_s=_NEVER_S,
                pause_s=sold.slow_down * PAUSE_S,
            )
            command = [sys.executable, "-m", "testbed.management.service", str(member.settings)]
            network.start(f"agent-{operator.name}", command, timeout_s=_START_S)
            clients[operator.name] = stack.enter_context(members.client(operator.name))
        journal = Journal(members.folder / "journal.sqlite")
        stack.callback(journal.close)

        def address_of(tenant: str, _site: str) -> tuple[str, str]:
            path = network.layout.path_of(tenant)
            return path.client.address, path.server.address

        store = EnvelopeStore(members.root)
        orchestrator = Orchestrator(
            clients, sold.segments, Rule(sold.rule), store, journal, address_of, slow_down=sold.slow_down
        )
        held = AgentReservations(sold, network.in_force, dict(controllers), members, orchestrator)
        stack.callback(held.release)
        held.reserve()
        yield held


@dataclass(frozen=True)
class Measured:
    """What a domain measured of one tenant.

    Attributes:
        rate_bps: Of the ideal queue, the smallest rate reserved on the path.
        excess: The samples.
        served_bps: Rate of the tenant's share of the domain's server; 0 where its requests are computed elsewhere.
        served: What its requests in the server support; None where too little is known.
    """

    rate_bps: int
    excess: Excess
    served_bps: int = 0
    served: Calibration | None = None


@dataclass
class AgentReservations:
    """What the agents of a federation have promised and installed, as a run asks for it.

    Attributes:
        sold: The federation.
        scenario: What the network was built for, with the link delays it has.
        controllers: A client of each domain's controller, by name.
        members: Keys and files of the domains.
        orchestrator: Reserves on behalf of the tenants.
        outcomes: What became of each intent, in their order.
    """

    sold: Market
    scenario: Scenario
    controllers: Mapping[str, ControllerClient]
    members: Members
    orchestrator: Orchestrator
    outcomes: Sequence[Outcome] = ()
    _signed: Mapping[str, Sequence[Signed]] | None = None

    def reserve(self) -> None:
        """Carry every intent through the agents.

        Raises:
            ReservationError: They decide otherwise than the network was built for.
        """
        self.outcomes = self.orchestrator.admit(self.sold.intents)
        self._require_as_built()
        self.orchestrator.renew(_LEASE_MS)
        self._signed = {outcome.decision.tenant: self._verified(outcome) for outcome in self.outcomes}

    def release(self) -> None:
        """Give back everything, and make sure that the switches show it.

        Raises:
            ReservationError: A domain did not give back, or a controller still holds a rule.
        """
        left: list[str] = []
        try:
            self.orchestrator.recover()
            self.orchestrator.release([one.tenant for one in self.orchestrator.held()])
        except TestbedError as error:
            # Which switches still hold a rule is worth knowing all the more.
            left += error.problems
        for name, client in self.controllers.items():
            try:
                rules = client.health()["rules"]
            except CallError as error:
                left += [f"domain {name}: after the release: {problem}" for problem in error.problems]
            else:
                left += [f"domain {name}: after the release: found {rules} rules, expected none"] if rules else []
        if left:
            raise ReservationError(left)

    def calibrated(self, _domains_s: Mapping[str, float], warm_up: Window, /) -> None:
        """Have every domain sign again with what it has measured.

        A tenant whose deadline the signed tails would not keep stays with the envelopes it has, as long as nothing
        that was measured contradicts them beyond the share of packets that the host is granted: a tail is what the
        evidence can support, not all that is true. What a domain grants its host is stated in the federation's file and
        not calibrated.

        Raises:
            FidelityError: What a domain measured contradicts what it has signed, and it signs nothing that would do;
                the tenants concerned hold nothing any more.
            ReservationError: The agents decide otherwise than the network was built for.
        """
        measured = {operator.name: self._measured(operator, warm_up) for operator in self.sold.operators}
        for operator in self.sold.operators:
            found = measured[operator.name]
            self.members.calibrations(operator.name).write(dict(_supported(operator, found)), dict(_served(found)))
        for index, (intent, before) in enumerate(zip(self.sold.intents, self.outcomes, strict=True)):
            if before.transfer is None:
                continue
            after = self.orchestrator.renegotiate(intent)
            if after.transfer is not None:
                self.outcomes = (*self.outcomes[:index], after, *self.outcomes[index + 1 :])
                self._signed = {**(self._signed or {}), intent.tenant: self._verified(after)}
            # An offer may have ended since it was taken up: it was verified then, and its lease is what counts now.
            against = _contradicted(self._of(intent.tenant), measured, warm_up, HOST_RISK * intent.epsilon)
            if against:
                self._withdraw(index, after, against)
        self._require_as_built()
        self.orchestrator.renew(_LEASE_MS)

    @property
    def programs(self) -> dict[str, DomainProgram]:
        """What each domain's ledger says is installed."""
        found = {}
        for name, member in self.members.settled.items():
            ledger = Ledger(member.ledger, None)
            found[name] = program_of(member.skeleton, ledger.entries(State.COMMITTED))
            ledger.close()
        return found

    @property
    def public_keys(self) -> dict[str, PublicKey]:
        """What verifies each domain's envelopes."""
        return {operator.name: self.members.keys[operator.name].public_key for operator in self.sold.operators}

    def envelopes(self, tenant: Tenant) -> list[Envelope]:
        """What the domains of a tenant's path promise of its packets, in path order."""
        network = [one.envelope for one in self._of(tenant.name) if one.envelope.subject.stage is Stage.NETWORK]
        by_domain = {envelope.domain: envelope for envelope in network}
        return [by_domain[domain.name] for domain in self.scenario.path(tenant)]

    def server(self, tenant: Tenant) -> Envelope | None:
        """What the tenant is promised of the server that computes its requests."""
        found = [one.envelope for one in self._of(tenant.name) if one.envelope.subject.stage is Stage.COMPUTE]
        return found[-1] if found else None

    def serve(self, _promised: Mapping[str, Computation], /) -> None:
        """Nothing: agents sign for their servers with every offer, and with what `calibrated` has them know."""

    def signed(self) -> list[Signed]:
        """Every envelope in force, those of servers included."""
        return [one for tenant in self.scenario.tenants for one in self._of(tenant.name)]

    def plan(self) -> dict[str, Any]:
        """What became of every intent, with the bounds that were signed."""
        return plan_record(self.sold, [outcome.decision for outcome in self.outcomes])

    def drift(self) -> tuple[str, ...]:
        """Differences between what the controllers installed and what the switches hold."""
        found: list[str] = []
        for name, client in self.controllers.items():
            try:
                found += [f"domain {name}: {sentence(difference)}" for difference in client.verify()]
            except CallError as error:
                found += [f"domain {name}: {problem}" for problem in error.problems]
        return tuple(found)

    def _of(self, tenant: str) -> Sequence[Signed]:
        return () if self._signed is None else self._signed.get(tenant, ())

    def _verified(self, outcome: Outcome) -> tuple[Signed, ...]:
        trust, now_s = self.members.root.trust, time.time()
        return tuple(
            Signed(verify(data, trust, now_s), data) for sealed in outcome.envelopes.values() for data in sealed
        )

    def _measured(self, operator: Operator, warm_up: Window) -> dict[str, Measured]:
        found = {}
        for tenant in self.scenario.tenants:
            ways = [domain.name for domain in self.scenario.path(tenant)]
            if operator.name not in ways:
                continue
            position = ways.index(operator.name)
            envelope = self.envelopes(tenant)[position]
            rate_bps = min(one.guardrails.reserved_rate_bps for one in self.envelopes(tenant))
            outcome, server = warm_up.requests[tenant.name], self.server(tenant)
            own = Measured(rate_bps, excess_of(outcome.match.packets, position, rate_bps, envelope.latency_s))
            if server is not None and server.domain == operator.name:
                served = server_calibration(outcome, server, rate_bps, declares_none=not operator.calibrated)
                own = replace(own, served_bps=server.guardrails.reserved_rate_bps, served=served)
            found[tenant.name] = own
        return found

    def _withdraw(self, index: int, after: Outcome, against: Sequence[str]) -> NoReturn:
        """Give back what a tenant holds whose envelopes their own domains have refuted; raises `FidelityError`."""
        tenant = self.sold.intents[index].tenant
        self.orchestrator.release([tenant])
        self.outcomes = (*self.outcomes[:index], after, *self.outcomes[index + 1 :])
        self._signed = {name: signed for name, signed in (self._signed or {}).items() if name != tenant}
        refusal = after.decision.refusal
        because = f"; nothing else was to be had: {refusal.because}" if refusal is not None else ""
        raise FidelityError(
            f"tenant {tenant}: the warm-up contradicts what was signed for it ({'; '.join(against)}){because}; end "
            "what else runs on this host, or grant it more (host-allowance)"
        )

    def _require_as_built(self) -> None:
        built = {tenant.name: (tenant.way, tenant.reservation) for tenant in self.scenario.tenants}
        decided = {}
        for outcome in self.outcomes:
            route = outcome.decision.route
            if outcome.transfer is not None and route is not None:
                decided[outcome.decision.tenant] = route.domains
        different = [name for name in {**built, **decided} if decided.get(name) != built.get(name, (None,))[0]]
        if different:
            reasons = [one.decision.refusal.because for one in self.outcomes if one.decision.refusal is not None]
            raise ReservationError(
                f"tenants {', '.join(different)}: the agents chose {decided}, expected the ways the network was built "
                f"for; refusals: {'; '.join(reasons) or 'none'}"
            )


def _contradicted(
    signed: Sequence[Signed], measured: Mapping[str, Mapping[str, Measured]], warm_up: Window, host_share: float
) -> list[str]:
    """In what the domains' samples contradict one tenant's envelopes, the host's share granted."""
    promises = []
    for one in (each.envelope for each in signed):
        if one.subject.stage is Stage.NETWORK:
            promises.append((one, measured[one.domain][one.subject.tenant].excess))
        else:
            promises.append((one, computed_under(warm_up.requests[one.subject.tenant].match.samples, one)))
    return refuted(promises, host_share=host_share)


def _supported(operator: Operator, measured: Mapping[str, Measured]) -> Iterator[tuple[tuple[str, int], Calibration]]:
    for tenant, found in measured.items():
        calibration = supported(found.excess, found.rate_bps, declares_none=not operator.calibrated)
        if calibration is not None:
            yield (tenant, found.rate_bps), calibration


def _served(measured: Mapping[str, Measured]) -> Iterator[tuple[tuple[str, int], Calibration]]:
    for tenant, found in measured.items():
        if found.served is not None:
            yield (tenant, found.served_bps), found.served
